from __future__ import annotations

import json

import pytest

import slipstream
from slipstream.cli import skip_search
from slipstream.skipping import library
from slipstream.skipping.skip_set import SkipSet

pytest.importorskip("optuna", reason="the search needs optuna")
SMALL = ("--num-prompts", 1, "-n", 4, "--trials", 3, "--rows", 8)


def test_search_finds_keeps_and_shows_a_set_that_generation_takes_by_name(cli, tmp_path):
    pytest.importorskip("matplotlib", reason="the pictures need matplotlib")
    out, study = tmp_path / "found.json", tmp_path / "a.study"
    searched = cli("skip", "search", "-m", "demo", "--task", "code", *SMALL, "--out", out, "--study", study, "--json")
    assert searched.exit_code == 0, searched.stderr
    record = json.loads(searched.stdout)
    found = SkipSet.load(out)
    assert json.loads(found.to_json()) == record
    assert record["provenance"]["trials"] == 3
    assert "best" in searched.stderr
    assert {path.name for path in tmp_path.glob("found.*")} == {"found.json", "found.search.svg", "found.layers.svg"}
    assert library.find("code", found.target) == found
    assert slipstream.load("demo", "layer-skip", skip_set="code").drafter.skip_set == found
    shown = cli("skip", "show", out).stdout
    assert "objective: modelled" in shown
    assert f"tau {record['provenance']['figures']['tau']}" in shown
    again = cli("skip", "search", "-m", "demo", "--task", "code", *SMALL, "--study", study, "--json")
    assert json.loads(again.stdout)["provenance"]["trials"] == 3, "a finished search tried more"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "cod"), "unknown task 'cod'"),
        (("--objective", "speed"), "unknown objective 'speed'"),
        (("--tree", "chain", "--width", 2), "--width says nothing about a chain draft"),
        (("--plot", "svg"), "give --out too"),
        (("--plot", "gif"), "unknown plot 'gif'"),
        (("--trials", 0), "trials is 0; it must be at least 1"),
        (("--prompts", "absent.jsonl"), "cannot read the prompts in 'absent.jsonl'"),
    ],
)
def test_what_cannot_be_searched_is_one_line_before_anything_is_loaded(cli, monkeypatch, arguments, message):
    monkeypatch.setattr(skip_search, "_load", lambda *_: pytest.fail("the target was loaded"))
    done = cli("skip", "search", "-m", "demo", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
