"""Calibration: the scale that it finds is the one that explains the target's choices best."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from families import prompt_ids
from slipstream.core.confidence import ConfidenceScale
from slipstream.core.rules import GreedyRule
from slipstream.drafting.shape import Dynamic
from slipstream.engine.calibration import SCALES, Calibration, _Recorder, calibrate, fit
from slipstream.errors import InputError
from slipstream.methods.layer_skip.drafter import LayerSkipDrafter
from slipstream.methods.plain import PlainDrafter
from slipstream.target.target import Target

PROMPTS = [prompt_ids(6, seed) for seed in range(4)]


@pytest.fixture
def target(family_model: Callable[[str], PreTrainedModel]) -> Target:
    return Target(family_model("llama"))


def chain_drafter(target: Target, attention: list[int], mlp: list[int]) -> LayerSkipDrafter:
    return LayerSkipDrafter(target, {"attention": attention, "mlp": mlp}, shape=Dynamic(width=1, depth=3, total=3))


def calibrated(target: Target, drafter: LayerSkipDrafter) -> Calibration:
    return calibrate(target, drafter, PROMPTS, max_new_tokens=12, temperatures=(0.0, 0.7, 1.4))


def test_a_worse_drafter_gets_a_larger_scale(target: Target) -> None:
    near = calibrated(target, chain_drafter(target, [], [1]))
    far = calibrated(target, chain_drafter(target, [0, 1], [0, 1]))
    assert near.num_choices > 50
    assert all(near.best[t] < far.best[t] for t in near.best)


def test_surprise_under_the_best_scale_is_no_larger_than_under_the_default(target: Target) -> None:
    found = calibrated(target, chain_drafter(target, [0, 1], [0, 1]))
    sampled = [pair for temperature, pair in found.surprise.items() if temperature > 0]
    assert sum(fitted for fitted, _ in sampled) <= sum(default for _, default in sampled)
    assert found.surprise[0.0][0] <= found.surprise[0.0][1]
    assert all(SCALES[0] <= scale <= SCALES[-1] for scale in found.best.values())


def test_pairs_are_the_choice_after_each_node_with_the_draft_at_it(target: Target) -> None:
    """A drafter that is the target up to rounding finds its own token chosen at every depth."""
    skip_nothing_of_weight = chain_drafter(target, [], [1])
    with torch.no_grad():
        layer = target.model.model.layers[1].mlp.down_proj.weight
        kept = layer.clone()
        try:
            layer.zero_()  # skipping it changes nothing: q is p, and the smallest scale is the best
            found = calibrated(target, skip_nothing_of_weight)
        finally:
            layer.copy_(kept)
    assert found.best == dict.fromkeys((0.0, 0.7, 1.4), float(SCALES[0]))


def parabolas(best: dict[float, float]) -> dict[float, torch.Tensor]:
    """Nats by temperature, least at given scales."""
    return {t: (SCALES.log() - math.log(s)) ** 2 for t, s in best.items()}


@given(st.floats(0.05, 3), st.floats(0.05, 3), st.floats(0.1, 5))
def test_the_fit_finds_the_curve_that_its_minima_lie_on(floor: float, slope: float, greedy: float) -> None:
    curve = ConfidenceScale(floor=floor, slope=slope, greedy=greedy)
    found = fit(parabolas({t: curve.at(t) for t in (0.0, 0.5, 1.0, 2.0)}))
    for temperature in (0.0, 0.5, 1.0, 2.0):
        assert found.at(temperature) == pytest.approx(curve.at(temperature), rel=0.12)  # a step of the grid is 10 %


def test_one_odd_temperature_does_not_decide_and_nothing_is_worse_than_the_default() -> None:
    steep = {0.5: 4.64, 0.75: 0.0316, 1.0: 1.47, 1.5: 1.33}
    assert fit(parabolas(steep)).at(1.0) > 0.5
    flat = {t: torch.zeros(len(SCALES), dtype=torch.float64) for t in (0.0, 0.5, 1.0)}
    assert fit(flat) == ConfidenceScale()


def test_a_drafter_that_never_drafts_cannot_be_calibrated(target: Target) -> None:
    with pytest.raises(InputError, match="nothing was drafted on 4 prompts"):
        calibrate(target, PlainDrafter(), PROMPTS, max_new_tokens=4)


def test_choices_outside_of_a_draft_vocabulary_are_left_out() -> None:
    recorder, ids = _Recorder(GreedyRule()), torch.tensor([3, 9, 5])
    logits = torch.tensor([[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]], [[7.0, 8.0, 9.0]]])
    for depth, one in enumerate(logits, start=1):
        assert recorder.children(one, depth, 1, ids).tokens.tolist() == [[2]], "columns, as ever"
    scores, columns = recorder.pairs(torch.tensor([5, 7, 9, 3]))
    assert scores.tolist() == [[1.0, 2.0, 3.0], [7.0, 8.0, 9.0]]
    assert columns.tolist() == [2, 1]


def test_a_tree_is_refused(target: Target) -> None:
    drafter = LayerSkipDrafter(target, {"attention": [1], "mlp": []}, shape=Dynamic(width=2, depth=2, total=4))
    with pytest.raises(InputError, match="calibration wants chains"):
        calibrate(target, drafter, PROMPTS, max_new_tokens=4)
