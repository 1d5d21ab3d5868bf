"""Answering a job's prompts on a Ray cluster: workers with a model of their own each, fed by Ray Data.

Ray places the workers and hands them rows. It puts another in the place of one that dies, as often as it takes, and
gives it the rows that the dead one had. This process reads the prompts and writes the answers down as they come, so
workers need no disk in common, and a job can go on with or without Ray.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipstream.errors import InputError, SlipstreamError
from slipstream.jobs.job import Done, Report, answer, carry_out
from slipstream.jobs.prompts import Row
from slipstream.model import Model

try:
    import ray
    import ray.data
except ImportError as error:
    raise InputError(f"--ray needs Ray ({error}): pip install 'ray[data]', or the extra 'ray'") from None

_ROW, _ANSWER = "row", "answer"
"""Columns of JSON texts: [id, prompt], and a line of the file. Columns of values would need one type for all rows."""
_DIFFERING = "differing"
"""In place of an answer: the names of what a worker has otherwise."""
_MOST_BLOCKS = 4096
"""Pieces of the work at most. A piece is answered by one worker, and again if that dies; short jobs have a row each."""


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


@dataclass(frozen=True, slots=True)
class Workers:
    """How many there are and what each is given."""

    number: int
    num_gpus: int
    num_cpus: int | None
    """None: Ray's choice, beside a GPU."""

    @classmethod
    def on_cluster(cls, number: int | None, *, on_gpus: bool = True) -> Workers:
        """One a GPU; without GPUs, or with `on_gpus` False, one a machine, or `number` that share the processors.

        Raises InputError for more workers than there are GPUs or processors.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = int(sum(node.get("GPU", 0) for node in nodes)) if on_gpus else 0
        if gpus:
            return cls(_at_most(number or gpus, gpus, "GPUs"), 1, None)
        cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
        number = _at_most(number or len(cpus), sum(cpus), "processors")
        each = max(one for one in range(1, max(cpus) + 1) if sum(cpu // one for cpu in cpus) >= number)
        return cls(number, 0, each)

    @property
    def resources(self) -> dict[str, Any]:
        """For Ray."""
        return {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus}


class Worker:
    """Answers rows; Ray Data makes one for each of its actors."""

    def __init__(self, job: Job, header: Mapping[str, Any]) -> None:
        self._header = header
        self._model, own = job.open()
        self._differing = sorted(name for name, value in header.items() if own.get(name) != value)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Rows as JSON texts; answers as well, or in what the worker differs from the job: Ray would hide an error."""
        return {_ANSWER: [json.dumps(self._answer(Row(*json.loads(text)))) for text in batch[_ROW]]}

    def _answer(self, row: Row) -> dict[str, Any]:
        return {_DIFFERING: self._differing} if self._differing else answer(self._model, row, self._header)


def answer_all(
    job: Job,
    rows: Sequence[Row],
    out: Path,
    *,
    address: str | None = None,
    num_workers: int | None = None,
    on_gpus: bool = True,
    report: Report = lambda num_done, num_rows: None,
) -> tuple[Done, dict[str, Any]]:
    """Answer all rows and write the file; returns what came of it, and the header.

    address: of a cluster; None: the one that runs here or that RAY_ADDRESS names, else this machine alone.
    num_workers, on_gpus: see `Workers.on_cluster`. A worker first says what the job is, so a wrong option or a file of
    another job ends it before the others load anything. Raises InputError as `slipstream.jobs.job.answer_all` does, and
    for a cluster that cannot be reached; SlipstreamError where Ray gives up.
    """
    with _connected(address), _plain_errors():
        workers = Workers.on_cluster(num_workers, on_gpus=on_gpus)
        header = ray.get(ray.remote(_header).options(**workers.resources).remote(job))

        def answers(left: Sequence[Row]) -> Iterator[dict[str, Any]]:
            return _answers(job, header, workers, left)

        return carry_out(answers, rows, out, header, report=report), header


def _header(job: Job) -> dict[str, Any]:
    return job.open()[1]


def _answers(job: Job, header: Mapping[str, Any], workers: Workers, left: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """In the order in which they are done."""
    if not left:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{_ROW: json.dumps([row.id, row.prompt])} for row in left]
    answered = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS)).map_batches(
        Worker,
        fn_constructor_args=(job, header),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers.number, len(items))),
        **workers.resources,
    )
    for row in answered.iter_rows():
        found = json.loads(row[_ANSWER])
        if differing := found.get(_DIFFERING):
            raise InputError(f"machines of the cluster differ in {', '.join(differing)}; install the same on all")
        yield found


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """To a cluster, for as long as it is needed; a connection that is there already is used and left."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address, include_dashboard=False, logging_level="warning")
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(f"no Ray cluster at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors that a worker raised on purpose, as if it were here; one line for workers that die."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SlipstreamError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).splitlines()[0]
        raise SlipstreamError(f"Ray gave up ({reason}); what is answered is kept, the same command goes on") from error


def _at_most(number: int, limit: int, kind: str) -> int:
    if number > limit:
        raise InputError(f"--workers is {number}, but the cluster has {limit} {kind}; ask for fewer")
    return number
