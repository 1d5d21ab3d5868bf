"""How a benchmark is assembled of what the user asked for: questions, entrants, the folder, and what is made of it.

What the user may have got wrong is found before the model is loaded, as far as it can be known by then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from slipstream.bench.entrants import Answering, ExactEntrants, default_entrants, load_entrants
from slipstream.bench.hub_tasks import HubTask, fetch_questions, keep_questions, kept_questions, parse_tasks, prompts_of
from slipstream.bench.peers import PEERS
from slipstream.bench.processes.entrants import Processes
from slipstream.bench.processes.software import OTHERS, Interpreters, parse_peer
from slipstream.bench.record import write_record
from slipstream.bench.run_folder import LOCK_FILE, check_same, holds_run
from slipstream.bench.runner import BenchRun
from slipstream.bench.settings import PLAIN, BenchOptions, BenchSettings, EntrantSpec
from slipstream.bench.shards import FINISHER_FILE, join
from slipstream.bench.spec_bench import write_answers
from slipstream.bench.tasks import load_tasks, questions_hash
from slipstream.errors import InputError, unknown_choice
from slipstream.methods.registry import METHODS
from slipstream.model import Model
from slipstream.prompts import Prompt
from slipstream.records.journal import read_answers
from slipstream.records.machine import shown_name
from slipstream.records.run_files import JOURNAL_FILE, SPEC_BENCH_FOLDER, write_json
from slipstream.records.schema import Record
from slipstream.runtime.executor import make_executor
from slipstream.runtime.threads import check_threads
from slipstream.share import ALONE, Share
from slipstream.target.dtypes import resolve_dtype

Load = Callable[..., Model]
"""Loads a model as `slipstream.load` does: model, method, then dtype, device, attention, runtime, threads by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for."""

    folder: Path
    """Where this process runs."""
    model: str
    share: Share = ALONE
    methods: Sequence[str] = ()
    """As `EntrantSpec.parse` reads them; none: all that can run."""
    drafts: Sequence[str] = ()
    """METHOD=PATH, the artefacts of methods."""
    peers: bool = True
    """Transformers' own methods too, where no methods are named."""
    processes: Sequence[str] = ()
    """Peers in processes of their own, as `parse_peer` reads them."""
    interpreters: Sequence[str] = ()
    """The Pythons that run them, as `Interpreters.parse` reads them."""
    data: Path | None = None
    datasets: Sequence[str] = ()
    tasks: str | None = None
    """Names with commas between."""
    resume: bool = False
    loading: Mapping[str, Any] = field(default_factory=dict)
    """What `Load` takes by name; None: its default."""
    options: BenchOptions = field(default_factory=BenchOptions)


@dataclass(slots=True)
class Assembled:
    """A run that is ready to start, and those that take part."""

    bench: BenchRun
    entrants: Mapping[str, Answering]
    exact: ExactEntrants
    processes: Processes
    """Of peers; to be closed when the run is over."""


def assemble(request: Request, load: Load, tell: Callable[[str], None]) -> Assembled:
    """Check everything, load the model, make or reopen the run, load the entrants. tell: is given lines of progress.

    The folder should be held meanwhile and until the run ends (`run_folder.hold`).
    Raises InputError and ArtifactError as its parts do.
    """
    check_threads(request.loading.get("threads"))
    tasks, questions, sources = _read_tasks(request)
    artefacts = dict(map(parse_draft, request.drafts))
    processes = [with_artefact(parse_peer(text), artefacts) for text in request.processes]
    interpreters = Interpreters.parse(request.interpreters, processes)
    named = parse_methods(request.methods, artefacts, processes)
    settings = BenchSettings(
        entrants=tuple(with_plain([*named, *processes])),
        tasks=tuple(tasks),
        data=", ".join(sources),
        questions_hash=questions_hash(tasks),
        **asdict(request.options),
    )
    interpreters.check(processes)
    if holds_run(request.folder, resume=request.resume):
        check_same(request.folder, _known_before_loading(request, settings))
    tell(f"loading {request.model}")
    plain = load(request.model, PLAIN, **request.loading)
    if not request.methods:
        taken = {spec.name for spec in processes}
        found = default_entrants(plain.target.hash, artefacts, request.peers)
        settings = replace(settings, entrants=(*(one for one in found if one.name not in taken), *processes))
    bench = BenchRun(request.folder, plain, request.model, settings, tasks, share=request.share, resume=request.resume)
    for one, text in questions.items():
        keep_questions(request.folder, one, text)

    def left_out(name: str, reason: str) -> None:
        tell(f"{name} is left out: {reason}")
        bench.leave_out(name, reason)

    children = Processes(request.model, request.loading, interpreters, tell)
    try:
        start = partial(children.start, target=plain.target, settings=settings)
        entrants = load_entrants(plain, settings, left_out, start)
        bench.describe_peers(children.software)
    except BaseException:
        children.close()
        raise
    exact = ExactEntrants(lambda: load(request.model, PLAIN, **{**request.loading, "dtype": "float64"}), settings)
    return Assembled(bench, entrants, exact, children)


