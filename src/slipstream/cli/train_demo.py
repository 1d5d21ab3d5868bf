"""`slipstream train target`, `demo` and `pack`: how the shipped demo models were made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli import options
from slipstream.cli.answering import note
from slipstream.cli.outputs import check_out_file, check_out_folder

if TYPE_CHECKING:
    from slipstream.drafting.recipe import Report as HeadReport
    from slipstream.search.search import Trial
    from slipstream.training.data.held_out import TaskBits
    from slipstream.training.demo import DemoSettings
    from slipstream.training.settings import TargetSettings
    from slipstream.training.target import Report

Data = Annotated[
    Path,
    typer.Option(
        "--data", metavar="DIR", exists=True, help="Folder of the mix's .jsonl files, or a file `train pack` wrote."
    ),
]
Hours = Annotated[float | None, typer.Option("--hours", min=0.0, help="End after this much training time.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="End after this many optimizer steps.")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the initial weights and of the order of the documents.")]
Compile = Annotated[
    bool, typer.Option("--compile/--no-compile", help="Compile the model; needs a C++ compiler on CPU.")
]


def target(
    data: Data,
    out: Annotated[
        Path,
        typer.Option(
            "--out", callback=check_out_folder, metavar="DIR", help="Checkpoints, log and the exported model."
        ),
    ],
    hours: Hours = None,
    steps: Steps = None,
    device: Device = "cpu",
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Continue the checkpoint in --out if there is one.")
    ] = True,
    compiled: Compile = True,
    verbose: options.Verbose = False,
) -> None:
    """Train the demo target and print its held-out bits per byte.

    --out gets checkpoint.pt, best.safetensors, log.json, and in `export/` the model for `-m`.

    Example: slipstream train target --data corpus/ --out runs/target --hours 1.5
    """
    from slipstream.training.settings import Budget
    from slipstream.training.target import TargetRun, export, measure

    budget = Budget(hours=hours, steps=steps)
    run = TargetRun(data, out, budget, _settings(seed), device=device, compiled=compiled)
    if resume and run.resume():
        note(f"resumed at step {run.step}")
    with _progress() as show:
        for report in run.steps():
            show(report)
    export(out, out / "export")
    _print_bits(measure(out / "export", run.corpus, device))


def demo(
    data: Data,
    work: Annotated[Path, typer.Option("--work", metavar="DIR", help="Checkpoints and the state of the steps.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", callback=check_out_folder, metavar="DIR", help="Where the models go, laid out as they ship."
        ),
    ],
    hours: Hours = None,
    steps: Steps = None,
    draft_steps: Annotated[
        int | None, typer.Option("--draft-steps", min=1, help="Optimizer steps of each drafter, instead of its own.")
    ] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    compiled: Compile = True,
    step: Annotated[str | None, typer.Option("--step", metavar="NAME", help="Only this step.")] = None,
    verbose: options.Verbose = False,
) -> None:
    """Rebuild the shipped demo models: the target, then its drafters. What is up to date is skipped.

    --hours or --steps is the target's budget.

    Example: slipstream train demo --data corpus/ --work runs/demo --out models/ --hours 1.5
    """
    from slipstream.training.demo import demo_pipeline
    from slipstream.training.settings import Budget

    settings = _demo_settings(seed)
    if draft_steps is not None:
        settings = settings.with_draft_steps(draft_steps)
    with _demo_progress() as show:
        pipeline = demo_pipeline(
            data,
            work,
            out,
            Budget(hours=hours, steps=steps),
            settings,
            device=device,
            compiled=compiled,
            progress=show,
        )
        for outcome in pipeline.run(step):
            print(f"{outcome.name}: {'skipped' if outcome.skipped else 'done'} ({outcome.reason})")


def _demo_settings(seed: int) -> DemoSettings:
    from slipstream.training.demo import DemoSettings

    return DemoSettings(target=_settings(seed))


@contextmanager
def _demo_progress() -> Iterator[Callable[[str, Report | HeadReport | Trial], None]]:
    """The progress of each step, one bar after the other; a search shows its best set now and then."""
    from slipstream.cli.training_progress import progress
    from slipstream.drafting.recipe import Report as HeadReport
    from slipstream.search.search import Trial

    with ExitStack() as shown:
        bars: dict[str, Callable[[Any], None]] = {}

        def show(step: str, report: Report | HeadReport | Trial) -> None:
            if isinstance(report, Trial):
                if report.number % 50 == 0:
                    note(f"{step}: {report.number} sets tried, best {report.best:.1f} tokens/s modelled")
                return
            if step not in bars:
                shown.close()
                note(f"step {step}")
                opened: Any = progress(shown=True) if isinstance(report, HeadReport) else _progress()
                bars[step] = shown.enter_context(opened)
            bars[step](report)

        yield show


def _settings(seed: int) -> TargetSettings:
    from slipstream.training.settings import TargetSettings

    return TargetSettings(seed=seed)


def pack(
    data: Data,
    out: Annotated[
        Path,
        typer.Option("--out", callback=check_out_file, metavar="FILE", help="The packed corpus, e.g. corpus.tar.xz."),
    ],
    work: Annotated[Path, typer.Option("--work", metavar="DIR", help="Where the corpus is encoded, or is already.")],
    sample: Annotated[float, typer.Option("--sample", help="Share of every source's training documents.")] = 1.0,
    limit_mib: Annotated[float, typer.Option("--limit-mib", help="Fail if the file would be larger.")] = 60.0,
    verbose: options.Verbose = False,
) -> None:
    """Encode the mix and pack it, with its tokenizer and weights, into one file for another machine.

    Example: slipstream train pack --data corpus/ --work runs/target --out corpus.tar.xz
    """
    from slipstream.training.data import encoded, transfer

    settings = _settings(0)
    encoded.prepare(data, work, settings.vocab_size, settings.context)
    size = transfer.pack(work, out, sample=sample, limit_mib=limit_mib)
    print(f"{out} {size / transfer.MIB:.1f} MiB")


@contextmanager
def _progress() -> Iterator[Callable[[Report], None]]:
    """A bar on stderr with the time left, step, loss and tokens/s; held-out losses stay as lines above it."""
    from rich.console import Console

    from slipstream.cli.training_progress import training_bar

    console = Console(stderr=True, highlight=False)
    with training_bar(console, "preparing the corpus") as update:

        def show(report: Report) -> None:
            left_s = report.elapsed_s * (1 - report.progress) / max(report.progress, 1e-6)
            line = f"step {report.step} loss {report.loss:.3f} {report.tokens_per_second:,.0f} tokens/s"
            update(report.progress, left_s, line)
            if report.held_out:
                losses = ", ".join(f"{name} {loss:.3f}" for name, loss in report.held_out.items())
                console.print(f"step {report.step}: held-out nats per token: {losses}", markup=False)

        yield show


def _print_bits(table: list[TaskBits]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(
        "task", "documents", "bytes", "target", "token trigram", "byte trigram", "xz -9", title="held-out bits per byte"
    )
    for row in table:
        figures = (f"{value:.3f}" for value in (row.target, row.token_trigram, row.byte_trigram, row.xz))
        shown.add_row(row.task, str(row.num_documents), f"{row.num_bytes:,}", *figures)
    Console().print(shown)
