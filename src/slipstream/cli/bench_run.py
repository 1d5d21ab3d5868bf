"""`slipstream bench run`: methods and peers over question files, each answer timed and compared with plain decoding."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli import options
from slipstream.cli.answering import note
from slipstream.cli.outputs import check_out_folder
from slipstream.errors import InputError, LosslessnessError

if TYPE_CHECKING:
    from slipstream.bench.hub_tasks import HubTask
    from slipstream.bench.runner import BenchRun, Progress
    from slipstream.bench.settings import EntrantSpec
    from slipstream.prompts import Prompt

BENCH = "Benchmark"
_NOTES_A_RUN = 20  # lines of progress where there is no bar


def run(
    model: options.Model = "tiny",
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--drafter",
            "-d",
            metavar="METHOD",
            rich_help_panel=BENCH,
            help="[NAME=]METHOD[:OPTION=VALUE,...], a method or a peer such as hf-plain; repeatable. Default: all that "
            "can run on this model, and transformers' own methods.",
        ),
    ] = None,
    drafts: Annotated[
        list[str] | None,
        typer.Option(
            "--draft",
            metavar="METHOD=PATH",
            rich_help_panel=BENCH,
            help="The artefact of a method: a head, a draft model; repeatable.",
        ),
    ] = None,
    peers: Annotated[
        bool,
        typer.Option("--peers/--no-peers", rich_help_panel=BENCH, help="Run transformers' own methods beside ours."),
    ] = True,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="PATH",
            rich_help_panel=BENCH,
            help="A question file, or a folder of them (mt_bench.jsonl, ...); default: the shipped prompts.",
        ),
    ] = None,
    datasets: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            rich_help_panel=BENCH,
            help="A data set of the hub: xsum, cnn_dm, gsm8k, humaneval, nq, or any as "
            "NAME=OWNER/DATASET[/CONFIG][@REVISION]:SPLIT:COLUMN[:REFERENCE_COLUMN]; repeatable, beside --data too. "
            "80 questions unless --prompts says otherwise.",
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", metavar="A,B", rich_help_panel=BENCH, help="Only these tasks of --data.")
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option("--prompts", metavar="N", rich_help_panel=BENCH, help="The first N prompts of each task."),
    ] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option("--max-new-tokens", "-n", rich_help_panel=options.SAMPLING, help="Tokens at most, per answer."),
    ] = 128,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-prompt-tokens",
            metavar="N",
            rich_help_panel=BENCH,
            help="Cut the end of longer prompts' longest message; default: what the context leaves.",
        ),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            "--temperature", "-t", rich_help_panel=options.SAMPLING, help="May be repeated; default: 0 (greedy) and 1."
        ),
    ] = None,
    top_p: options.TopP = None,
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=options.SAMPLING, help="Of the sampled answers.")] = 0,
    samples: Annotated[
        int,
        typer.Option(
            "--samples", metavar="N", rich_help_panel=options.SAMPLING, help="Sampled answers to each prompt."
        ),
    ] = 1,
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats", metavar="N", rich_help_panel=BENCH, help="Time each answer N times; the median counts."
        ),
    ] = 1,
    verification: options.Verification = "coupled",
    judge: Annotated[
        str,
        typer.Option(
            "--judge",
            metavar="WHEN",
            rich_help_panel=BENCH,
            help="Generate answers that differ from plain decoding again in float64: auto (up to 1e9 parameters), "
            "float64 (always) or none.",
        ),
    ] = "auto",
    dtype: options.Dtype = None,
    device: options.Device = None,
    attention: options.Attention = None,
    threads: options.Threads = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            callback=check_out_folder,
            metavar="FOLDER",
            rich_help_panel=BENCH,
            help="The run's folder; default: runs/bench-MODEL.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", rich_help_panel=BENCH, help="Go on with the run in that folder.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report/--no-report", rich_help_panel=BENCH, help="Write report.html too.")
    ] = True,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure methods and transformers' own on the same questions in one run, and check every answer.

    All answer a question before any sees the next, in turns, on one loaded model. The folder then holds every answer
    (`answers.jsonl`, and in Spec-Bench's layout), the figures (`record.json`) and a page to look at (`report.html`).
    A run that was killed loses at most one prompt: go on with `--resume`.

    Exit code 1 if an answer differs from plain decoding in float64 too.

    Example: slipstream bench run -m Qwen/Qwen3-0.6B -d layer-skip -d prompt-lookup --prompts 10
    """
    from slipstream.records.run_files import REPORT_FILE

    if report:
        _check_plots()
    folder = out or Path("runs") / f"bench-{_slug(model)}"
    bench, work = _prepare(
        folder,
        model,
        method,
        drafts,
        peers,
        data,
        datasets,
        tasks,
        resume,
        loading={"dtype": dtype, "device": device, "attention": attention, "threads": threads},
        prompts_per_task=prompts,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        temperatures=tuple(temperature or (0.0, 1.0)),
        top_p=top_p,
        seed=seed,
        samples=samples,
        repeats=repeats,
        verification=verification,
        judge=judge,
    )
    try:
        work()
    except KeyboardInterrupt:
        if bench.num_done:
            _finish(folder)
        note(f"{bench.num_done} of {len(bench.prompts)} prompts are done; go on with --resume")
        raise
    record = _finish(folder)
    if report:
        from slipstream.records.record import load_record
        from slipstream.report.files import write_report

        write_report(load_record(folder), folder / REPORT_FILE)
    if as_json:
        print(json.dumps(record))
    else:
        from slipstream.cli.bench_show import show_record

        show_record(folder)
    note(f"{folder}: record.json, answers.jsonl, spec-bench/" + (f", {REPORT_FILE}" if report else ""))
    _raise_on_fault(record)