def finish(folder: Path) -> Record:
    """Write what is made of a run's journal: the record, which is returned, and the answers in Spec-Bench's layout."""
    record = write_record(folder)
    write_answers(folder / SPEC_BENCH_FOLDER, read_answers(folder / JOURNAL_FILE), record.run.model)
    return record


def finish_shared(folder: Path, share: Share) -> Record | None:
    """As `finish`, of a run that several processes share: the first to find all done. None for every other one."""
    finisher = folder / FINISHER_FILE
    with FileLock(folder / LOCK_FILE):
        if finisher.exists() and json.loads(finisher.read_text(encoding="utf-8")) != {"rank": share.rank}:
            return None
        if not join(folder, share.world_size):
            return None
        record = finish(folder)
        write_json(finisher, {"rank": share.rank})
        return record


def with_plain(specs: Sequence[EntrantSpec]) -> list[EntrantSpec]:
    """Plain decoding first, then the others."""
    plain = EntrantSpec(name=PLAIN, kind="ours", method=PLAIN)
    return [plain, *(spec for spec in specs if spec != plain)]


def parse_methods(
    texts: Sequence[str], artefacts: Mapping[str, str], processes: Sequence[EntrantSpec] = ()
) -> list[EntrantSpec]:
    """What `-d` names, each with the artefact that `--draft` gave its method. processes: what `--peer` names."""
    specs = [_parse_method(text) for text in texts]
    methods = {spec.method for spec in (*specs, *processes)}
    if texts and (unused := next((name for name in artefacts if name not in methods), None)):
        raise InputError(f"--draft names {unused!r}, which is none of the methods of -d; add it or leave it out")
    return [with_artefact(spec, artefacts) for spec in specs]


def with_artefact(spec: EntrantSpec, artefacts: Mapping[str, str]) -> EntrantSpec:
    """An entrant with the artefact that `--draft` gave its method, unless it names one itself."""
    if spec.method not in artefacts:
        return spec
    return replace(spec, options={"draft": artefacts[spec.method], **spec.options})


def _parse_method(text: str) -> EntrantSpec:
    name = text.partition(":")[0].rpartition("=")[2]
    if name in OTHERS:
        raise InputError(f"{name} runs in a process of its own: --peer {text}")
    return EntrantSpec.parse(text, list(PEERS))


def parse_draft(text: str) -> tuple[str, str]:
    """Method and path of METHOD=PATH."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise InputError(f"--draft {text!r} is not of the form METHOD=PATH, such as eagle2=heads/mine")
    if name not in METHODS and name not in PEERS:
        raise unknown_choice("method", name, [*METHODS, *PEERS])
    return name, path


def _known_before_loading(request: Request, settings: BenchSettings) -> dict[str, Any]:
    """What `run.json` must say, as far as it is known. Whether a default is the same, the loaded model tells."""
    asked = settings.to_dict()
    if not request.methods:
        asked.pop("entrants", None)
    known: dict[str, Any] = {"model": shown_name(request.model), "settings": asked}
    if (dtype := resolve_dtype(request.loading.get("dtype"))) is not None:
        known["dtype"] = str(dtype).removeprefix("torch.")
    if (runtime := request.loading.get("runtime")) not in (None, "auto"):
        known["runtime"] = make_executor(runtime=runtime).name
    if (threads := request.loading.get("threads")) is not None:
        known["threads"] = threads
    if (device := request.loading.get("device")) not in (None, "cuda"):  # which one, PyTorch says
        known["device"] = device
    return known


def _read_tasks(request: Request) -> tuple[dict[str, list[Prompt]], dict[HubTask, str], list[str]]:
    """The prompts of each task, the question files of those from the hub, and what all came from.

    A resumed run asks what its folder keeps.
    """
    names = None if request.tasks is None else [name.strip() for name in request.tasks.split(",") if name.strip()]
    only_hub = bool(request.datasets) and request.data is None
    if only_hub and names is not None:
        raise InputError("--tasks chooses among the tasks of --data; with --dataset alone leave it out")
    tasks = {} if only_hub else load_tasks(request.data, names, request.options.prompts_per_task)
    sources = [] if only_hub else ["shipped prompts" if request.data is None else request.data.name]
    questions: dict[HubTask, str] = {}
    for one in parse_tasks(request.datasets, list(tasks)):
        kept = kept_questions(request.folder, one) if request.resume else None
        questions[one] = kept or fetch_questions(one, request.options.prompts_per_task)
        tasks[one.name] = prompts_of(one, questions[one])
        sources.append(one.described)
    return tasks, questions, sources
