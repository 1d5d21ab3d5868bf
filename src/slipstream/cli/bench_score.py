"""`slipstream bench score`: scores of a run's answers, plain beside every method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from slipstream.cli import options
from slipstream.cli.answering import note
from slipstream.errors import InputError

SHOWN = 10
"""Differing items that the table names for each row; --json has all."""


def score(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR|FILE", help="The run's question files, which carry references or tests."),
    ],
    run_code: Annotated[
        bool,
        typer.Option("--run-code", help="Run the code in answers, isolated; never done unasked, for a model wrote it."),
    ] = False,
    unconfined: Annotated[
        bool,
        typer.Option(
            "--unconfined", help="With --run-code: run it with your own rights, where this machine cannot isolate it."
        ),
    ] = False,
    scorer: Annotated[
        str | None,
        typer.Option(
            "--scorer", metavar="NAME", help="number, short, rouge or code; default: as the questions' fields tell."
        ),
    ] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Score the answers of a run: final numbers, short answers, summaries, and code by running tests.

    Plain decoding stands beside every method, and the items on which their scores differ are named; where a method's
    answers are plain's, none does. The scores are also written to RUN/scores.json.

    Example: slipstream bench score runs/demo --data questions/ --run-code
    """
    from slipstream.bench.quality.scoring import score_run

    if unconfined and not run_code:
        raise InputError("--unconfined is about code that runs; add --run-code or leave it out")
    if unconfined:
        note("code runs unconfined: it can read and change whatever you can")
    scores = score_run(run, data, scorer=scorer, run_code=run_code, confined=not unconfined, progress=_say_progress())
    for task, reason in scores["unscored"].items():
        note(f"not scored: {reason}" if reason.startswith(task) else f"not scored: {task}: {reason}")
    if as_json:
        print(json.dumps(scores))
    else:
        _show(scores)


def _say_progress() -> Any:
    """A note now and then, for code takes a fifth of a second an answer."""
    import time

    last = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 15:
            last = time.monotonic()
            note(f"{done} of {total} answers scored")

    return say


def _show(scores: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for task, about in scores["tasks"].items():
        rows = [row for row in scores["rows"] if row["task"] == task]
        metrics = list(dict.fromkeys(metric for row in rows for metric in row["scores"]))
        caption = f"{about['num_items']} items by {about['basis']}"
        if about["num_items_without"]:
            caption += f"; {about['num_items_without']} without"
        table = Table(title=task, caption=caption, title_justify="left", caption_justify="left")
        table.add_column("T", justify="right")
        table.add_column("entrant")
        for metric in metrics:
            table.add_column(metric, justify="right")
            table.add_column("plain", justify="right")
        table.add_column("differ", justify="right")
        table.add_column("which items")
        for row in rows:
            figures = [_figure(row[side], metric) for metric in metrics for side in ("scores", "plain_scores")]
            differ = "-" if row["num_differing"] is None else f"{row['num_differing']} of {row['num_items']}"
            table.add_row(f"{row['temperature']:g}", row["entrant"], *figures, differ, _named(row["differing"]))
        console.print(table)


def _figure(scores: dict[str, float] | None, metric: str) -> str:
    return "-" if scores is None or metric not in scores else f"{scores[metric]:.3f}"


def _named(items: list[dict[str, Any]]) -> str:
    """Question ids, with the turn where it is not the first."""
    names = [f"{item['prompt_id']}" + (f" (turn {item['turn'] + 1})" if item["turn"] else "") for item in items[:SHOWN]]
    return ", ".join(names) + (", ..." if len(items) > SHOWN else "")
