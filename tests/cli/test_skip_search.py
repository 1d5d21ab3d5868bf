from __future__ import annotations

import json

import pytest

import slipstream
from search_doubles import small_search
from slipstream.cli import skip_search
from slipstream.search.objectives import PlainComparison
from slipstream.search.search import SkipSearch
from slipstream.skipping import library
from slipstream.skipping.skip_set import SkipSet

pytest.importorskip("optuna", reason="the search needs optuna")
SMALL = ("--num-prompts", 1, "-n", 4, "--trials", 3, "--rows", 8)


@pytest.fixture
def speed(monkeypatch):
    """How fast the best set is beside plain decoding, as far as the clock says."""
    beside = {"speedup": 1.25, "low": 1.1, "high": 1.4, "tau": 2.5, "num_drafted": 3.0, "bound": 1.5, "answers": 6}
    monkeypatch.setattr(SkipSearch, "against_plain", lambda self, skip_set: PlainComparison(**beside))
    return beside


@pytest.mark.usefixtures("speed")
def test_search_finds_keeps_and_shows_a_set_that_generation_takes_by_name(cli, tmp_path):
    pytest.importorskip("matplotlib", reason="the pictures need matplotlib")
    out, study = tmp_path / "found.json", tmp_path / "a.study"
    searched = cli("skip", "search", "-m", "tiny", "--task", "chat", *SMALL, "--out", out, "--study", study, "--json")
    assert searched.exit_code == 0, searched.stderr
    record = json.loads(searched.stdout)
    found = SkipSet.load(out)
    assert json.loads(found.to_json()) == record
    assert record["provenance"]["trials"] == 3
    assert "the best set decodes at 1.25 times plain decoding's speed (1.10 to 1.40 on 6 answers" in searched.stderr
    assert record["provenance"]["against_plain"]["bound"] == 1.5
    assert record["provenance"]["figures"]["speedup"] <= record["provenance"]["figures"]["bound"]
    assert {path.name for path in tmp_path.glob("found.*")} == {"found.json", "found.search.svg", "found.layers.svg"}
    assert library.find("chat", found.target) == found
    assert slipstream.load("tiny", "layer-skip", skip_set="chat").drafter.skip_set == found
    shown = cli("skip", "show", out).stdout
    assert "objective: modelled" in shown
    assert f"tau {record['provenance']['figures']['tau']}" in shown
    again = cli("skip", "search", "-m", "tiny", "--task", "chat", *SMALL, "--study", study, "--json")
    assert json.loads(again.stdout)["provenance"]["trials"] == 3, "a finished search tried more"


def test_a_set_that_is_slower_than_plain_decoding_is_said_to_be_so_and_not_kept(cli, tmp_path, speed):
    speed |= {"speedup": 0.6, "low": 0.5, "high": 0.7, "bound": 0.8}
    out = tmp_path / "found.json"
    searched = cli("skip", "search", "-m", "tiny", "--task", "chat", *SMALL, "--out", out, "--plot", "none")
    assert searched.exit_code == 0, searched.stderr
    said = " ".join(searched.stderr.split())
    assert "no set pays on this machine with this draft: the best of 3 decodes at 0.60 times plain decoding's" in said
    assert "its costs allow 0.80); not kept" in said
    found = SkipSet.load(out)
    assert found.provenance["against_plain"]["speedup"] == 0.6
    assert "chat" not in library.names(found.target)


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
    done = cli("skip", "search", "-m", "tiny", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_better_set_by_the_searchs_own_measure_has_the_name(tmp_path, capsys):
    """So a quick search does not take the place of a thorough one."""
    search = small_search(tmp_path / "a.study", 12)
    worst, *_, best = (trial.skip_set for trial in sorted(search.trials(), key=lambda trial: trial.value))
    assert skip_search._may_keep(search, worst, "chat"), "there is no other yet"
    assert capsys.readouterr().err == ""
    library.keep(worst, "chat")
    assert skip_search._may_keep(search, best, "chat")
    assert f"{search.value(best):.1f} tokens/s) takes the place of 'chat'" in capsys.readouterr().err
    library.keep(best, "chat")
    assert skip_search._may_keep(search, best, "chat")
    assert capsys.readouterr().err == "", "it is the same set"
    assert not skip_search._may_keep(search, worst, "chat")
    assert "not kept: the set 'chat'" in capsys.readouterr().err


def test_a_set_that_the_search_may_not_have_and_a_damaged_one_are_replaced_with_a_note(tmp_path, capsys):
    narrow = small_search(tmp_path / "a.study", 2, keep_first=2, max_skipped=2)
    best = [trial.skip_set for trial in narrow.trials()][-1]
    target = narrow.target.hash
    for attention, mlp in (((1,), ()), ((2, 3), (4,))):  # a layer that is kept; one too many
        library.keep(SkipSet(num_layers=6, attention=attention, mlp=mlp, target=target), "chat")
        assert skip_search._may_keep(narrow, best, "chat")
        assert "which skips what this search may not skip" in capsys.readouterr().err
    (library.found_folder(target) / "chat.json").write_text("{")
    assert skip_search._may_keep(narrow, best, "chat")
    assert "which is damaged" in capsys.readouterr().err