def _prepare(
    folder: Path,
    model: str,
    method: list[str] | None,
    drafts: list[str] | None,
    peers: bool,
    data: Path | None,
    datasets: list[str] | None,
    task_names: str | None,
    resume: bool,
    *,
    loading: dict[str, Any],
    prompts_per_task: int | None,
    **settings: Any,
) -> tuple[BenchRun, Callable[[], None]]:
    """The run, and what does its work under a progress bar. What the user may have got wrong is read first."""
    from slipstream.bench.entrants import ExactEntrants, default_entrants, load_entrants
    from slipstream.bench.hub_tasks import keep_questions
    from slipstream.bench.runner import BenchRun
    from slipstream.bench.settings import PLAIN, BenchSettings
    from slipstream.bench.tasks import questions_hash
    from slipstream.cli.loading import load
    from slipstream.runtime.threads import check_threads

    check_threads(loading["threads"])
    tasks, questions, sources = _read_tasks(folder, data, datasets, task_names, prompts_per_task, resume)
    artefacts = dict(map(_parse_draft, drafts or ()))
    given = _with_plain(_parse_methods(method, artefacts)) if method else None
    draft = BenchSettings(
        entrants=tuple(given or _with_plain([])),
        tasks=tuple(tasks),
        data=", ".join(sources),
        questions_hash=questions_hash(tasks),
        prompts_per_task=prompts_per_task,
        **settings,
    )
    note(f"loading {model}")
    plain = load(model, PLAIN, **loading)
    if given is None:
        from dataclasses import replace

        draft = replace(draft, entrants=tuple(default_entrants(plain.target.hash, artefacts, peers)))
    bench = BenchRun(folder, plain, model, draft, tasks, resume=resume)
    for one, text in questions.items():
        keep_questions(folder, one, text)

    def left_out(name: str, reason: str) -> None:
        note(f"{name} is left out: {reason}")
        bench.leave_out(name, reason)

    def work() -> None:
        entrants = load_entrants(plain, draft, left_out)
        exact = ExactEntrants(lambda: load(model, PLAIN, **{**loading, "dtype": "float64"}), draft)
        with _progress(bench) as show:
            bench.measure_costs()
            bench.run(entrants, exact, show)

    return bench, work


