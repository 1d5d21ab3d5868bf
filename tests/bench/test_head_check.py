"""`heads check` tells a head that fits from one that does not, and its figures are those of the answers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import slipstream
from slipstream.bench import head_check
from slipstream.bench.head_check import HeadCheck, OtherReading, check_head
from slipstream.errors import InputError


@pytest.fixture(scope="module")
def plain() -> slipstream.Model:
    return slipstream.load("tiny", "plain")


def test_a_head_that_ships_fits(plain):
    found = check_head(plain, None, max_new_tokens=24, seconds=1)
    assert found.method == "eagle2"
    assert len(found.ratios) == found.identical == 3
    assert found.acceptance[0] > 0.5
    assert found.fit.startswith("it fits")
    assert found.tau >= 1


def test_a_head_with_spoilt_weights_is_said_not_to_fit(plain, tmp_path):
    from slipstream.files.packaged import shipped
    from slipstream.methods.eagle.checkpoint import load_head, save_head

    head = load_head(shipped("tiny", "eagle"), plain.target)
    head.fc.weight.data = -head.fc.weight.data.flip(0)
    save_head(head, tmp_path, plain.target)
    found = check_head(plain, str(tmp_path), max_new_tokens=24, seconds=1)
    assert found.acceptance[0] < 0.1
    assert "does not fit" in found.fit
    assert found.identical == 3


def test_other_readings_of_an_eagle3_head_are_tried(plain, tmp_path):
    from methods.eagle3.test_eagle3 import random_head
    from slipstream.methods.eagle3.checkpoint import save_head

    save_head(random_head(plain.target, drafted=64), tmp_path, plain.target)
    lines: list[str] = []
    found = check_head(plain, str(tmp_path), max_new_tokens=6, seconds=1, report=lines.append)
    assert found.method == "eagle3"
    assert found.identical == len(found.ratios) >= 3
    assert {(one.options["layer_shift"], one.options["norm_feedback"]) for one in found.readings} == {
        *((shift, feedback) for shift in (-1, 1) for feedback in (False, True)),
        (0, True),
    }
    assert all(one.tau >= 1 for one in found.readings)
    assert found.chain_tau >= 1
    assert sum("read with -o layer_shift=" in line for line in lines) == 5
    assert "60 to 80 % of their first tokens" in found.fit


def test_a_better_reading_is_named():
    readings = (
        OtherReading({"layer_shift": 1, "norm_feedback": False}, 2.4),
        OtherReading({"layer_shift": -1, "norm_feedback": False}, 1.0),
    )
    check = HeadCheck(
        method="eagle3", acceptance=(0.2,), tau=1.2, ratios=(0.9, 0.8), identical=2, chain_tau=1.2, readings=readings
    )
    assert check.fit.startswith(
        "it is read wrongly: with -o layer_shift=1 -o norm_feedback=false it drafts 2.40 tokens"
    )
    assert check.to_dict()["readings"][0] == {"layer_shift": 1, "norm_feedback": False, "tau": 2.4}
    assert replace(check, chain_tau=2.35).better is None, "too near to tell"


def test_positions_count_the_chains_that_reached_them():
    steps = [(3, 0), (3, 1), (3, 3), (1, 1), (0, 0)]
    assert list(head_check._acceptance(steps, 4)) == [3 / 4, 1 / 2, 1.0, 0.0]


@pytest.mark.parametrize(
    ("ratios", "words"), [((1.2, 1.3, 1.25), "it pays"), ((0.7, 0.8, 0.75), "does not pay"), ((0.9, 1.2), "no clear")]
)
def test_whether_it_pays_needs_an_interval_on_one_side(ratios, words):
    check = HeadCheck(method="eagle2", acceptance=(0.7,), tau=2.0, ratios=ratios, identical=2)
    assert words in check.pay
    assert math.isclose(check.ratio, math.prod(ratios) ** (1 / len(ratios)))


def test_a_model_without_a_head_is_told_so(family_model):
    model = slipstream.load(family_model("llama"), "plain")
    with pytest.raises(InputError, match=r"no head ships for .*--draft"):
        check_head(model, None)
