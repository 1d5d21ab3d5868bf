from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from report.record_factory import ENTRANTS, make_record
from slipstream.cli import bench_report, bench_show
from slipstream.cli.app import ErrorLines

pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'slipstream-llm[plots]'")


@pytest.fixture
def bench(tmp_path):
    app = typer.Typer(cls=ErrorLines)
    app.command()(bench_show.show)
    app.command()(bench_report.report)
    nothing = {"rows": [], "positions": [], "calibration": [], "depths": []}
    record = make_record(temperatures=[0.0], entrants=ENTRANTS[:2], **nothing)
    (tmp_path / "record.json").write_text(json.dumps(record), encoding="utf-8")
    return lambda *arguments: CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "100"})


def test_report_writes_page_and_figures_and_prints_where(bench, tmp_path):
    done = bench("report", tmp_path / "record.json", "--figures", tmp_path / "figures")
    assert done.exit_code == 0
    assert done.stdout == f"{tmp_path / 'report.html'}\n"
    assert "<h1>Slipstream benchmark: demo</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {"verify-cost.svg", "verify-cost.png", "tree-eagle2.svg", "tree-eagle2.png"}
    assert "4 figures" in done.stderr


def test_report_writes_the_page_where_asked_and_no_figures_unasked(bench, tmp_path):
    done = bench("report", tmp_path, "--out", tmp_path / "sub" / "page.html")
    assert done.exit_code == 0
    assert (tmp_path / "sub" / "page.html").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"record.json", "sub"}
