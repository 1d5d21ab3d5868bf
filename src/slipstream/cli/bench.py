"""`slipstream bench`: run a benchmark, show its tables, write its report, score its answers; show what passes cost."""

from __future__ import annotations

import typer

from slipstream.cli import bench_costs, bench_merge, bench_report, bench_run, bench_score, bench_show

app = typer.Typer(
    no_args_is_help=True, help="Measure methods on questions: run, show, report, score, merge; and what passes cost."
)
app.command("run")(bench_run.run)
app.command("show")(bench_show.show)
app.command("report")(bench_report.report)
app.command("score")(bench_score.score)
app.command("merge")(bench_merge.merge)
app.command("costs")(bench_costs.costs)
