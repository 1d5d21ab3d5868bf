"""The ablations of the dynamic tree leave out what they say, and drafting with them is lossless."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from doubles import decode
from methods.eagle.test_eagle import PROMPT, random_head
from oracle import oracle_generate
from slipstream.core.rules import Candidates
from slipstream.drafting.growth import Frontier, grow
from slipstream.engine.engine import Engine
from slipstream.methods.eagle.drafter import EagleDrafter
from slipstream.target.target import Target

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the benchmark scripts are not in this distribution")


@pytest.fixture
def ablated(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import ablations

    yield ablations.Ablated
    del sys.modules["ablations"]


def test_without_rerank_every_level_keeps_its_chosen_nodes(ablated):
    def expand(frontier: Frontier, k: int) -> Candidates:
        rows = frontier.tokens.shape[0]
        ranks = torch.arange(k).expand(rows, k)
        noise = torch.rand(rows, k, generator=torch.Generator().manual_seed(frontier.depth))
        return Candidates(10 * (frontier.depth + 1) + ranks, -0.5 * ranks - noise)

    shape = ablated(width=3, depth=4, total=5, rerank=False)
    tree = grow(expand, torch.tensor([7]), shape)
    assert torch.bincount(tree.depth).tolist() == [0, 3, 3, 3, 3]
    assert set(tree.parents.tolist()) <= set(range(-1, 9))
    assert tree.num_nodes == shape.most_nodes


def test_without_value_the_surest_step_is_run_next(ablated):
    def expand(frontier: Frontier, k: int) -> Candidates:
        log_confidence = {0: [[-0.1, -3.0]], 1: [[-1.0, -1.1], [-0.2, -0.3]], 2: [[-1.0, -2.0]] * 2}[frontier.depth]
        return Candidates(torch.tensor([[1, 2]] * frontier.tokens.shape[0]), torch.tensor(log_confidence))

    shapes = {by_value: ablated(width=2, depth=3, total=99, by_value=by_value) for by_value in (True, False)}
    parents = {by_value: grow(expand, torch.tensor([7]), shape).parents for by_value, shape in shapes.items()}
    assert sorted(set(parents[True][6:].tolist())) == [2, 3], "children of the likelier first token"
    assert sorted(set(parents[False][6:].tolist())) == [4, 5], "the surest steps, after an unlikely first token"


@pytest.mark.parametrize("left_out", [{"by_value": False}, {"rerank": False}, {"by_value": False, "rerank": False}])
def test_tokens_and_slots_are_those_of_any_tree(ablated, left_out, family_model):
    target = Target(family_model("llama"))
    drafter = EagleDrafter(target, random_head(target), ablated(width=3, depth=3, total=2, **left_out))
    result = decode(Engine(target, drafter), PROMPT, max_new_tokens=12)
    assert result.ids == oracle_generate(target.model, PROMPT, max_new_tokens=12)
    assert max(step.num_drafted for step in result.steps) < drafter.draft_slots
