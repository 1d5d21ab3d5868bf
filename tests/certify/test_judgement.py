"""The decision rule, case by case."""

from __future__ import annotations

import pytest

from slipstream.certify.identity import Against, Comparison, Divergence
from slipstream.certify.judgement import TOLERANCE, judge, worst
from slipstream.certify.recording import RecordedAnswer
from slipstream.records.certificate import Floor

ANSWER = RecordedAnswer((1, 2, 3), "length", ())
YARDSTICK = 0.1
ZERO, SOME = Floor(0.0, 0.0, 3), Floor(0.02, 0.01, 3)


def differing(margin=1e-9, logit_distance=0.05):
    return Against(Divergence(1, 2, 9, margin, margin), 2, logit_distance)


def comparison(same=None, row=None, transformers=None, floor=ZERO, states=0):
    return Comparison(
        answer=ANSWER,
        same_shape=same or Against(),
        row_by_row=row or Against(),
        transformers=transformers,
        floor=floor,
        num_states_differing=states,
        state_distance=1e-30 if states else 0.0,
    )


def never():
    raise AssertionError("float64 was asked for without need")


def rulings(found, in_float64=never):
    return {name: judged.ruling for name, judged in judge(found, YARDSTICK, in_float64).items()}


def test_equal_answers_are_identical():
    found = comparison(transformers=Against())
    assert rulings(found) == {"same shape": "identical", "row by row": "identical", "transformers": "identical"}


@pytest.mark.parametrize("in_float64", [never, lambda: comparison(), lambda: None])
def test_over_a_zero_floor_another_token_is_a_fault_whatever_the_margin_and_float64(in_float64):
    assert rulings(comparison(same=differing(margin=1e-12)), in_float64)["same shape"] == "fault"


def test_over_a_zero_floor_one_bit_of_a_state_is_a_fault():
    assert rulings(comparison(states=1))["same shape"] == "fault"


def test_over_a_floor_states_may_differ():
    assert rulings(comparison(states=3, floor=SOME))["same shape"] == "identical"


def test_a_floor_of_hidden_states_alone_is_not_zero():
    assert rulings(comparison(states=1, floor=Floor(0.0, 1e-6, 3)))["same shape"] == "identical"


@pytest.mark.parametrize(("exact", "ruling"), [(comparison(), "rounding"), (comparison(row=differing()), "fault")])
@pytest.mark.parametrize("margin", [0.001, 5.0])
def test_over_a_floor_float64_decides(exact, ruling, margin):
    assert rulings(comparison(same=differing(margin), floor=SOME), lambda: exact)["same shape"] == ruling


@pytest.mark.parametrize(("margin", "ruling"), [(0.039, "rounding"), (0.041, "fault"), (float("inf"), "fault")])
def test_over_a_floor_without_float64_the_shortfall_decides(margin, ruling):
    assert rulings(comparison(same=differing(margin), floor=SOME), lambda: None)["same shape"] == ruling


@pytest.mark.parametrize("name", ["row by row", "transformers"])
def test_another_shape_may_round_otherwise(name):
    found = comparison(row=differing(), transformers=differing())
    assert rulings(found)[name] == "rounding"


@pytest.mark.parametrize(
    ("against", "ruling"),
    [(differing(1e-12, 0.5), "rounding"), (Against(None, 3, 0.5), "identical")],
    ids=["tokens", "logits alone"],
)
def test_logits_farther_than_rounding_are_put_to_float64(against, ruling):
    assert against.logit_distance > TOLERANCE * YARDSTICK
    found = comparison(row=against)
    assert rulings(found, lambda: comparison())["row by row"] == ruling
    assert rulings(found, lambda: comparison(transformers=differing()))["row by row"] == "fault"
    assert rulings(found, lambda: None)["row by row"] == "undecided"


def test_after_a_difference_in_the_same_shape_others_cannot_be_measured():
    found = comparison(same=differing(0.001), row=differing(0.001), floor=SOME)
    assert rulings(found, lambda: None) == {"same shape": "rounding", "row by row": "undecided"}


def test_the_worst_ruling_counts():
    assert worst(["identical", "rounding", "identical"]) == "rounding"
    assert worst(["undecided", "rounding"]) == "undecided"
    assert worst(["fault", "undecided"]) == "fault"
    assert worst([]) == "identical"
