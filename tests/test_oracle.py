"""The oracle itself: known answers, exact sampling, and agreement with transformers' own generation."""

from __future__ import annotations

import numpy as np
import pytest

from families import DYNAMIC_ROPE, FAMILIES, WINDOWED, prompt_ids, transformers_greedy
from oracle import gumbel_row, oracle_generate, philox4x32

# counter, key, output: kat_vectors of Random123 1.09, "philox4x32 10"
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    assert tuple(int(word) for word in philox4x32(counter, key)) == expected


def test_noise_depends_on_every_part_of_its_key():
    base = gumbel_row(1, 0, 5, 64)
    others = [
        gumbel_row(2, 0, 5, 64),
        gumbel_row(1, 1, 5, 64),
        gumbel_row(1, 0, 6, 64),
        gumbel_row(1, 0, 5 + 2**32, 64),
    ]
    others.append(gumbel_row(1 + 2**32, 0, 5, 64))
    assert all(not np.isclose(base, other).any() for other in others)
    assert np.array_equal(gumbel_row(1, 0, 5, 63), base[:63])


def test_argmax_of_noise_samples_the_distribution():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    num_samples = 20_000
    choices = [int((np.log(p) + gumbel_row(seed, 0, 7, 4)).argmax()) for seed in range(num_samples)]
    expected = p * num_samples
    chi_square = ((np.bincount(choices, minlength=4) - expected) ** 2 / expected).sum()
    assert chi_square < 16.27  # the 99.9 % point at 3 degrees of freedom; the seeds are fixed


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in DYNAMIC_ROPE])
def test_oracle_agrees_with_transformers_generate(name, family_model):
    model, prompt = family_model(name), prompt_ids(20)
    assert oracle_generate(model, prompt, max_new_tokens=16) == transformers_greedy(model, prompt, 16)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_text_depends_on_its_context(name, family_model):
    """A model that ignores its context, or repeats itself, would let a faulty engine pass."""
    model, prompt = family_model(name), prompt_ids(20)
    answers = [oracle_generate(model, ids, max_new_tokens=12) for ids in (prompt, *_neighbours(prompt))]
    assert any(answer != answers[0] for answer in answers[1:])
    assert len(set(answers[0])) >= 4


def _neighbours(prompt: list[int]) -> list[list[int]]:
    """The prompt with one of its last tokens changed, the very last excepted."""
    return [[*prompt[:at], (prompt[at] + 1) % 64, *prompt[at + 1 :]] for at in range(len(prompt) - 6, len(prompt) - 1)]


@pytest.mark.parametrize("name", list(WINDOWED))
def test_windows_matter_to_the_text(name, family_model):
    """Were the window as long as the text, a wrong windowed mask would go unnoticed."""
    wide = {"attention_chunk_size": 96} if name.startswith("llama4") else {"sliding_window": 96}
    prompt = prompt_ids(20)
    answers = [
        oracle_generate(model, prompt, max_new_tokens=12) for model in (family_model(name), FAMILIES[name](**wide))
    ]
    assert answers[0] != answers[1]


def test_oracle_stops_at_eos_and_at_the_context_limit(family_model):
    model, prompt = family_model("llama"), prompt_ids(20)
    full = oracle_generate(model, prompt, max_new_tokens=12)
    assert oracle_generate(model, prompt, max_new_tokens=12, eos_token_ids=[full[4]])[-1] == full[4]
    assert oracle_generate(model, prompt, max_new_tokens=12, context_length=23) == full[:3]
