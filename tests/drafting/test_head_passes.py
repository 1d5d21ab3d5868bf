"""Passes of draft heads by the target's executor: what they say in exact, padded and compiled sizes, and packed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from doubles import decode
from families import VOCAB_SIZE, build, prompt_ids
from methods.eagle.test_eagle import random_head as eagle_head
from methods.eagle3.test_eagle3 import random_head as eagle3_head
from methods.hydra.test_hydra import random_heads as hydra_heads
from slipstream.core.tree import ancestor_mask
from slipstream.drafting.base import Drafter
from slipstream.drafting.draft_vocabulary import PartialHead
from slipstream.drafting.head_passes import HeadPasses
from slipstream.drafting.shape import Dynamic
from slipstream.engine.engine import Engine
from slipstream.methods.eagle.drafter import EagleDrafter
from slipstream.methods.eagle3.drafter import Eagle3Drafter
from slipstream.methods.hydra.drafter import HydraDrafter
from slipstream.runtime import compiled, packed
from slipstream.runtime.buckets import Buckets
from slipstream.runtime.executor import FixedSizes
from slipstream.target.cache import KVCache
from slipstream.target.passes import Executor
from slipstream.target.target import Target

PROMPT = prompt_ids(9)
SMALL = Buckets(rows=(1, 4), context=64)
SHAPE = Dynamic(width=2, depth=3, total=4)
NEAR = {"rtol": 1e-6, "atol": 1e-5}  # norms are computed in float32

KINDS: dict[str, tuple[Callable[[Target], nn.Module], Callable[[nn.Module], nn.Module], type[Drafter], int]] = {
    "eagle": (eagle_head, lambda head: head, EagleDrafter, 2),
    "eagle3": (eagle3_head, lambda head: head, Eagle3Drafter, 2),
    "hydra": (hydra_heads, lambda heads: heads.prefix, HydraDrafter, 1),
}
"""Makes a head; what of it has layers; its drafter; how many vectors it reads of each row."""


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> compiled.CompiledPasses:
    """Traces layers as they are before they are compiled, and runs these graphs as they are. Counts their calls."""
    found = compiled.CompiledPasses(SMALL)
    found.ran = 0
    right = compiled._Compiled.__call__

    def run(*args):
        found.ran += 1
        return right(*args)

    monkeypatch.setattr(compiled._Compiled, "__call__", run)
    monkeypatch.setattr(compiled, "has_compiler", lambda: True)
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, *args, **how: graph)
    return found


def outputs(passes: HeadPasses, module: nn.Module, num_vectors: int) -> list[Tensor]:
    """Of a prompt, and three times of a root with two children, each time the first child committed."""
    cache, rng = KVCache(1, torch.device("cpu")), torch.Generator().manual_seed(1)
    width = module.config.hidden_size

    def run(positions: Tensor, visible: Tensor) -> Tensor:
        rows = [torch.randn(len(positions), width, generator=rng, dtype=torch.float64) for _ in range(num_vectors)]
        return passes.run(rows, positions, visible, cache, cache.length)

    found = [run(torch.arange(5), torch.ones(5, 5).tril().bool())]
    cache.commit(None, 5)
    for _ in range(3):
        found.append(run(cache.length + torch.tensor([0, 1, 1]), ancestor_mask(torch.tensor([-1, -1]))))
        cache.commit(None, 2)
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own modules, as they are imported
@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_heads_say_in_any_executor_what_they_say_eagerly(kind, executor):
    make, layers_of, _, num_vectors = KINDS[kind]
    with torch.inference_mode(False):
        model = build("llama")
        module = layers_of(make(Target(model)))
    expected = outputs(HeadPasses(Target(model), module, torch.float64), module, num_vectors)
    padded = outputs(HeadPasses(Target(model, FixedSizes(SMALL)), module, torch.float64), module, num_vectors)
    torch.testing.assert_close(padded, expected, **NEAR)
    passes = HeadPasses(Target(model, executor), module, torch.float64)
    found = executor.settled(lambda: outputs(passes, module, num_vectors))
    torch.testing.assert_close(found, expected, **NEAR)
    before = executor.ran  # what was compiled in time ran so before, too
    torch.testing.assert_close(outputs(passes, module, num_vectors), expected, **NEAR)
    assert executor.ran - before == 3, "all but the prompt's"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_drafts_of_compiled_heads_are_those_of_eager_ones(kind, executor):
    make, _, drafter, _ = KINDS[kind]
    model = build("llama")
    head = make(Target(model))

    def decoded(runs: Executor):
        target = Target(model, runs)
        engine = Engine(target, drafter(target, head, SHAPE), keep=0)
        return runs.settled(lambda: decode(engine, PROMPT, max_new_tokens=12))

    expected, found = decoded(Executor()), decoded(executor)
    assert found.ids == expected.ids
    counts = [[(step.num_drafted, step.num_accepted) for step in one.steps] for one in (found, expected)]
    assert counts[0] == counts[1]
    assert executor.ran > 0


@pytest.mark.skipif(not packed._packs_bfloat16(), reason="oneDNN packs no bfloat16 weights here")
def test_an_lm_head_whole_or_in_part_is_packed_and_the_same_to_the_last_bit():
    model = build("llama").to(torch.bfloat16)
    eager, target = Target(model), Target(model, compiled.CompiledPasses(SMALL))
    hidden, ids = torch.randn(1, 3, model.config.hidden_size).to(torch.bfloat16), torch.tensor([7, 2, 11])
    with torch.inference_mode():
        assert torch.equal(target.head(hidden), eager.head(hidden))
    before = target.executor.packed_bytes
    assert before >= model.lm_head.weight.nbytes
    assert torch.equal(PartialHead(target, ids)(hidden), PartialHead(eager, ids)(hidden))
    assert target.executor.packed_bytes - before == model.lm_head.weight.nbytes * len(ids) / VOCAB_SIZE
    learning = hidden.clone().requires_grad_()
    target.head(learning).sum().backward()
    assert learning.grad is not None, "differentiable as before"
