"""Rows that a drafter runs beside its tree tell it what the target says there, and change nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from doubles import Decoded, Path, Script, Scripted, chain_paths, decode, nothing, random_tree, request, tree_of, wrong
from families import VOCAB_SIZE, prompt_ids
from oracle import next_logits, oracle_generate
from pass_sizes import both_sizes, in_both_sizes
from slipstream.core.sampling import SamplingSettings
from slipstream.core.tree import DraftTree
from slipstream.drafting.base import Drafting, Generation, Observed, Scouts
from slipstream.engine.engine import Engine
from slipstream.target.arguments import cache_argument
from slipstream.target.target import Target

PROMPT = prompt_ids(7, seed=4) * 3
NUM_TOKENS = 14
Listener = Callable[[Generation, list[Path], Tensor], None]
"""(run, the scouts' paths, their logits), called in each pass with scouts."""


class Scouting(Scripted):
    """Drafts by one script and sends scouts by another."""

    name = "scouting"

    def __init__(
        self, script: Script, scouts: Script, truth: Sequence[int] = (), listener: Listener | None = None
    ) -> None:
        super().__init__(script, truth)
        self.scout_script, self.listener = scouts, listener

    def start(self, run: Generation) -> Drafting:
        return _Scouting(self, run, super().start(run))


class _Scouting(Drafting):
    def __init__(self, drafter: Scouting, run: Generation, inner: Drafting) -> None:
        self._drafter, self._run, self._inner = drafter, run, inner

    def propose(self) -> DraftTree:
        return self._inner.propose()

    def scouts(self) -> Scouts | None:
        ahead = self._drafter.truth[len(self._run.tokens) - self._run.prompt_length :]
        paths = self._drafter.scout_script(self._run, ahead)
        if not paths:
            return None
        tree = tree_of(paths)

        def read(logits: Tensor) -> Tensor:
            if self._drafter.listener is not None:
                self._drafter.listener(self._run, paths, logits)
            return logits.argmax(dim=-1)

        return Scouts(tree.tokens, tree.parents, tree.depth, read)

    def observe(self, observed: Observed) -> None:
        self._inner.observe(observed)


def the_truth(run: Generation, ahead: Sequence[int]) -> list[Path]:
    return chain_paths(ahead[:4])


def bush(run: Generation, ahead: Sequence[int]) -> list[Path]:
    """Many wrong branches, deeper than any draft of these tests."""
    return [path for first in range(5) for path in chain_paths([wrong(first), *range(8, 16)])]


def now_and_then(run: Generation, ahead: Sequence[int]) -> list[Path]:
    return bush(run, ahead) if len(run.tokens) % 2 else []


SCOUTS: dict[str, Script] = {
    "truth": the_truth,
    "bush": bush,
    "now-and-then": now_and_then,
    "same-as-draft": random_tree,
}


@pytest.fixture(scope="module")
def model(family_model):
    return family_model("llama")


@pytest.fixture(scope="module")
def target(model):
    return Target(model)


def shapes(result: Decoded) -> list[tuple[Any, ...]]:
    return [(step.token_ids, step.num_drafted, step.num_accepted, step.finish_reason) for step in result.steps]


@in_both_sizes("how", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.8, "repetition_penalty": 1.5}])
@pytest.mark.parametrize("scouts", SCOUTS)
def test_scouts_change_no_step(scouts, how, target, model):
    how = {**how, "max_new_tokens": NUM_TOKENS}
    truth = oracle_generate(model, PROMPT, **how)
    alone = decode(Engine(target, Scripted(random_tree, truth)), PROMPT, **how)
    accompanied = decode(Engine(target, Scouting(random_tree, SCOUTS[scouts], truth)), PROMPT, **how)
    assert accompanied.ids == alone.ids == truth
    assert shapes(accompanied) == shapes(alone)
    assert alone.num_accepted > 0


