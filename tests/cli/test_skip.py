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
    assert json.loads(cli("skip", "show", file, "--json").stdout)["attention"] == [1, 3]


def test_skip_show_refuses_what_is_no_skip_set(cli, tmp_path):
    (tmp_path / "set.json").write_text("{}", encoding="utf-8")
    done = cli("skip", "show", tmp_path / "set.json")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
