"""The statistics: as scipy has them, with the false alarms and the power that a certificate states."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from slipstream.certify.chi_square import holm, p_value, smallest_bias, survival

RNG = np.random.default_rng(5)
LAW = np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.04, 0.03, 0.02, 0.01])
NUM_SAMPLES = 500


def p_values(law, num_tests=2000):
    """Of samples that follow `law`, tested against LAW."""
    expected = (NUM_SAMPLES * LAW).tolist()
    return np.array([p_value(row.tolist(), expected) for row in RNG.multinomial(NUM_SAMPLES, law, size=num_tests)])


def test_it_is_the_chi_square_test():
    observed = RNG.multinomial(NUM_SAMPLES, LAW).tolist()
    assert p_value(observed, (NUM_SAMPLES * LAW).tolist()) == pytest.approx(
        stats.chisquare(observed, NUM_SAMPLES * LAW).pvalue
    )


@pytest.mark.parametrize("freedom", [1, 7, 300])
@pytest.mark.parametrize("statistic", [0.0, 0.3, 9.0, 400.0])
def test_survival_is_scipys(freedom, statistic):
    assert survival(statistic, freedom) == pytest.approx(stats.chi2.sf(statistic, freedom), rel=1e-6, abs=1e-300)


def test_p_values_of_sound_samples_are_uniform():
    """So a threshold of alpha is a false alarm with probability alpha."""
    found = p_values(LAW)
    assert stats.kstest(found, "uniform").pvalue > 1e-3
    assert 0.004 < (found < 0.01).mean() < 0.02


def test_the_stated_bias_is_found_nine_times_in_ten():
    alpha = 1e-3
    bias = smallest_bias(NUM_SAMPLES, len(LAW), alpha)
    # The hardest bias of its size: every cell's probability changes by one share, half up, half down.
    signs = np.array([1, -1, -1, 1, -1, 1, -1, -1, 1, -1])  # the cells that gain hold 0.3 + 0.1 + 0.05 + 0.02
    gain = LAW[signs > 0].sum()
    law = LAW * np.where(signs > 0, 1 + bias / gain, 1 - bias / (1 - gain))
    assert np.abs(law - LAW).sum() / 2 == pytest.approx(bias)
    assert 0.85 < (p_values(law) < alpha).mean() < 0.96


def test_more_samples_find_less():
    assert smallest_bias(4000, 30, 1e-3) == pytest.approx(smallest_bias(1000, 30, 1e-3) / 2)
    assert smallest_bias(1000, 30, 1e-3) < smallest_bias(1000, 60, 1e-3) < smallest_bias(1000, 60, 1e-5)
    assert smallest_bias(1000, 1, 1e-3) == 1.0


def test_the_smallest_bias_is_that_of_the_noncentral_distribution():
    critical = stats.chi2.isf(1e-3, 29)
    shift = 1000 * (2 * smallest_bias(1000, 30, 1e-3)) ** 2
    assert stats.ncx2.sf(critical, 29, shift) == pytest.approx(0.9, abs=1e-6)


def test_a_count_where_none_may_be_is_impossible():
    assert p_value([3, 1], [4.0, 0.0]) == 0.0
    assert p_value([4, 0], [4.0, 0.0]) == 1.0


def test_holm_keeps_the_order_and_corrects_for_the_number():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
