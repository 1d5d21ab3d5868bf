"""Batched decoding gives each prompt the answer that `generate` gives it alone; sampling follows the distribution."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from slipstream.target.target import Target
from slipstream.training.data.batched_decoding import BatchDecoder, can_decode_batches, sample

FULL = ("llama", "qwen2", "qwen3", "mixtral")
PROMPTS = [[5, 6, 7], [9] * 17, [3, 1, 4, 1, 5, 9, 2, 6], [11, 12], [8, 7, 6, 5, 4], [2] * 9, [13, 14, 15]]


def answers(target: Target, num_rows: int, temperatures: list[float], seed: int = 0) -> list[list[int]]:
    decoder = BatchDecoder(
        target,
        PROMPTS,
        temperatures,
        num_rows=num_rows,
        max_new_tokens=12,
        generator=torch.Generator().manual_seed(seed),
    )
    found = dict(decoder.answers())
    return [found[index] for index in range(len(PROMPTS))]


@pytest.mark.parametrize("family", FULL)
@pytest.mark.parametrize("num_rows", [1, 3, 16])
def test_greedy_answers_equal_generate(
    family: str, num_rows: int, family_model: Callable[[str], PreTrainedModel]
) -> None:
    target = Target(family_model(family))
    assert can_decode_batches(target)
    before = target.config._attn_implementation
    found = answers(target, num_rows, [0.0] * len(PROMPTS))
    for prompt, ids in zip(PROMPTS, found, strict=True):
        whole = target.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0].tolist()
        assert ids == whole[len(prompt) :]
    assert target.config._attn_implementation == before


def test_an_answer_ends_with_its_end_of_sequence_token(family_model: Callable[[str], PreTrainedModel]) -> None:
    target = Target(family_model("llama"))
    first = answers(target, 3, [0.0] * len(PROMPTS))
    stop = first[1][4]
    config = target.model.generation_config
    before = config.eos_token_id
    config.eos_token_id = stop
    try:
        found = answers(target, 3, [0.0] * len(PROMPTS))
    finally:
        config.eos_token_id = before
    for ids, whole in zip(found, first, strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert ids == whole[:end]


def test_rows_may_mix_temperatures_and_a_seed_fixes_them(family_model: Callable[[str], PreTrainedModel]) -> None:
    target = Target(family_model("llama"))
    mixed = [0.0, 1.0, 0.0, 1.0, 0.7, 0.0, 1.0]
    greedy, found = answers(target, 3, [0.0] * len(PROMPTS)), answers(target, 3, mixed)
    assert all(found[i] == greedy[i] for i, heat in enumerate(mixed) if heat == 0)
    assert any(found[i] != greedy[i] for i, heat in enumerate(mixed) if heat > 0)
    assert found == answers(target, 3, mixed)
    assert found != answers(target, 3, mixed, seed=1)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "dynamic-rope"])
def test_windows_and_rolling_positions_are_left_to_transformers(
    family: str, family_model: Callable[[str], PreTrainedModel]
) -> None:
    assert not can_decode_batches(Target(family_model(family)))


@pytest.mark.parametrize("vocab", [7, 256, 700])
def test_sampling_in_blocks_follows_the_distribution(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(vocab, generator=generator) * 2
    p = logits.softmax(dim=-1)
    draws = 40_000
    counts = torch.bincount(sample(logits.repeat(draws, 1), generator), minlength=vocab)
    often = p > 20 / draws
    deviation = (counts - draws * p)[often] / (draws * p * (1 - p))[often].sqrt()
    assert deviation.abs().max() < 4.5
    assert counts[p == 0].sum() == 0
