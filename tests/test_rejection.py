"""Under `verification="rejection"` what the engine emits follows the target's own law, token by token.

Target, drafters, cache and loop are the real ones; a pass of the model that was made before is remembered. With a
vocabulary of five and three new tokens the law of all 125 outputs can be enumerated from full forwards of the target
and transformers' own warpers, and the outputs of many seeds are compared with it by a chi-square test. The seeds are
fixed, so a small p-value is a fault, not bad luck. Faults that bias the output without breaking anything else are
planted to show that the check sees them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from transformers import PreTrainedModel

from doubles import request
from families import build
from oracle import next_logits, warpers
from slipstream.core.sampling import SamplingSettings
from slipstream.core.tree import DraftTree
from slipstream.core.verify import choose_one_hot, draw
from slipstream.drafting.chain import ChainDrafting
from slipstream.engine.engine import Engine
from slipstream.engine.sequence import Step
from slipstream.methods.registry import build_drafter
from slipstream.target.cache import KVCache
from slipstream.target.passes import PassInputs
from slipstream.target.target import Target

VOCAB, NUM_NEW = 5, 3
PROMPT = [1, 2, 3, 1, 4, 1]  # a text in which the last token was followed by two others before
NUM_SEEDS = 800
LEAST_P = 1e-3  # what the sound engine must exceed
FAULTY_P = 1e-6  # what a planted fault must fall below
THRESHOLD = 0.6

SETTINGS: dict[str, dict[str, float]] = {
    "plain": {"temperature": 1.0},
    "top-p": {"temperature": 0.7, "top_p": 0.9},
}
SKIP = {"attention": [1], "mlp": []}
DRAFTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "chain": (
        "layer-skip",
        {"tree": "chain", "length": 4, "threshold": THRESHOLD, "adaptive": False, "skip_set": SKIP},
    ),
    # As EAGLE's trees: the top children of each node, verified as one-hot drafts.
    "dynamic": ("layer-skip", {"tree": "dynamic", "width": 2, "depth": 2, "total": 4, "skip_set": SKIP}),
    "lookup": ("prompt-lookup", {}),
    "lookahead": ("lookahead", {"window": 2, "level": 3, "guesses": 2}),
}


@pytest.fixture(scope="module")
def target() -> Target:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    return Target(build("llama", vocab_size=VOCAB, weight_std=0.4, **sizes))


@pytest.fixture(scope="module")
def memory() -> Memory:
    return {}


# -- the law, and the test of it -----------------------------------------------------------------------------------


def law(model: PreTrainedModel, settings: dict[str, float]) -> dict[tuple[int, ...], float]:
    """The probability of every text of NUM_NEW tokens after the prompt: text -> probability, those above 0."""
    warp = warpers(settings["temperature"], 0, settings.get("top_p", 1.0), 0.0)
    texts: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NUM_NEW):
        longer = {}
        for text, probability in texts.items():
            ids = [*PROMPT, *text]
            p = warp(torch.tensor([ids]), next_logits(model, ids)).softmax(dim=-1)[0].tolist()
            longer |= {(*text, token): probability * p[token] for token in range(VOCAB) if p[token] > 0}
        texts = longer
    return texts


def p_value(texts: Sequence[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Of the hypothesis that texts follow `expected`; 0 where one occurs that never may.

    Texts expected fewer than five times are counted together, the least probable first.
    """
    counts = Counter(texts)
    if counts.keys() - expected.keys():
        return 0.0
    cells, pooled = [], [0.0, 0.0]
    for text, probability in sorted(expected.items(), key=lambda item: item[1]):
        pooled = [pooled[0] + counts[text], pooled[1] + probability * len(texts)]
        if pooled[1] >= 5:
            cells.append(pooled)
            pooled = [0.0, 0.0]
    cells[-1] = [cells[-1][0] + pooled[0], cells[-1][1] + pooled[1]]
    observed, mean = zip(*cells, strict=True)
    return float(stats.chisquare(observed, mean).pvalue)


# -- many generations in little time -------------------------------------------------------------------------------

Memory = dict[tuple[Any, ...], tuple[Tensor, list[tuple[Tensor, Tensor]]]]
"""What a pass of the model was given -> its logits, and the keys and values it wrote in each layer."""


@contextmanager
def remembered(target: Target, memory: Memory) -> Iterator[None]:
    """Run each pass of the model once; the same pass again gives the same logits and writes the same cache rows.

    A pass is named by all it depends on: tokens, positions, mask, the rows it may read, and the model or the shadow of
    it that runs. Rows are compared in float32, for the same row may come from different passes, rounded differently.
    """
    real = target._run

    def run(model: nn.Module, inputs: PassInputs, cache: KVCache) -> Tensor:
        filled = [rows for layer in cache.layers for rows in (layer.keys, layer.values) if rows is not None]
        assert isinstance(inputs.mask, Tensor)
        read = (rows[:, :, : cache.start].float() for rows in filled)
        parts = [inputs.tokens, inputs.positions, inputs.mask.float(), *read]
        key = (cache.start, model, inputs.logits_row is None, *(part.numpy().tobytes() for part in parts))
        if key not in memory:
            logits = real(model, inputs, cache)
            rows = slice(cache.start, cache.end)
            written = [(layer.keys[:, :, rows].clone(), layer.values[:, :, rows].clone()) for layer in cache.layers]
            memory[key] = (logits.clone(), written)
            return logits
        logits, written = memory[key]
        for layer, (keys, values) in zip(cache.layers, written, strict=True):
            layer.update(keys, values)
        return logits.clone()

    target._run = run
    try:
        yield
    finally:
        del target._run


