"""Following a training run on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from slipstream.cli.answering import note

if TYPE_CHECKING:
    from slipstream.training.recipe import Report
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
    """A bar on stderr with losses, accuracy and the time left; held-out accuracies stay as lines above it.

    shown: false in all processes but the main one, of whose batches the figures are.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False, quiet=not shown)
    columns = (BarColumn(), TextColumn("{task.percentage:.1f}%"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)

        def show(report: Report) -> None:
            line = describe(report)
            bar.update(task, completed=report.step / report.num_steps, description=line)
            if report.held_out:
                depths = " ".join(f"{one:.1%}" for one in report.held_out)
                line = f"{line}; held-out top-1 by depth: {depths}"
            elif console.is_terminal or (report.step % _PLAIN_EVERY and report.step < report.num_steps):
                return
            console.print(line, markup=False, soft_wrap=True)

        yield show


def describe(report: Report) -> str:
    """One line: step, losses, accuracy of the batch and time left."""
    accuracy = " ".join(f"{one:.1%}" for one in report.accuracy)
    parts = ", ".join(f"{name.removesuffix('_loss')} {loss:.4f}" for name, loss in report.parts.items())
    losses = f"loss {report.loss:.4f}" + (f" ({parts})" if parts else "")
    return f"step {report.step} {losses} top-1 {accuracy} {report.left_s / 60:.0f} min left"
