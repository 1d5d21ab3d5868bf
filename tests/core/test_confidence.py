"""The confidence of a drafter under known noise: its scale as a curve, its fit, its surprise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slipstream.core.confidence import ConfidenceScale, log_confidence, negative_log_likelihood
from slipstream.errors import InputError

positive = st.floats(0.01, 5)


@given(st.integers(0, 2**31), st.lists(positive, min_size=1, max_size=4))
def test_surprise_is_minus_the_log_confidence_of_the_choice(seed: int, scales: list[float]) -> None:
    generator = torch.Generator().manual_seed(seed)
    perturbed = torch.randn(3, 7, dtype=torch.float64, generator=generator) * 4
    choice = torch.randint(7, (3,), generator=generator)
    surprise = negative_log_likelihood(perturbed, choice, torch.tensor(scales, dtype=torch.float64))
    assert surprise.shape == (3, len(scales))
    for column, scale in enumerate(scales):
        expected = -log_confidence(perturbed, scale, perturbed.gather(1, choice[:, None]))[:, 0]
        torch.testing.assert_close(surprise[:, column], expected)


def test_a_record_survives_json_and_a_wrong_one_is_named() -> None:
    scale = ConfidenceScale(floor=0.3, slope=0.7, greedy=0.6)
    assert ConfidenceScale.of(scale.to_dict()) == scale
    assert ConfidenceScale.of(None) == ConfidenceScale()
    with pytest.raises(InputError, match="must hold the numbers floor, slope and greedy"):
        ConfidenceScale.of({"floor": 0.3, "slope": 0.7})
    for bad in (-1.0, math.nan, "wide"):
        with pytest.raises(InputError, match="slope is"):
            ConfidenceScale.of({"floor": 0.3, "slope": bad, "greedy": 1.0})
    with pytest.raises(InputError, match="both 0"):
        ConfidenceScale(floor=0, slope=0)
    with pytest.raises(InputError, match="greedy is 0"):
        ConfidenceScale(greedy=0)
