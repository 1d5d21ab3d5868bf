"""`slipstream bench run`: methods and peers over question files, each answer timed and compared with plain decoding."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.bench.settings import BenchOptions
from slipstream.cli import options
from slipstream.cli.answering import note
from slipstream.cli.from_settings import options_from_settings
from slipstream.cli.outputs import check_out_folder
from slipstream.errors import InputError, LosslessnessError
from slipstream.share import Share

if TYPE_CHECKING:
    from slipstream.bench.assembly import Request
    from slipstream.bench.runner import BenchRun, Watcher
    from slipstream.records.schema import Record

BENCH = "Benchmark"
_NOTES_A_RUN = 20  # lines of progress where there is no bar


@options_from_settings(
    panels={
        BENCH: ("prompts_per_task", "max_prompt_tokens", "repeats", "judge"),
        options.SAMPLING: ("max_new_tokens", "temperatures", "top_p", "seed", "samples", "verification"),
    },
    flags={
        "prompts_per_task": "--prompts",
        "max_new_tokens": "--max-new-tokens,-n",
        "temperatures": "--temperature,-t",
    },
    metavars={
        **dict.fromkeys(("prompts_per_task", "max_prompt_tokens", "repeats", "samples"), "N"),
        "judge": "WHEN",
        "verification": "RULE",
    },
)
def run(
    *,
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
    processes: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="PEER",
            rich_help_panel=BENCH,
            help="[NAME=]PEER[:OPTION=VALUE,...], a peer in a process of its own, in turns with the others: hf-plain, "
            "hf-assisted, hf-prompt-lookup, hf-early-exit, hf-compiled, llama-cpp, llama-cpp-q4, openvino, "
            "openvino-prompt-lookup; repeatable.",
        ),
    ] = None,
    interpreters: Annotated[
        list[str] | None,
        typer.Option(
            "--peer-python",
            metavar="[PEER=]PATH",
            rich_help_panel=BENCH,
            help="The Python that runs llama.cpp and OpenVINO, or that of one peer: what they need may be installed "
            "elsewhere; repeatable.",
        ),
    ] = None,
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
    answering: BenchOptions,
    loading: options.LoadingOptions,
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

    All answer a question before any sees the next, in turns, on one loaded model; peers of --peer have a process each.
    The folder then holds every answer (`answers.jsonl`, and in Spec-Bench's layout), the figures (`record.json`) and a
    page to look at (`report.html`).
    A run that was killed loses at most one prompt: go on with `--resume`. Under torchrun or accelerate launch every
    process answers its share of each task, each on its own GPU, and the last one joins them.

    Exit code 1 if an answer differs from plain decoding in float64 too.

    Example: slipstream bench run -m Qwen/Qwen3-0.6B -d layer-skip -d prompt-lookup --prompts 10
    """
    from slipstream.bench.assembly import Request
    from slipstream.bench.run_folder import hold
    from slipstream.bench.shards import shard_folder

    if report:
        _check_plots()
    share = Share.from_environment()
    folder = out or Path("runs") / f"bench-{_slug(model)}"
    request = Request(
        folder=shard_folder(folder, share),
        share=share,
        model=model,
        methods=method or (),
        drafts=drafts or (),
        peers=peers,
        processes=processes or (),
        interpreters=interpreters or (),
        data=data,
        datasets=datasets or (),
        tasks=tasks,
        resume=resume,
        loading={**asdict(loading), "device": loading.device or share.own_gpu()},
        options=answering,
    )
    with hold(request.folder):
        record = _carry_out(request, folder)
        if record is None:
            note(f"process {share.rank} of {share.world_size} is done; the last one writes {folder}")
            return
        if report:
            _write_report(record, folder)
    note(f"{folder}: record.json, answers.jsonl, spec-bench/" + (", report.html" if report else ""))
    _show(record, as_json=as_json)
    _raise_on_fault(record)


