from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from report.record_factory import make_record
from slipstream.cli import bench_report, bench_show
from slipstream.cli.app import ErrorLines


@pytest.fixture
def bench(tmp_path):
    """`bench show` and `bench report` over a made-up run's folder, at a given width of the terminal."""
    app = typer.Typer(cls=ErrorLines)
    app.command()(bench_show.show)
    app.command()(bench_report.report)
    (tmp_path / "record.json").write_text(json.dumps(make_record()), encoding="utf-8")

    def invoke(command, *arguments, width=100):
        words = [command, str(tmp_path), *map(str, arguments)]
        return CliRunner().invoke(app, words, env={"COLUMNS": str(width), "NO_COLOR": "1"})

    invoke.folder = tmp_path
    return invoke


def test_show_prints_the_paper_s_layout_and_what_came_out(bench):
    done = bench("show")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert "Speed-up and tau by task, T = 0" in lines
    assert "Speed-up and tau by task, T = 1" in lines
    eagle2 = next(line for line in lines if line.split()[:1] == ["eagle2"])
    assert eagle2.split()[1:] == ["1.50x", "2.00", "1.65x", "2.20", "1.58x", "2.10", "180.0"]
    peer = next(line for line in lines if line.split()[:1] == ["hf-plain"])
    assert peer.split()[1:] == ["0.50x", "-", "0.55x", "-", "0.53x", "-", "60.0"]
    assert "eagle2 is the fastest" in done.stdout


def test_a_narrow_terminal_gets_the_table_in_parts_that_each_name_the_rows(bench):
    done = bench("show", "-t", "0", width=42)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 42
    found = [line.split() for line in lines if line.split()[:1] == ["eagle2-60"]]
    assert found == [["eagle2-60", "0.75x", "4.00", "0.83x", "4.40"], ["eagle2-60", "0.79x", "4.20", "90.0"]]
    assert "…" not in done.stdout


def test_show_in_spec_bench_s_layout_is_sorted(bench):
    done = bench("show", "--layout", "spec-bench", "-t", "1")
    names = [line.split()[0] for line in done.stdout.splitlines() if line.count("x") > 2]
    assert names[:3] == ["eagle2", "prompt-lookup", "plain"]
    assert "# mean accepted tokens" in done.stdout


def test_show_details_and_json(bench):
    assert "Where the time of a cycle goes" in bench("show", "--layout", "details").stdout
    found = json.loads(bench("show", "--layout", "details", "-t", "1", "--json").stdout)
    assert [table["table"] for table in found["tables"]] == ["speed", "cycle", "evidence"]
    assert found["tables"][0]["rows"][1]["method"] == "eagle2"
    assert found["tables"][0]["rows"][1]["efficiency"] == pytest.approx(0.75)
    assert found["tables"][0]["rows"][1]["ratio_to_plain_spread"]["q1"] == pytest.approx(1.62)
    assert found["tables"][2]["rows"][1]["verdicts"]["identical"] == 40


def test_show_prints_markdown(bench):
    shown = bench("show", "-t", "0", "--markdown").stdout
    assert "| method | MT-bench | GSM8K | mean | tokens/s |" in shown
    assert "(speed / tau)" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layout", "eagel"], "Did you mean 'eagle'?"),
        (["-t", "0.5"], "temperature 0.5 was not run; the record has 0, 1"),
        (["--json", "--markdown"], "exclude each other"),
    ],
)
def test_show_refuses_in_one_line(bench, arguments, said):
    done = bench("show", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_damaged_record_is_one_line(bench):
    (bench.folder / "record.json").write_text("{}", encoding="utf-8")
    for command in ("show", "report"):
        done = bench(command)
        assert done.exit_code == 2
        assert "no benchmark record of format 1" in done.stderr