def _read_tasks(
    folder: Path,
    data: Path | None,
    datasets: list[str] | None,
    task_names: str | None,
    prompts_per_task: int | None,
    resume: bool,
) -> tuple[dict[str, list[Prompt]], dict[HubTask, str], list[str]]:
    """The prompts of each task, the question files of those from the hub, and what all came from.

    A resumed run asks what its folder keeps.
    """
    from slipstream.bench.hub_tasks import fetch_questions, kept_questions, parse_tasks, prompts_of
    from slipstream.bench.tasks import load_tasks

    names = None if task_names is None else [name.strip() for name in task_names.split(",") if name.strip()]
    only_hub = bool(datasets) and data is None
    if only_hub and names is not None:
        raise InputError("--tasks chooses among the tasks of --data; with --dataset alone leave it out")
    tasks = {} if only_hub else load_tasks(data, names, prompts_per_task)
    sources = [] if only_hub else ["shipped prompts" if data is None else data.name]
    questions: dict[HubTask, str] = {}
    for one in parse_tasks(datasets or (), list(tasks)):
        questions[one] = (kept_questions(folder, one) if resume else None) or fetch_questions(one, prompts_per_task)
        tasks[one.name] = prompts_of(one, questions[one])
        sources.append(one.described)
    return tasks, questions, sources


def _with_plain(specs: list[EntrantSpec]) -> list[EntrantSpec]:
    from slipstream.bench.settings import PLAIN, EntrantSpec

    plain = EntrantSpec(name=PLAIN, kind="ours", method=PLAIN)
    return [plain, *(spec for spec in specs if spec != plain)]


def _parse_methods(texts: list[str], artefacts: dict[str, str]) -> list[EntrantSpec]:
    """What `-d` names, each with the artefact that `--draft` gave its method."""
    from dataclasses import replace

    from slipstream.bench.peers import PEERS
    from slipstream.bench.settings import EntrantSpec

    specs = [EntrantSpec.parse(text, list(PEERS)) for text in texts]
    methods = {spec.method for spec in specs}
    if unused := next((name for name in artefacts if name not in methods), None):
        raise InputError(f"--draft names {unused!r}, which is none of the methods of -d; add it or leave it out")
    return [
        replace(spec, options={"draft": artefacts[spec.method], **spec.options}) if spec.method in artefacts else spec
        for spec in specs
    ]


def _parse_draft(text: str) -> tuple[str, str]:
    from slipstream.bench.peers import PEERS
    from slipstream.errors import unknown_choice
    from slipstream.methods.registry import METHODS

    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise InputError(f"--draft {text!r} is not of the form METHOD=PATH, such as eagle2=heads/mine")
    if name not in METHODS and name not in PEERS:
        raise unknown_choice("method", name, [*METHODS, *PEERS])
    return name, path


def _slug(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", Path(model).name if Path(model).is_absolute() else model).strip("-")


def _check_plots() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise InputError(
            "the report needs matplotlib: pip install 'slipstream-llm[plots]', or leave it out with --no-report"
        )


def _finish(folder: Path) -> dict[str, Any]:
    """Write everything that is made of the journal."""
    from slipstream.bench.record import write_record
    from slipstream.bench.spec_bench import write_answers
    from slipstream.records.journal import read_answers
    from slipstream.records.run_files import JOURNAL_FILE, SPEC_BENCH_FOLDER

    record = write_record(folder)
    write_answers(folder / SPEC_BENCH_FOLDER, read_answers(folder / JOURNAL_FILE), record["run"]["model"])
    return record


@contextmanager
def _progress(bench: BenchRun) -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr with the time left; lines where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    every = max(1, len(bench.prompts) // _NOTES_A_RUN)
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("warming up", total=len(bench.prompts), completed=bench.num_done)

        def show(progress: Progress) -> None:
            line = f"{progress.prompt.kind}, {progress.left_s / 60:.0f} min left"
            bar.update(task, completed=progress.num_done, description=line)
            if not console.is_terminal and progress.num_done % every == 0:
                note(f"{progress.num_done} of {progress.num_prompts} prompts; {line}")

        yield show


def _raise_on_fault(record: dict[str, Any]) -> None:
    faults = [one for one in record["faults"] if one["verdict"] == "fault"]
    if faults:
        one = faults[0]
        raise LosslessnessError(
            f"{len(faults)} answers differ from plain decoding in float64 too; the first is {one['entrant']} at "
            f"T={one['temperature']:g} on {one['task']} {one['prompt_id']}, turn {one['turn'] + 1}, from generated "
            f"token {one['first_difference']} on. This is a fault: please report it."
        )