class Sample(NamedTuple):
    """The outputs of generations under seeds 0, 1, ..., and all cycles that had a draft."""

    texts: list[tuple[int, ...]]
    drafted: list[Step]


def sample(
    target: Target, memory: Memory, draft: str, settings: dict[str, float], num_seeds: int = NUM_SEEDS
) -> Sample:
    method, options = DRAFTERS[draft]
    engine = Engine(target, build_drafter(method, target, options))
    one = request(PROMPT, max_new_tokens=NUM_NEW, **settings)
    texts, drafted = [], []
    with remembered(target, memory):
        for seed in range(num_seeds):
            sampling = SamplingSettings(seed=seed, verification="rejection")
            steps = list(engine.generate(replace(one, sampling=sampling)))
            texts.append(tuple(token for step in steps for token in step.token_ids))
            drafted += [step for step in steps if step.num_drafted]
    return Sample(texts, drafted)


# -- what is promised ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("draft", DRAFTERS)
def test_outputs_follow_the_targets_law(draft, settings, target, memory):
    outputs = sample(target, memory, draft, SETTINGS[settings])
    assert p_value(outputs.texts, law(target.model, SETTINGS[settings])) > LEAST_P
    share = sum(step.num_accepted > 0 for step in outputs.drafted) / len(outputs.drafted)
    assert 0.1 < share < 0.9, "both outcomes of verification must be common"


def test_the_targets_law_is_worth_testing(target):
    """It covers many texts, unevenly, none of them near certain, and truncation rules some of them out."""
    plain, top_p = (law(target.model, settings) for settings in SETTINGS.values())
    for expected in (plain, top_p):
        assert sum(expected.values()) == pytest.approx(1.0)
        assert 0.05 < max(expected.values()) < 0.2
        assert min(expected.values()) < 0.005
    assert len(plain) == VOCAB**NUM_NEW
    assert 20 < len(top_p) < 60


def test_the_chain_both_exits_early_and_runs_on(target, memory):
    outputs = sample(target, memory, "chain", SETTINGS["plain"], num_seeds=60)
    lengths = [step.num_drafted for step in outputs.drafted if step.prefill_s]  # first cycles, with room for two
    assert min(lengths.count(1), lengths.count(2)) > 10


def test_the_dynamic_tree_is_a_one_hot_tree_with_branches(target, memory, monkeypatch):
    """What EAGLE-2 proposes, so that the rule for its trees is tested here: several children, none of them sampled."""
    trees = []

    def choose(tree: DraftTree, *others: Any) -> Tensor:
        trees.append(tree)
        return choose_one_hot(tree, *others)

    monkeypatch.setattr("slipstream.core.rules.choose_one_hot", choose)
    monkeypatch.setattr("slipstream.core.rules.choose_chain", None)
    sample(target, memory, "dynamic", SETTINGS["plain"], num_seeds=60)
    shapes = {tuple(tree.parents.tolist()) for tree in trees if tree.num_nodes}
    assert any(parents.count(-1) == 2 and max(parents) >= 0 for parents in shapes)
    assert len(shapes) > 1
    assert all(tree.q is None for tree in trees)


# -- planted faults ------------------------------------------------------------------------------------------------


def drop_unsure_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain that ends early leaves out the token that made it end."""
    right = ChainDrafting.propose

    def propose(self: ChainDrafting) -> DraftTree:
        tree = right(self)
        assert tree.q is not None
        unsure = tree.q[-1, tree.tokens[-1]] < THRESHOLD
        return tree.first(tree.num_nodes - 1) if unsure else tree

    monkeypatch.setattr(ChainDrafting, "propose", propose)


def recover_from_p(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a rejection the token is drawn from p, not from max(p - q, 0)."""

    def choose(tokens: Tensor, q: Tensor, p: Tensor, u_accept: Tensor, u_next: Tensor) -> Tensor:
        row = torch.arange(len(tokens))
        accepted = u_accept * q[row, tokens] < p[row, tokens]
        choice = draw(p, u_next)
        choice[:-1] = torch.where(accepted, tokens, choice[:-1])
        return choice

    monkeypatch.setattr("slipstream.core.rules.choose_chain", choose)


def draw_rejected_children_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no child is accepted the token is drawn from all of p, the rejected children included."""

    def choose(tree: DraftTree, p: Tensor, u_accept: Tensor, u_next: Tensor) -> Tensor:
        choice = choose_one_hot(tree, p, u_accept, u_next)
        accepted = torch.zeros(len(choice), dtype=torch.bool)
        accepted[(tree.parents + 1)[choice[tree.parents + 1] == tree.tokens]] = True
        return torch.where(accepted, choice, draw(p, u_next))

    monkeypatch.setattr("slipstream.core.rules.choose_one_hot", choose)


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "unsure-dropped": ("chain", drop_unsure_token),
    "residual-of-p": ("chain", recover_from_p),
    "rejected-again": ("dynamic", draw_rejected_children_again),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_break_the_law(fault, target, memory, monkeypatch):
    draft, plant = FAULTS[fault]
    plant(monkeypatch)
    outputs = sample(target, memory, draft, SETTINGS["plain"])
    assert p_value(outputs.texts, law(target.model, SETTINGS["plain"])) < FAULTY_P
