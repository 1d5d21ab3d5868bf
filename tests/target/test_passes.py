"""How a pass is described and run: sizes change nothing but the work, sequences of a batch nothing of each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from families import CONTEXT, FAMILIES, VOCAB_SIZE, prompt_ids
from random_trees import make_tree
from slipstream.core.tree import ancestor_mask
from slipstream.runtime.buckets import Buckets
from slipstream.runtime.executor import FixedSizes
from slipstream.skipping.skip_set import SkipSet
from slipstream.skipping.sublayers import SubLayers
from slipstream.target.cache import KVCache
from slipstream.target.features import Features
from slipstream.target.masks import allowed_slots
from slipstream.target.passes import Executor, PassKey, TargetOutput
from slipstream.target.target import Target

SMALL = Buckets(rows=(1, 4, 16, 64), context=64)
TREE = make_tree([-1, -1, 0, 0, 1], [11, 12, 13, 14, 13])
FEATURES = Features(last_hidden=True, layers=(1,))
ONE_MASK = ("llama", "gpt2", "opt", "mistral", "deepseek_v3", "mixtral")
NEAR = {"rtol": 0.0, "atol": 1e-5}  # some families compute a softmax or a router in float32; a leak is 0.1 and more
SEVERAL_MASKS = ("gemma2", "gemma3", "gpt_oss")


class Watching(FixedSizes):
    """Keeps the keys and the outputs of passes, as they are before anything is cut off."""

    def __init__(self, buckets: Buckets = SMALL) -> None:
        super().__init__(buckets)
        self.keys: list[PassKey] = []
        self.outputs: list[TargetOutput] = []

    def run(self, key, function, inputs, cache):
        self.keys.append(key)
        self.outputs.append(super().run(key, function, inputs, cache))
        return self.outputs[-1]


def run_text(target: Target, cache: KVCache, texts: list[list[int]], **how) -> TargetOutput:
    """Run and commit texts of one length, one a sequence."""
    first, n = cache.length, len(texts[0])
    visible = target.causal(n).expand(len(texts), n, n)
    positions = cache.lengths[:, None] + torch.arange(n)
    output = target.forward(torch.tensor(texts), positions, visible, cache, **how)
    cache.commit(None, n)
    assert cache.length == first + n
    return output


def run_tree(target: Target, cache: KVCache, roots: list[int], **how) -> TargetOutput:
    """`TREE` under a root of each sequence."""
    batch = len(roots)
    tokens = torch.cat((torch.tensor(roots)[:, None], TREE.tokens.expand(batch, -1)), dim=1)
    depth = torch.cat((TREE.depth.new_zeros(1), TREE.depth))
    visible = ancestor_mask(TREE.parents).expand(batch, -1, -1)
    return target.forward(tokens, cache.lengths[:, None] + depth, visible, cache, **how)


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_a_pass_in_fixed_sizes_says_what_it_says_in_exact_ones(name, family_model):
    """A prompt, a tree, a branch committed, a tree after it. Where a bucket has to be filled, nobody notices."""
    exact, executor = Target(family_model(name)), Watching()
    fixed = Target(family_model(name), executor)
    found = []
    for target in (exact, fixed):
        cache = target.new_cache(extra_slots=8)
        outputs = [run_text(target, cache, [prompt_ids(21)], features=FEATURES)]
        outputs.append(run_tree(target, cache, [9], features=FEATURES))
        cache.commit(cache.length + 1 + torch.tensor([0, 3]), 3)
        outputs.append(run_tree(target, cache, [10]))
        outputs.append(run_text(target, cache, [prompt_ids(5)], last_logits_only=True))
        found.append(outputs)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other.logits, one.logits, **NEAR)
        assert (one.features is None) is (other.features is None)
        if one.features is not None:
            torch.testing.assert_close(other.features, one.features, **NEAR)
    assert [(key.rows, key.context) for key in executor.keys] == [(64, 64), (16, 64), (16, 64), (16, 64)]
    assert all(torch.isfinite(output.logits).all() for output in executor.outputs), "rows that fill up the bucket"


@torch.inference_mode()
def test_rows_that_fill_a_bucket_leave_nothing_where_it_is_read(family_model):
    """Committed rows are untouched, the others are finite, and the text is as long as it was."""
    target = Target(family_model("llama"), Watching())
    cache = target.new_cache(extra_slots=8)
    run_text(target, cache, [prompt_ids(21)])
    before = [(layer.keys[:, :, :21].clone(), layer.values[:, :, :21].clone()) for layer in cache.layers]
    run_tree(target, cache, [9])
    assert cache.length == 21
    assert cache.lengths.tolist() == [21]
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys[:, :, :21], keys)
        assert torch.equal(layer.values[:, :, :21], values)
        assert torch.isfinite(layer.keys).all()
        assert torch.isfinite(layer.values).all()


def test_rows_that_fill_a_bucket_stand_nowhere_new(family_model):
    """A rolling RoPE goes by the largest position of a pass, tables of learned positions end at the context."""
    seen = []
    target = Target(family_model("gpt2"), Watching())
    right = target._run

    def run(model, inputs, cache) -> Tensor:
        seen.append(inputs)
        return right(model, inputs, cache)

    target._run = run
    cache = target.new_cache(extra_slots=8)
    run_text(target, cache, [prompt_ids(CONTEXT - 2)])
    run_tree(target, cache, [9])
    tree = seen[-1]
    assert tree.positions[0].tolist() == [CONTEXT - 2, *[CONTEXT - 1] * 15]
    assert tree.tokens[0].tolist() == [9, *TREE.tokens.tolist(), *[13] * 10]
    assert tree.slots[0].tolist() == list(range(CONTEXT - 2, CONTEXT + 14))


@pytest.mark.parametrize("executor", [Executor, Watching], ids=["exact", "fixed"])
@pytest.mark.parametrize("name", [*ONE_MASK, *SEVERAL_MASKS])
@torch.inference_mode()
def test_a_batch_of_texts_says_what_each_says_alone(name, executor, family_model):
    """Two texts of different lengths: a prompt, a tree, another branch of it committed in each, a tree after that."""
    target = Target(family_model(name), executor())
    prompts, paths = [prompt_ids(19, seed=1), prompt_ids(12, seed=2)], [[0, 2], [1]]
    both, alone = target.new_cache(8, batch=2), [target.new_cache(8), target.new_cache(8)]
    shared = [text[:12] for text in prompts]
    run_text(target, both, shared, features=FEATURES)
    rest = torch.tensor([prompts[0][12:], [0] * 7])  # only the first text goes on
    target.forward(rest, 12 + torch.arange(7).expand(2, -1), target.causal(7).expand(2, -1, -1), both)
    both.commit(None, [7, 0])
    for cache, prompt in zip(alone, prompts, strict=True):
        run_text(target, cache, [prompt], features=FEATURES)
    assert both.lengths.tolist() == [cache.length for cache in alone] == [19, 12]
    for roots in ([5, 6], [7, 8]):
        together = run_tree(target, both, roots, features=FEATURES)
        for place, cache in enumerate(alone):
            one = run_tree(target, cache, roots[place : place + 1], features=FEATURES)
            torch.testing.assert_close(together.logits[place], one.logits[0], **NEAR)
            torch.testing.assert_close(together.features[place], one.features[0], **NEAR)
            cache.commit(cache.length + 1 + torch.tensor(paths[place]), len(paths[place]) + 1)
        behind = torch.tensor([[0, 2], [1, 4]])  # the second text's is longer than what is kept of it
        both.commit(both.lengths[:, None] + 1 + behind, [3, 2])
    assert both.lengths.tolist() == [cache.length for cache in alone] == [25, 16]
    for place, cache in enumerate(alone):
        n = cache.length
        assert both.positions[place, :n].tolist() == list(range(n))
        for mine, theirs in zip(both.layers, cache.layers, strict=True):
            torch.testing.assert_close(mine.keys[place, :, :n], theirs.keys[0, :, :n], **NEAR)
            torch.testing.assert_close(mine.values[place, :, :n], theirs.values[0, :, :n], **NEAR)


def test_slots_before_the_length_are_seen_and_later_ones_as_far_as_they_are_named():
    visible = torch.tensor([[[True, False], [True, True]], [[False, True], [True, False]]])
    allowed = allowed_slots(visible, torch.tensor([3, 0]), 6)
    assert allowed.int().tolist() == [
        [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]],
        [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]],
    ]


def test_other_features_another_skip_set_and_other_sizes_are_other_keys(family_model):
    """Compilers skip guards on hooks and patched forwards, so the key has to tell them apart."""
    executor = Watching()
    target = Target(family_model("llama"), executor)
    sublayers = SubLayers.find(target.model)
    cache = target.new_cache(8)
    run_text(target, cache, [prompt_ids(7)])
    skips = [sublayers.plan(SkipSet(num_layers=2, attention=(layer,), mlp=())).model for layer in (0, 1)]
    passes = [
        {},
        {"features": Features(last_hidden=True)},
        {"features": Features(layers=(1, 0))},
        {"features": Features(layers=(0, 1))},
        {"instead": skips[0]},
        {"instead": skips[1]},
        {"last_logits_only": True},
    ]
    for _ in range(2):
        for how in passes:
            run_tree(target, cache, [3], **how)
    first, second = executor.keys[1 : 1 + len(passes)], executor.keys[1 + len(passes) :]
    assert first == second, "the same pass has the same key"
    assert len(set(first)) == len(passes)
    run_tree(target, target.new_cache(8, batch=2), [3, 4])
    run_text(target, cache, [prompt_ids(50)])
    run_text(target, cache, [prompt_ids(1)])
    assert len(set(executor.keys[-4:])) == 4


def test_logits_of_the_last_row_are_those_of_all(family_model):
    target = Target(family_model("llama"), Watching())
    whole, last = (
        run_text(target, target.new_cache(8), [prompt_ids(7)], last_logits_only=only).logits for only in (False, True)
    )
    assert last.shape == (1, 1, VOCAB_SIZE)
    torch.testing.assert_close(last, whole[:, -1:], **NEAR)
