from __future__ import annotations

import pytest

from slipstream.bench.settings import BenchSettings, EntrantSpec
from slipstream.errors import InputError

PLAIN = EntrantSpec(name="plain", kind="ours", method="plain")


def test_an_entrant_is_a_method_with_options_under_a_name() -> None:
    spec = EntrantSpec.parse("big=eagle2:width=10,total=60,calibrated=false,draft=some/head")
    assert (spec.name, spec.kind, spec.method) == ("big", "ours", "eagle2")
    assert spec.options == {"width": 10, "total": 60, "calibrated": False, "draft": "some/head"}


def test_an_entrant_is_called_as_its_method_by_default() -> None:
    assert EntrantSpec.parse("lookahead").name == "lookahead"
    assert EntrantSpec.parse("lookahead:window=3").name == "lookahead"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("eagle2:10x6x60", {"width": 10, "depth": 6, "total": 60}),
        ("eagle2:auto:10x6x60,draft=some/head", {"width": 10, "depth": 6, "total": "auto:60", "draft": "some/head"}),
        ("layer-skip:chain:8,threshold=0.3", {"tree": "chain", "length": 8, "threshold": 0.3}),
        ("medusa:static", {"tree": "mc_sim_7b_63"}),
    ],
)
def test_a_shape_stands_for_the_options_that_ask_for_it(text: str, options: dict[str, object]) -> None:
    assert EntrantSpec.parse(text).options == options


def test_a_peer_is_told_from_a_method() -> None:
    assert EntrantSpec.parse("hf-plain", ["hf-plain"]).kind == "peer"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("eagel2", "Did you mean 'eagle2'"),
        ("=eagle2", "NAME=]METHOD"),
        ("a=", "NAME=]METHOD"),
        ("eagle2:width", "OPTION=VALUE"),
        ("eagle2:size=3", "no option 'size'"),
        ("plain:width=3", "no option 'width'"),
    ],
)
def test_what_is_no_entrant_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says.replace("]", r"\]").replace("[", r"\[")):
        EntrantSpec.parse(text)


def settings(**changes: object) -> BenchSettings:
    given = {"entrants": (PLAIN,), "tasks": ("qa",), "data": "qa.jsonl", "questions_hash": "0", **changes}
    return BenchSettings(**given)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"repeats": 0}, "repeats is 0"),
        ({"prompts_per_task": 0}, "prompts_per_task is 0"),
        ({"temperatures": ()}, "give one or more"),
        ({"temperatures": (-1.0,)}, "none below 0"),
        ({"temperatures": (1.0, 1.0)}, "each may be given once"),
        ({"entrants": (PLAIN, PLAIN)}, "'plain' is entered twice"),
        ({"entrants": (EntrantSpec(name="eagle2", kind="ours", method="eagle2"),)}, "plain decoding must be the first"),
        ({"judge": "float32"}, "unknown judge"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        settings(**changes)


def test_settings_come_back_from_json_as_they_went() -> None:
    import json

    said = settings(temperatures=(0.0, 0.7)).to_dict()
    assert json.loads(json.dumps(said)) == said
    assert said["temperatures"] == [0.0, 0.7]
