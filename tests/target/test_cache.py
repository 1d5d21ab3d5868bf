from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from families import VOCAB_SIZE
from random_trees import make_tree, path_to, trees
from slipstream.core.tree import DraftTree, ancestor_mask
from slipstream.target.cache import KVCache, SlotLayer
from slipstream.target.target import Target

CPU = torch.device("cpu")
NUM_LAYERS, HEADS, KEY_WIDTH, VALUE_WIDTH = 2, 3, 4, 6


def written(tag: int, layer: int, width: int) -> Tensor:
    """The row that `run` writes for a tag: different in every layer and head. [1, heads, 1, width]."""
    heads = torch.arange(HEADS, dtype=torch.float64)[None, :, None, None]
    return (1000.0 * tag + 100 * layer + 10 * heads).expand(1, HEADS, 1, width) + torch.arange(width)


def run(cache: KVCache, tags: list[int], positions: list[int], start: int | None = None) -> None:
    """A pass over rows that are recognised by their tags."""
    cache.begin(cache.length if start is None else start, torch.tensor(positions))
    for index, layer in enumerate(cache.layers):
        keys = torch.cat([written(tag, index, KEY_WIDTH) for tag in tags], dim=2)
        values = torch.cat([-written(tag, index, VALUE_WIDTH) for tag in tags], dim=2)
        all_keys, all_values = layer.update(keys, values)
        assert all_keys.shape == (1, HEADS, cache.end, KEY_WIDTH)
        assert all_values.shape == (1, HEADS, cache.end, VALUE_WIDTH)
        assert torch.equal(all_keys[:, :, cache.start :], keys)
        assert torch.equal(all_values[:, :, cache.start :], values)


def assert_committed(cache: KVCache, tags: list[int]) -> None:
    """The committed rows are those of `tags`, in every layer, slot s holding position s."""
    assert cache.length == len(tags)
    assert cache.positions[0, : cache.length].tolist() == list(range(len(tags)))
    for index, layer in enumerate(cache.layers):
        for rows, sign, width in ((layer.keys, 1, KEY_WIDTH), (layer.values, -1, VALUE_WIDTH)):
            for slot, tag in enumerate(tags):
                assert torch.equal(rows[:, :, slot : slot + 1], sign * written(tag, index, width))


def tree_pass(cache: KVCache, tree: DraftTree, first_tag: int) -> None:
    """Root and tree, as the engine runs them: tags count up from `first_tag`."""
    depth = [0, *tree.depth.tolist()]
    run(cache, list(range(first_tag, first_tag + len(depth))), [cache.length + d for d in depth])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(trees(max_nodes=6), st.integers(-1, 5)), min_size=1, max_size=4), st.integers(0, 5))
def test_commit_keeps_exactly_the_rows_of_the_path(cycles: list[tuple[DraftTree, int]], prompt: int) -> None:
    cache, text, tag = KVCache(NUM_LAYERS, CPU), list(range(prompt)), 100
    if prompt:
        run(cache, text, text)
        cache.commit(None, prompt)
    for tree, leaf in cycles:
        tree_pass(cache, tree, tag)
        path = path_to(tree.parents.tolist(), min(leaf, tree.num_nodes - 1))
        slots = cache.length + 1 + torch.tensor(path, dtype=torch.int64)
        cache.commit(slots, len(path) + 1)
        text += [tag, *(tag + 1 + node for node in path)]
        tag += 100
        assert_committed(cache, text)


def test_rows_that_lie_in_place_need_no_slots() -> None:
    tree = make_tree([-1, 0, 0], [1, 2, 3])
    caches = [KVCache(NUM_LAYERS, CPU), KVCache(NUM_LAYERS, CPU)]
    for cache, slots in zip(caches, (None, torch.tensor([1, 2])), strict=True):
        tree_pass(cache, tree, 10)
        cache.commit(slots, 3)
        assert_committed(cache, [10, 11, 12])


def test_commit_copies_before_it_overwrites() -> None:
    """Source and destination overlap: slots 2, 3, 5 move to 1, 2, 3."""
    cache = KVCache(NUM_LAYERS, CPU)
    tree_pass(cache, make_tree([-1, -1, 1, 1, 2], [1, 2, 3, 4, 5]), 10)
    cache.commit(torch.tensor([2, 3, 5]), 4)
    assert_committed(cache, [10, 12, 13, 15])


def test_a_wrong_path_would_be_seen() -> None:
    cache = KVCache(NUM_LAYERS, CPU)
    tree_pass(cache, make_tree([-1, -1], [1, 2]), 10)
    cache.commit(torch.tensor([1]), 2)
    with pytest.raises(AssertionError):
        assert_committed(cache, [10, 12])


def test_growth_keeps_contents_and_at_least_doubles() -> None:
    cache, text, capacities = KVCache(NUM_LAYERS, CPU), [], []
    for first in range(0, 1200, 60):
        tags = list(range(first, first + 60))
        run(cache, tags, tags)
        cache.commit(None, 60)
        text += tags
        capacities.append(cache.capacity)
    assert_committed(cache, text)
    sizes = sorted(set(capacities))
    assert sizes == [256, 512, 1024, 2048]
    assert (
        {layer.keys.shape[2] for layer in cache.layers} == {layer.values.shape[2] for layer in cache.layers} == {2048}
    )
    assert cache.positions.shape == (1, 2048)


