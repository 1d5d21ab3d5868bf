from __future__ import annotations

import json

from slipstream.methods.registry import METHODS


def test_methods_lists_the_whole_registry(cli):
    done = cli("methods")
    assert done.exit_code == 0
    for name in METHODS:
        assert name in done.stdout


def test_methods_json_says_what_each_is_and_needs(cli):
    records = json.loads(cli("methods", "--json").stdout)
    assert [record["name"] for record in records] == list(METHODS)
    assert all(record["summary"] and record["needs"] and record["paper"] for record in records)
