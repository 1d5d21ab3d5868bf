from __future__ import annotations

import json

from slipstream.skipping.skip_set import SkipSet


def test_skip_show_draws_the_layers(cli, tmp_path):
    file = tmp_path / "set.json"
    SkipSet(num_layers=6, attention=(1, 3), mlp=(4,), provenance={"method": "by hand"}).save(file)
    shown = cli("skip", "show", file).stdout
    assert "attention #.#.##  2 skipped: 1, 3" in shown
    assert "mlp       ####.#  1 skipped: 4" in shown
    assert "method: by hand" in shown
    assert "method: how the set was found" in shown
    assert "objective" not in shown
    assert json.loads(cli("skip", "show", file, "--json").stdout)["attention"] == [1, 3]


def test_skip_show_explains_every_entry_of_the_sets_that_ship(cli):
    from slipstream.cli.skip_picture import _MEANINGS
    from slipstream.files.packaged import shipped

    for file in shipped("tiny", "skip_sets").glob("*.json"):
        entries = SkipSet.load(file).provenance.keys() - {"versions", "date"}
        assert entries <= _MEANINGS.keys()
        shown = cli("skip", "show", file).stdout
        assert [name for name in entries if f"{name}: {_MEANINGS[name][:20]}" not in shown] == []


def test_skip_show_refuses_what_is_no_skip_set(cli, tmp_path):
    (tmp_path / "set.json").write_text("{}", encoding="utf-8")
    done = cli("skip", "show", tmp_path / "set.json")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
