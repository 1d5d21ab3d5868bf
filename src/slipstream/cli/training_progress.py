"""Following a training run on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from slipstream.cli.answering import note

if TYPE_CHECKING:
    from rich.console import Console

    from slipstream.drafting.recipe import Report
    from slipstream.training.run import HeadRun


_PLAIN_EVERY = 10  # steps between lines where there is no bar


def follow(run: HeadRun) -> None:
    """Continue the run in its folder, if there is one, and train to the end under a progress bar."""
    main = run.accelerator.is_main_process
    if main:
        dialogues = [*run.dialogues, *run.held_out]
        note(f"{len(dialogues)} dialogues of {sum(len(one.token_ids) for one in dialogues):,} tokens")
    if run.resume() and main:
        note(f"resumed at step {run.step}")
    with progress(shown=main) as show:
        for report in run.steps():
            show(report)


def finish(run: HeadRun, model: str, method: str, *, depth: int = 5) -> None:
    """Follow the run, calibrate what it made, and say how to use it.

    model: the target as the user named it. depth: of the chains that calibration drafts.
    """
    follow(run)
    if not run.accelerator.is_main_process:
        return
    if any(not one.answer[0] for one in run.held_out):
        _calibrate(run, method, depth)
    else:
        note("not calibrated: no dialogue was held out that begins with a prompt")
    print(f"{run.out}: use it with `slipstream generate -m {model} -d {method} --draft {run.out}`")


def _calibrate(run: HeadRun, method: str, depth: int) -> None:
    from slipstream.training.calibration import calibrate_artefact

    note("calibrating the confidence of drafts")
    found = calibrate_artefact(method, run.target, run.out, run.held_out, depth=depth)
    for temperature in (0.0, 1.0):
        fitted, default = found.surprise[temperature]
        note(f"surprise at temperature {temperature:g}: {fitted:.3f} nats a choice, {default:.3f} uncalibrated")


@contextmanager
def progress(*, shown: bool) -> Iterator[Callable[[Report], None]]:
    """A bar on stderr with the time left, losses and accuracy; held-out accuracies stay as lines above it.

    shown: false in all processes but the main one, of whose batches the figures are.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False, quiet=not shown)
    with training_bar(console, "starting", disable=not console.is_terminal) as update:

        def show(report: Report) -> None:
            update(report.step / report.num_steps, report.left_s, describe(report))
            line = f"{describe(report)} {left(report.left_s)}"
            if report.held_out:
                depths = " ".join(f"{one:.1%}" for one in report.held_out)
                line = f"{line}; held-out top-1 by depth: {depths}"
            elif console.is_terminal or (report.step % _PLAIN_EVERY and report.step < report.num_steps):
                return
            console.print(line, markup=False, soft_wrap=True)

        yield show


@contextmanager
def training_bar(
    console: Console, began: str, *, disable: bool = False
) -> Iterator[Callable[[float, float, str], None]]:
    """A bar to be updated with (share done, seconds left, how it goes). A narrow terminal cuts off the last alone."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    columns = (
        BarColumn(bar_width=12),
        TextColumn("{task.percentage:.1f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, disable=disable, expand=True) as bar:
        task = bar.add_task(began, total=1.0, left="")

        def update(done: float, left_s: float, line: str) -> None:
            bar.update(task, completed=done, left=left(left_s), description=line)

        yield update


def describe(report: Report) -> str:
    """One line: step, losses and accuracy of the batch."""
    accuracy = " ".join(f"{one:.1%}" for one in report.accuracy)
    parts = ", ".join(f"{name.removesuffix('_loss')} {loss:.4f}" for name, loss in report.parts.items())
    losses = f"loss {report.loss:.4f}" + (f" ({parts})" if parts else "")
    return f"step {report.step} {losses} top-1 {accuracy}"


def left(seconds: float) -> str:
    """The time left in words."""
    minutes = seconds / 60
    return f"{minutes:.0f} min left" if minutes >= 10 else f"{minutes:.1f} min left"
