"""A training run tells how much time is left, in a narrow terminal too."""

from __future__ import annotations

import re

import pytest

from slipstream.cli.training_progress import describe, left, progress
from slipstream.drafting.recipe import Report

REPORT = Report(
    step=40,
    num_steps=400,
    elapsed_s=60.0,
    learning_rate=1e-3,
    loss=12.3456,
    parts={f"head_{i}_loss": 2.5 for i in range(5)},
    accuracy=(0.25, 0.125, 0.1, 0.1, 0.05),
)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_bar_shows_the_time_left_however_narrow(columns, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    monkeypatch.setenv("COLUMNS", str(columns))
    with progress(shown=True) as show:
        show(REPORT)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "10.0%" in shown
    assert "9.0 min left step 40" in shown
    assert ("head_4 2.5000" in shown) == (columns == 200)


def test_without_a_terminal_lines_say_it(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with progress(shown=True) as show:
        show(REPORT)
    assert f"{describe(REPORT)} 9.0 min left\n" in capsys.readouterr().err


def test_only_the_main_process_speaks(capsys):
    with progress(shown=False) as show:
        show(REPORT)
    assert capsys.readouterr().err == ""


def test_short_times_are_told_to_a_tenth_of_a_minute():
    assert [left(seconds) for seconds in (6, 90, 600, 7260)] == [
        "0.1 min left",
        "1.5 min left",
        "10 min left",
        "121 min left",
    ]
