"""Following a training run on stderr."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli.answering import note
from slipstream.errors import SlipstreamError

if TYPE_CHECKING:
    from rich.console import Console

    from slipstream.drafting.recipe import Report
    from slipstream.training.payoff import PayoffEstimate
    from slipstream.training.run import HeadRun


_PLAIN_EVERY = 10  # steps between lines where there is no bar


Minutes = Annotated[
    float | None,
    typer.Option("--minutes", min=0.0, help="End this part of the run after so long; the same command goes on."),
]
Nice = Annotated[int, typer.Option("--nice", min=0, max=19, help="Run at a lower priority, 19 being the lowest.")]


def lower_priority(nice: int) -> None:
    """Let other work on this machine go first."""
    if nice:
        os.nice(nice)


def follow(run: HeadRun, *, minutes: float | None = None, payoff: PayoffEstimate | None = None) -> None:
    """Continue the run in its folder, if there is one, and train to the end, or for so many minutes.

    payoff: says at every measurement whether the head would pay.
    """
    began = time.monotonic()
    main = run.accelerator.is_main_process
    if main:
        dialogues = [*run.dialogues, *run.held_out]
        note(f"{len(dialogues)} dialogues of {sum(len(one.token_ids) for one in dialogues):,} tokens")
    if run.resume() and main:
        note(f"resumed at step {run.step}")
    with progress(shown=main, payoff=payoff if main else None) as show, stopping_at_signals(run):
        for report in run.steps():
            show(report)
            if minutes is not None and time.monotonic() - began >= 60 * minutes:
                run.stop()


@contextmanager
def stopping_at_signals(run: HeadRun) -> Iterator[None]:
    """On Ctrl-C or a request to terminate (SIGTERM) the run ends after its step and saves; a second one ends it there.

    Leaves as the signal would have: by KeyboardInterrupt, or with exit code 143.
    """
    got: list[int] = []

    def stop(number: int, frame: object) -> None:
        got.append(number)
        run.stop()
        os.write(2, b"ending after this step\n")  # print is not safe in a handler that may interrupt one
        for one in signals:
            signal.signal(one, before[one])

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {one: signal.signal(one, stop) for one in signals}
    try:
        yield
    finally:
        for one in signals:
            signal.signal(one, before[one])
    if got and run.step < run.num_steps:
        if run.accelerator.is_main_process:
            note(_how_to_go_on(run))
        if got[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise typer.Exit(128 + got[0])


def _how_to_go_on(run: HeadRun) -> str:
    return f"saved at step {run.step} of {run.num_steps} in {run.out}; the same command goes on from there"


def finish(run: HeadRun, model: str, method: str, *, depth: int = 5, minutes: float | None = None) -> None:
    """Follow the run, calibrate what it made, and say how to use it.

    model: the target as the user named it. depth: of the chains that calibration drafts. minutes: end before that after
    so long.
    """
    from slipstream.training.payoff import PayoffEstimate

    follow(run, minutes=minutes, payoff=PayoffEstimate(method, run.target, run.out, depth))
    if not run.accelerator.is_main_process:
        return
    if run.step < run.num_steps:
        note(_how_to_go_on(run))
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
def progress(*, shown: bool, payoff: PayoffEstimate | None = None) -> Iterator[Callable[[Report], None]]:
    """A bar on stderr with the time left, losses and accuracy; held-out accuracies stay as lines above it.

    shown: false in all processes but the main one. payoff: for a line below those.
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
                if report.tau:
                    estimates = ", ".join(f"{draft} {tau:.2f}" for draft, tau in report.tau.items())
                    line = f"{line}; estimated tau: {estimates}"
            elif console.is_terminal or (report.step % _PLAIN_EVERY and report.step < report.num_steps):
                return
            console.print(line, markup=False, soft_wrap=True)
            if report.held_out and payoff is not None:
                console.print(_pays(payoff, report), markup=False, soft_wrap=True)

        yield show


def _pays(payoff: PayoffEstimate, report: Report) -> str:
    """Whether the head would pay; a head that cannot be tried is no reason to end its training."""
    try:
        return str(payoff.of(report))
    except SlipstreamError as error:
        return f"whether it would pay is not known: {error}"


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
    speed = f" {report.tokens_per_s:,.0f} tokens/s" if report.tokens_per_s else ""
    return f"step {report.step} {losses} top-1 {accuracy}{speed}"


def left(seconds: float) -> str:
    """The time left in words."""
    minutes = seconds / 60
    return f"{minutes:.0f} min left" if minutes >= 10 else f"{minutes:.1f} min left"
