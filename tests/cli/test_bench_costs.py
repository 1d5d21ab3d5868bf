"""`bench costs`: measured once and read from then on; as a table, as JSON and as a picture."""

from __future__ import annotations

import json

import pytest

from slipstream.runtime.costs import ROWS


def test_costs_are_measured_then_read_then_measured_again_when_asked(cli):
    measured = cli("bench", "costs", "-m", "tiny", "-d", "eagle2", "--json")
    assert measured.exit_code == 0, measured.stderr
    found = json.loads(measured.stdout)
    assert found["measured_s"] > 0
    assert {one["rows"] for one in found["passes"]} == set(ROWS)
    assert len({one["context"] for one in found["passes"]}) in (1, 2)
    assert [one["width"] for one in found["levels"]] == [1, 2, 4, 8]
    assert all(one["seconds"] > 0 for one in found["passes"])
    assert found["machine"]["dtype"] == "float32"


@pytest.fixture
def quiet(monkeypatch):
    """Whatever else runs, what is measured is kept."""
    monkeypatch.setattr("slipstream.runtime.kept_costs._UNQUIET", float("inf"))


@pytest.mark.usefixtures("quiet")
def test_the_table_says_whether_it_was_read(cli):
    first, second, fresh = (cli("bench", "costs", "-m", "tiny", *more) for more in ((), (), ("--fresh",)))
    assert "measured in" in first.stdout
    assert "read from" in second.stdout
    assert "measured in" in fresh.stdout
    assert "ms after 64 tokens" in second.stdout
    assert "width" not in second.stdout, "plain decoding drafts nothing"
    assert first.stdout.splitlines()[:8] == second.stdout.splitlines()[:8]


@pytest.mark.parametrize("drafter", ["plain", "layer-skip"])
def test_a_picture_is_written(cli, tmp_path, drafter):
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    file = tmp_path / "costs.svg"
    done = cli("bench", "costs", "-m", "tiny", "-d", drafter, "--plot", file)
    assert done.exit_code == 0, done.stderr
    assert file.name in done.stderr
    drawn = file.read_text()
    assert "rows of a target pass" in drawn
    assert ("width of a draft level" in drawn) == (drafter != "plain")


@pytest.mark.parametrize(
    ("plot", "message"),
    [("costs.gif", "give a file that ends in .png, .svg or .pdf"), ("absent/costs.png", "there is no folder absent")],
)
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_loaded(cli, loader, plot, message):
    done = cli("bench", "costs", "-m", "tiny", "--plot", plot)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not loader.models