def _carry_out(request: Request, whole: Path) -> Record | None:
    """Do the run under a progress bar; returns its record, None where another process makes that of all shares.

    whole: the folder of all processes together. An interrupted run leaves a record, too.
    """
    from slipstream.bench.assembly import assemble, finish, finish_shared
    from slipstream.cli.loading import load

    run = assemble(request, load, note)
    bench = run.bench
    try:
        bench.measure_costs()
        with _progress(bench, len(run.entrants)) as watcher:
            bench.run(run.entrants, run.exact, watcher)
    except KeyboardInterrupt:
        if bench.num_done:
            finish(request.folder)
        note(f"{bench.num_done} of {len(bench.prompts)} prompts are done; go on with --resume")
        raise
    finally:
        run.processes.close()
    return finish(whole) if request.share.world_size == 1 else finish_shared(whole, request.share)


def _write_report(record: Record, folder: Path) -> None:
    from slipstream.records.run_files import REPORT_FILE
    from slipstream.report.files import write_report

    write_report(record, folder / REPORT_FILE)


def _show(record: Record, *, as_json: bool) -> None:
    """The result on stdout: tables that end with what is best here, or JSON with that line on stderr."""
    from slipstream.cli.bench_show import show_record
    from slipstream.records.record import record_json
    from slipstream.report.summary import best_here

    if as_json:
        print(json.dumps(record_json(record)))
        note(best_here(record))
    else:
        show_record(record)


def _slug(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", Path(model).name if Path(model).is_absolute() else model).strip("-")


def _check_plots() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise InputError("the report needs matplotlib: pip install matplotlib, or leave it out with --no-report")


@contextmanager
def _progress(bench: BenchRun, num_entrants: int) -> Iterator[Watcher]:
    """Says how much there is to do, then shows a bar on stderr with the time left; lines where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    from slipstream.bench.runner import Plan, Progress, Watcher

    console = Console(stderr=True, highlight=False)
    total = bench.num_answers(num_entrants)
    num_left = bench.num_answers(num_entrants, left=True)
    every = max(1, len(bench.prompts) // _NOTES_A_RUN)
    note(_size(bench, num_entrants, total, num_left))
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        warm_up = bar.add_task("warming up", total=num_entrants)
        answers = bar.add_task("answers", total=total, completed=total - num_left, visible=False)

        class Shown(Watcher):
            def warming_up(self, entrant: str, number: int, num_entrants: int) -> None:
                line = f"warming up {entrant}"
                bar.update(warm_up, completed=number - 1, description=line)
                if not console.is_terminal:
                    note(f"{line} ({number} of {num_entrants})")

            def starting(self, plan: Plan) -> None:
                bar.update(warm_up, visible=False)
                bar.update(answers, visible=True)
                longest = "" if bench.num_done else f" if each has {bench.settings.max_new_tokens} tokens"
                note(f"{plan.num_answers:,} answers take about {duration(plan.left_s)}{longest}")

            def answered(self, entrant: str) -> None:
                bar.advance(answers)

            def finished(self, progress: Progress) -> None:
                line = f"{progress.prompt.kind}, {duration(progress.left_s)} left"
                bar.update(answers, description=line)
                if not console.is_terminal and progress.num_done % every == 0:
                    note(f"{progress.num_done} of {progress.num_prompts} prompts; {line}")

        yield Shown()


def _size(bench: BenchRun, num_entrants: int, total: int, num_left: int) -> str:
    """How many answers there will be, and of what; or how many are left."""
    if not num_left:
        return f"all {total:,} answers are there"
    settings = bench.settings
    of_what = f"{num_entrants} entrants, {len(bench.prompts)} prompts, T = "
    of_what += ", ".join(f"{one:g}" for one in settings.temperatures)
    of_what += f", {settings.samples} samples" if settings.samples > 1 else ""
    of_what += f", each timed {settings.repeats} times" if settings.repeats > 1 else ""
    count = f"{total:,} answers" if num_left == total else f"{num_left:,} of {total:,} answers are left"
    return f"{count} ({of_what})"


def duration(seconds: float) -> str:
    """As in "40 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _raise_on_fault(record: Record) -> None:
    ours = {one.name for one in record.run.entrants if one.kind == "ours"}
    faults = [one for one in record.faults if one.verdict == "fault" and one.entrant in ours]
    if faults:
        one = faults[0]
        raise LosslessnessError(
            f"{len(faults)} answers differ from plain decoding in float64 too; the first is {one.entrant} at "
            f"T={one.temperature:g} on {one.task} {one.prompt_id}, turn {one.turn + 1}, from generated "
            f"token {one.first_difference} on. This is a fault: please report it."
        )
