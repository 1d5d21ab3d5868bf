"""`slipstream bench`: run a benchmark, show its tables, write its report, score its answers."""

from __future__ import annotations

import typer

from slipstream.cli import bench_run

app = typer.Typer(no_args_is_help=True, help="Measure methods on questions: run, show, report, score.")
app.command("run")(bench_run.run)
