from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import oracle
from slipstream.core.sampling import GumbelNoise, SamplingSettings, gumbel_from_bits, gumbel_rows, philox
from slipstream.core.verify import choose_coupled
from slipstream.errors import InputError

NUM_SEEDS = 120_000
LEAST_P = 1e-3  # seeds are fixed, so a p-value below this is a fault, not bad luck
P = (0.35, 0.05, 0.25, 0.3, 0.05)
SEED, STREAM = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert tuple(int(word) for word in philox(counter, key)) == expected


def python_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 on Python's own integers, which neither wrap nor change sign."""
    for _ in range(10):
        left, right = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (right >> 32) ^ counter[1] ^ key[0],
            right % 2**32,
            (left >> 32) ^ counter[3] ^ key[1],
            left % 2**32,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def python_gumbel(seed: int, stream: int, position: int, token: int) -> float:
    words = python_philox([token // 2, position % 2**32, position >> 32, stream], [seed % 2**32, seed >> 32])
    high, low = words[2:] if token % 2 else words[:2]
    return -math.log(-math.log(max((high * 2**32 + low) >> 11, 0.5) * 2.0**-53))


@settings(max_examples=50, deadline=None)
@given(SEED, STREAM, st.lists(st.integers(0, 2**40), min_size=1, max_size=4), st.integers(1, 9))
def test_noise_equals_a_computation_in_plain_python(
    seed: int, stream: int, positions: list[int], vocab_size: int
) -> None:
    noise = gumbel_rows(seed, stream, torch.tensor(positions), vocab_size)
    expected = [[python_gumbel(seed, stream, t, token) for token in range(vocab_size)] for t in positions]
    assert noise.dtype == torch.float64
    torch.testing.assert_close(noise, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14)


def test_noise_equals_the_oracles() -> None:
    """The oracle of the end-to-end tests has a NumPy Philox of its own; all three agree."""
    row = torch.from_numpy(oracle.gumbel_row(2**63 + 5, 3, 77, 101))
    torch.testing.assert_close(gumbel_rows(2**63 + 5, 3, torch.tensor([77]), 101)[0], row, rtol=1e-14, atol=1e-14)


def test_an_odd_vocabulary_is_the_beginning_of_a_larger_one() -> None:
    positions = torch.arange(3)
    assert torch.equal(gumbel_rows(9, 0, positions, 7), gumbel_rows(9, 0, positions, 8)[:, :7])


def test_a_column_of_seeds_gives_each_row_its_own_seed() -> None:
    seeds = [0, 1, 2**32, 2**40 + 3]
    rows = gumbel_rows(torch.tensor(seeds)[:, None], 2, torch.full((4,), 11), 6)
    assert torch.equal(rows, torch.cat([gumbel_rows(seed, 2, torch.tensor([11]), 6) for seed in seeds]))


def test_extreme_bits_give_finite_noise() -> None:
    """Uniforms lie strictly inside (0, 1): neither the least nor the largest integer meets log 0."""
    noise = gumbel_from_bits(torch.tensor([0, 1, 2**53 - 1]))
    assert noise.isfinite().all()
    assert noise.diff().gt(0).all()
    assert noise[0].item() == pytest.approx(-math.log(54 * math.log(2)))
    assert noise[2].item() == pytest.approx(53 * math.log(2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=12), st.integers(1, 20))
def test_rows_do_not_depend_on_blocks_or_on_what_was_asked_before(requests: list[tuple[int, int]], block: int) -> None:
    noise = GumbelNoise(4, 1, 5, torch.device("cpu"), block=block)
    for first, count in requests:
        expected = gumbel_rows(4, 1, torch.arange(first, first + count), 5)
        assert torch.equal(noise.rows(first, count), expected)


def test_noise_of_past_positions_is_dropped() -> None:
    noise = GumbelNoise(4, 1, 5, torch.device("cpu"), block=16)
    for first in range(0, 4000, 3):
        noise.rows(first, 8)
    assert noise._rows.shape[0] <= 8 + 16


@functools.cache
def sample(stream: int, position: int, seed_step: int = 1) -> Tensor:
    """The coupled samples of P for NUM_SEEDS seeds, [NUM_SEEDS]."""
    seeds = torch.arange(NUM_SEEDS)[:, None] * seed_step
    noise = gumbel_rows(seeds, stream, torch.full((NUM_SEEDS,), position), len(P))
    return choose_coupled(torch.tensor(P, dtype=torch.float64).log().expand(NUM_SEEDS, -1), noise)


def goodness(tokens: Tensor) -> float:
    """p-value of the hypothesis that tokens follow P."""
    counts = tokens.bincount(minlength=len(P))
    return float(stats.chisquare(counts.numpy(), [NUM_SEEDS * p for p in P]).pvalue)


def independence(a: Tensor, b: Tensor, kinds: int = len(P)) -> float:
    """p-value of the hypothesis that two samples are independent."""
    table = (a * kinds + b).bincount(minlength=kinds**2).reshape(kinds, kinds)
    return float(stats.chi2_contingency(table.numpy()).pvalue)


@pytest.mark.parametrize("position", [0, 1, 1000, 2**32 + 1])
def test_gumbel_max_samples_follow_p_over_seeds(position: int) -> None:
    assert goodness(sample(0, position)) > LEAST_P


def test_gumbel_max_samples_follow_p_over_positions() -> None:
    noise = gumbel_rows(3, 0, torch.arange(NUM_SEEDS), len(P))
    tokens = choose_coupled(torch.tensor(P, dtype=torch.float64).log().expand(NUM_SEEDS, -1), noise)
    assert goodness(tokens) > LEAST_P
    assert independence(tokens[:-1], tokens[1:]) > LEAST_P


def test_samples_of_far_apart_seeds_follow_p() -> None:
    assert goodness(sample(0, 5, seed_step=0x5851F42D4C95)) > LEAST_P  # both key words vary


@pytest.mark.parametrize("shift", [1, 2, 256])
def test_samples_are_independent_across_seeds(shift: int) -> None:
    tokens = sample(0, 12)
    assert independence(tokens[:-shift], tokens[shift:]) > LEAST_P


@pytest.mark.parametrize(("one", "other"), [(0, 1), (7, 8), (7, 23), (1, 2**32 + 1)])
def test_samples_are_independent_across_positions(one: int, other: int) -> None:
    assert independence(sample(0, one), sample(0, other)) > LEAST_P


def test_samples_are_independent_across_streams() -> None:
    assert independence(sample(0, 7), sample(1, 7)) > LEAST_P


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 2), (0, 2)])
def test_noise_of_tokens_is_independent_and_gumbel(one: int, other: int) -> None:
    """Tokens 0 and 1 come from one Philox counter, tokens 1 and 2 from neighbouring ones."""
    noise = gumbel_rows(8, 0, torch.arange(NUM_SEEDS), 3)
    eighth = torch.exp(-torch.exp(-noise)).mul(8).long()  # [seeds, 3] which eighth of its law each value lies in
    assert independence(eighth[:, one], eighth[:, other], kinds=8) > LEAST_P
    assert stats.kstest(noise[:, one].numpy(), "gumbel_r").pvalue > LEAST_P


def test_the_statistics_notice_shared_and_biased_noise() -> None:
    tokens = sample(0, 7)
    shared = torch.where(torch.arange(NUM_SEEDS) % 50 == 0, tokens, sample(0, 8))  # 2 % reuse the row before
    assert independence(tokens, shared) < 1e-9
    biased = torch.where(torch.arange(NUM_SEEDS) % 50 == 0, 0, tokens)
    assert goodness(biased) < 1e-9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ({"seed": "7"}, "seed is '7'"),
        ({"stream": 2**32}, "stream is 4294967296"),
        ({"verification": "coupling"}, "coupled"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplingSettings(**wrong)
