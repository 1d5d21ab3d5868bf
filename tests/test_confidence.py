"""The confidence of a drafter under known noise: its scale as a curve, its fit, its surprise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slipstream.confidence import ConfidenceScale, log_confidence, negative_log_likelihood
from slipstream.errors import InputError

positive = st.floats(0.01, 5)


@given(positive, positive, st.lists(st.floats(0.2, 3), min_size=2, max_size=6, unique=True))
def test_the_fit_returns_the_curve_that_its_points_lie_on(
    floor: float, slope: float, temperatures: list[float]
) -> None:
    curve = ConfidenceScale(floor=floor, slope=slope)
    found = ConfidenceScale.fit({t: curve.at(t) for t in temperatures})
    for temperature in temperatures:
        assert found.at(temperature) == pytest.approx(curve.at(temperature), rel=1e-3)


@given(st.dictionaries(st.floats(0.2, 3), positive, min_size=2, max_size=6), positive, positive)
def test_no_other_curve_is_nearer_to_the_points(best: dict[float, float], floor: float, slope: float) -> None:
    def error(scale: ConfidenceScale) -> float:
        return sum((scale.at(t) ** 2 / s**2 - 1) ** 2 for t, s in best.items())

    found = ConfidenceScale.fit(best)
    assert error(found) <= error(ConfidenceScale(floor=floor, slope=slope)) * (1 + 1e-6) + 1e-9


@given(st.integers(0, 2**31), st.lists(positive, min_size=1, max_size=4))
def test_surprise_is_minus_the_log_confidence_of_the_choice(seed: int, scales: list[float]) -> None:
    generator = torch.Generator().manual_seed(seed)
    perturbed = torch.randn(3, 7, dtype=torch.float64, generator=generator) * 4
    choice = torch.randint(7, (3,), generator=generator)
    surprise = negative_log_likelihood(perturbed, choice, torch.tensor(scales, dtype=torch.float64))
    assert surprise.shape == (3, len(scales))
    for column, scale in enumerate(scales):
        expected = -log_confidence(perturbed, scale).gather(1, choice[:, None])[:, 0]
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
    with pytest.raises(InputError, match="at least two temperatures"):
        ConfidenceScale.fit({0.0: 0.6, 1.0: 0.5})


def test_the_greedy_scale_is_the_one_found_at_temperature_0() -> None:
    found = ConfidenceScale.fit({0.0: 0.6, 0.5: 1.0, 1.0: 0.5})
    assert found.at(0.0) == found.greedy == 0.6
    assert found.at(0.5) == pytest.approx(ConfidenceScale.fit({0.5: 1.0, 1.0: 0.5}).at(0.5))
    assert ConfidenceScale.fit({0.5: 1.0, 1.0: 0.5}).greedy == 1.0