@pytest.mark.parametrize("scouts", SCOUTS)
def test_scouts_draw_no_random_numbers(scouts, target):
    """Rejection verification draws for every node: had scouts any, the same seed would give another text."""

    def text(drafter: Scripted) -> list[int]:
        how = {"temperature": 1.0, "max_new_tokens": NUM_TOKENS}
        by_rejection = replace(request(PROMPT, **how), sampling=SamplingSettings(seed=3, verification="rejection"))
        return [token for step in Engine(target, drafter).generate(by_rejection) for token in step.token_ids]

    truth = list(range(NUM_TOKENS))
    assert text(Scouting(random_tree, SCOUTS[scouts], truth)) == text(Scripted(random_tree, truth))


def test_a_scout_is_never_accepted_though_it_carries_the_truth(target, model):
    truth = oracle_generate(model, PROMPT, max_new_tokens=NUM_TOKENS)
    result = decode(Engine(target, Scouting(nothing, the_truth, truth)), PROMPT, max_new_tokens=NUM_TOKENS)
    assert result.ids == truth
    assert [len(step.token_ids) for step in result.steps] == [1] * NUM_TOKENS
    assert [(step.num_drafted, step.num_accepted) for step in result.steps] == [(0, 0)] * NUM_TOKENS


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_scouts_read_what_the_target_says_after_their_path(name, family_model):
    """The logits after the text and the scout's own path, whatever else the pass holds."""
    model, read = family_model(name), []

    def compare(run: Generation, paths: list[Path], logits: Tensor) -> None:
        assert logits.shape == (len(paths), VOCAB_SIZE)
        for path, row in zip(paths, logits, strict=True):
            if len(path) <= run.max_depth:  # deeper ones stand nearer than they should
                torch.testing.assert_close(row, next_logits(model, [*run.tokens, *path])[0], rtol=0, atol=1e-9)
                read.append(path)

    truth = oracle_generate(model, PROMPT, max_new_tokens=NUM_TOKENS)
    drafter = Scouting(random_tree, bush, truth, compare)
    assert decode(Engine(Target(model), drafter), PROMPT, max_new_tokens=NUM_TOKENS).ids == truth
    assert len(read) > 50


def test_what_scouts_read_is_observed_with_their_pass(target, model):
    told: list[list[int]] = []
    truth = oracle_generate(model, PROMPT, max_new_tokens=NUM_TOKENS)
    drafter = Scouting(
        random_tree, now_and_then, truth, lambda run, paths, logits: told.append(logits.argmax(-1).tolist())
    )
    result = decode(Engine(target, drafter, prefill_chunk=8), PROMPT, max_new_tokens=NUM_TOKENS)
    passes = [observed for observed in drafter.observed if observed.tree is not None]
    assert len(passes) == len(result.steps)
    assert [list(observed.scouted) for observed in passes if observed.scouted] == told
    assert 0 < len(told) < len(passes)
    assert not any(observed.scouted for observed in drafter.observed if observed.tree is None)


@both_sizes
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_scouts_leave_nothing_in_the_cache(name, family_model):
    model, checked = family_model(name), []

    def check_then_draw(run: Generation, ahead: Sequence[int]) -> list[Path]:
        fresh = DynamicCache()  # without a config it keeps windowed layers whole
        model(torch.tensor([run.tokens[:-1]]), **{cache_argument(model.forward): fresh})
        for mine, theirs in zip(run.cache.layers, fresh.layers, strict=True):
            torch.testing.assert_close(mine.keys[:, :, : run.length], theirs.keys, rtol=0, atol=1e-9)
        assert run.cache.positions[0, : run.length].tolist() == list(range(run.length))
        checked.append(run.length)
        return random_tree(run, ahead)

    truth = oracle_generate(model, PROMPT, max_new_tokens=NUM_TOKENS)
    drafter = Scouting(check_then_draw, bush, truth)
    result = decode(Engine(Target(model), drafter), PROMPT, max_new_tokens=NUM_TOKENS)
    assert result.ids == truth
    assert result.num_accepted > 0
    assert len(checked) >= 4


def test_the_last_pass_has_no_scouts(target, model):
    """One token is left, so there is nothing ahead to learn about."""
    truth = oracle_generate(model, PROMPT, max_new_tokens=3)
    drafter = Scouting(nothing, bush, truth)
    decode(Engine(target, drafter), PROMPT, max_new_tokens=3)
    passes = [observed for observed in drafter.observed if observed.tree is not None]
    assert [bool(observed.scouted) for observed in passes] == [True, True, False]
