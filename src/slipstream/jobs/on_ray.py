"""Answering a job's prompts on a Ray cluster: workers with a model of their own each, fed by Ray Data.

Ray places the workers and hands them rows. It puts another in the place of one that dies and gives it the rows that the
dead one had, until the same row has cost a few of them. Ray Data reads the prompts and writes the answers down as they
come, on the machine of this process (`slipstream.jobs.ray_tasks`): workers need no disk in common, and a job can go on
with or without Ray.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from slipstream.errors import InputError, SlipstreamError
from slipstream.jobs.job import Done, Report, answer, carry_out
from slipstream.jobs.parts import Part
from slipstream.jobs.prompts import Row, rows_hash
from slipstream.model import Model

try:
    import ray
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from slipstream.jobs.ray_cluster import Workers, connected
    from slipstream.jobs.ray_tasks import ANSWER, REFUSAL, ROW, Answers, Prompts, Tries, as_text
except ImportError as error:
    raise InputError(f"--ray needs Ray ({error}): pip install 'ray[data]', or the extra 'ray'") from None

_MOST_BLOCKS = 4096
"""Pieces of the work at most. A piece is answered by one worker, and again if that dies; short jobs have a row each."""
_MOST_TRIES = 3
"""Workers that may die over the same row, or the same worker while it loads, until the job ends. Ray's own bound,
`max_task_retries`, counts rows that wait behind it too, and its error names none."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to know; it is sent there, so the functions are ones that can be imported."""

    load: Callable[[], Model]
    header: Callable[[Model], dict[str, Any]]
    """See `slipstream.jobs.job.header`."""

    folder: Path
    """Which names of files are relative to."""

    def open(self) -> tuple[Model, dict[str, Any]]:
        """The model and the header."""
        with suppress(OSError):  # on another machine; a file that is missing there is named when it is read
            os.chdir(self.folder)
        model = self.load()
        return model, self.header(model)


class Worker:
    """Answers rows; Ray Data makes one for each of its actors."""

    def __init__(self, job: Job, header: Mapping[str, Any], tries: Any) -> None:
        """tries: the actor of `Tries`."""
        self._header, self._tries = header, tries
        place = f"worker {ray.get_runtime_context().get_actor_id()}"  # the same for one that replaces it
        self._refusal = self._given_up(place, "they loaded the model") or self._open(job)
        ray.get(tries.end.remote(place))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Rows as JSON texts; answers as well."""
        return {ANSWER: [json.dumps(self._answer(Row(*json.loads(text)))) for text in batch[ROW]]}

    def _open(self, job: Job) -> SlipstreamError | None:
        """Load the model. Returns why this worker cannot do the job."""
        try:
            self._model, own = job.open()
        except SlipstreamError as error:
            return error
        differing = sorted(name for name, value in self._header.items() if own.get(name) != value)
        told = f"machines of the cluster differ in {', '.join(differing)}; install the same on all"
        return InputError(told) if differing else None

    def _answer(self, row: Row) -> dict[str, Any]:
        name = json.dumps(row.id)
        if refusal := self._refusal or self._given_up(name, f"they answered row {name}"):
            return {REFUSAL: [_of_kind(refusal).__name__, str(refusal)]}
        found = answer(self._model, row, self._header)
        self._tries.end.remote(name)
        return found

    def _given_up(self, what: str, doing: str) -> SlipstreamError | None:
        """Begin one more try, or say that there were enough."""
        if ray.get(self._tries.begin.remote(what)) <= _MOST_TRIES:
            return None
        return SlipstreamError(
            f"{_MOST_TRIES} workers died one after another while {doing}; what is answered is kept, and the same "
            "command tries again, for instance on machines with more memory"
        )


def answer_all(
    job: Job,
    rows: Sequence[Row],
    out: Path,
    *,
    file: Path | None = None,
    address: str | None = None,
    num_workers: int | None = None,
    on_gpus: bool = True,
    report: Report = lambda num_done, num_rows: None,
) -> tuple[Done, dict[str, Any]]:
    """Answer all rows and write the file; returns what came of it, and the header.

    file: which the rows are from; Ray Data reads it again. None, or one that can be read once only: rows are sent.
    address: of a cluster; None: the one that runs here or that RAY_ADDRESS names, else this machine alone.
    num_workers, on_gpus: see `Workers.on_cluster`. A worker first says what the job is, so a wrong option or a file of
    another job ends it before the others load anything. Raises InputError as `slipstream.jobs.job.answer_all` does, and
    for a cluster that cannot be reached; SlipstreamError where workers die again and again, or Ray gives up.
    """
    with connected(address), _plain_errors():
        workers = Workers.on_cluster(num_workers, on_gpus=on_gpus)
        header = ray.get(ray.remote(_header).options(**workers.resources).remote(job))

        def work(left: Sequence[Row], part: Part, tell: Callable[[int], None]) -> None:
            if left:
                with _told(part.folder, tell):
                    _answer_left(job, header, workers, _read(file, rows, left), len(left), part.folder)
                tell(len(left))

        return carry_out(work, rows, out, header, report=report), header


def _header(job: Job) -> dict[str, Any]:
    return job.open()[1]


def _read(file: Path | None, rows: Sequence[Row], left: Sequence[Row]) -> Any:
    """The data set of the rows that are left."""
    num_blocks = min(len(left), _MOST_BLOCKS)
    if file is None or not file.is_file():
        return ray.data.from_items([{ROW: as_text(row)} for row in left], override_num_blocks=num_blocks)
    prompts = Prompts(file, rows_hash(rows), [row.id for row in left])
    return ray.data.read_datasource(prompts, override_num_blocks=num_blocks, num_cpus=0)


def _answer_left(job: Job, header: Mapping[str, Any], workers: Workers, data: Any, num_left: int, folder: Path) -> None:
    """Let workers answer a data set of rows, and write pieces into a folder."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it logs it raises as well
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    counting = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    data.map_batches(
        Worker,
        fn_constructor_args=(job, header, ray.remote(Tries).options(**counting).remote()),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers.number, num_left)),
        **workers.resources,
    ).write_datasink(Answers(folder), ray_remote_args={"num_cpus": 0}, concurrency=1)


@contextmanager
def _told(folder: Path, tell: Callable[[int], None]) -> Iterator[None]:
    """Tell how many answers the new pieces in a folder hold, every second."""
    over = Event()

    def watch(known: set[Path], num_answers: int = 0) -> None:
        while not over.wait(1):
            new = set(folder.glob("*.jsonl")) - known
            num_answers += sum(file.read_bytes().count(b"\n") for file in new)
            known |= new
            if new:
                tell(num_answers)

    watching = Thread(target=watch, args=(set(folder.glob("*.jsonl")),), daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors that a worker raised on purpose, as if it were here; one line for workers that die."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SlipstreamError):
            raise _of_kind(error.cause)(str(error.cause).partition("\n")[0]) from error  # Ray Data adds lines
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).partition("\n")[0]
        raise SlipstreamError(f"Ray gave up ({reason}); what is answered is kept, the same command goes on") from error


def _of_kind(error: SlipstreamError) -> type[SlipstreamError]:
    return InputError if isinstance(error, InputError) else SlipstreamError