def test_growth_stops_at_the_limit() -> None:
    cache = KVCache(NUM_LAYERS, CPU, limit=300)
    run(cache, [1], [0])
    assert cache.capacity == 256
    run(cache, list(range(290)), list(range(290)))
    assert cache.capacity == 300
    small = KVCache(NUM_LAYERS, CPU, limit=40)
    run(small, [1], [0])
    assert small.capacity == 40


def test_one_long_pass_gets_the_room_it_needs() -> None:
    cache = KVCache(NUM_LAYERS, CPU)
    tags = list(range(1000))
    run(cache, tags, tags)
    cache.commit(None, 1000)
    assert cache.capacity == 1000
    assert_committed(cache, tags)


def test_nbytes_counts_keys_and_values_of_every_layer() -> None:
    cache = KVCache(NUM_LAYERS, CPU, limit=40)
    assert cache.nbytes() == 0
    run(cache, [1], [0])
    assert cache.nbytes() == NUM_LAYERS * HEADS * 40 * (KEY_WIDTH + VALUE_WIDTH) * 8


def test_rollback_keeps_what_was_committed_and_frees_the_rest() -> None:
    cache = KVCache(NUM_LAYERS, CPU)
    run(cache, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    cache.commit(None, 5)
    cache.rollback(2)
    assert_committed(cache, [0, 1])
    run(cache, [7, 8], [2, 3])
    cache.commit(None, 2)
    assert_committed(cache, [0, 1, 7, 8])
    with pytest.raises(AssertionError, match="lengthen"):
        cache.rollback(5)


def test_draft_rows_are_overwritten_by_verification_and_never_committed() -> None:
    """A drafter writes slots from `length` on at its own pace; the pass that verifies starts there again."""
    cache = KVCache(NUM_LAYERS, CPU)
    run(cache, [0, 1], [0, 1])
    cache.commit(None, 2)
    run(cache, [90], [2])
    run(cache, [91, 92], [3, 3], start=3)
    assert cache.length == 2
    assert cache.positions[0, :5].tolist() == [0, 1, 2, 3, 3]
    tree_pass(cache, make_tree([-1, 0], [1, 2]), 10)
    assert cache.positions[0, :5].tolist() == [0, 1, 2, 3, 4]
    cache.commit(None, 2)
    assert_committed(cache, [0, 1, 10, 11])


def test_layers_that_were_never_run_hold_nothing() -> None:
    """A skipped attention writes no rows; commit and growth pass it by."""
    cache = KVCache(NUM_LAYERS, CPU)
    cache.begin(0, torch.tensor([0, 1, 1]))
    cache.layers[1].update(torch.ones(1, HEADS, 3, KEY_WIDTH), torch.ones(1, HEADS, 3, VALUE_WIDTH))
    cache.commit(torch.tensor([2]), 2)
    cache.begin(2, torch.arange(2, 400))
    assert cache.layers[0].keys is None
    assert cache.layers[1].keys.shape[2] == cache.capacity == 512


def test_transformers_is_told_the_rows_of_the_pass() -> None:
    cache = KVCache(NUM_LAYERS, CPU)
    run(cache, [0, 1, 2], [0, 1, 2])
    cache.commit(None, 3)
    cache.begin(3, torch.tensor([3, 4]))
    layer = cache.layers[0]
    assert isinstance(layer, SlotLayer)
    assert layer.get_seq_length() == cache.get_seq_length() == 3
    assert layer.get_mask_sizes(2) == (5, 0)


@torch.inference_mode()
def test_after_speculative_cycles_a_real_cache_equals_a_fresh_prefill(
    family_model: Callable[[str], PreTrainedModel],
) -> None:
    target, rng = Target(family_model("llama")), random.Random(5)
    cache, text = target.new_cache(extra_slots=16), [rng.randrange(VOCAB_SIZE)]
    for cycle in range(8):
        parents = [rng.randint(-1, node - 1) for node in range(cycle)]
        tree = make_tree(parents, rng.sample(range(VOCAB_SIZE), cycle))
        path = path_to(parents, cycle - 1)
        depth = torch.cat((torch.zeros(1, dtype=torch.int64), tree.depth))
        rows = torch.cat((torch.tensor(text[-1:]), tree.tokens))
        target.forward(rows, cache.length + depth, ancestor_mask(tree.parents), cache)
        cache.commit(cache.length + 1 + torch.tensor(path, dtype=torch.int64), len(path) + 1)
        text += [*tree.tokens[path].tolist(), rng.randrange(VOCAB_SIZE)]
    fresh, n = target.new_cache(extra_slots=16), len(text) - 1
    target.forward(torch.tensor(text[:-1]), torch.arange(n), target.causal(n), fresh)
    assert cache.length == n > 12
    for layer, expected in zip(cache.layers, fresh.layers, strict=True):
        torch.testing.assert_close(layer.keys[:, :, :n], expected.keys[:, :, :n], rtol=0, atol=1e-12)
        torch.testing.assert_close(layer.values[:, :, :n], expected.values[:, :, :n], rtol=0, atol=1e-12)
