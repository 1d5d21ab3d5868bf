from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from random_trees import make_tree, path_to, trees
from slipstream.core.tree import DraftTree, ancestor_mask
from slipstream.errors import UnsupportedTargetError
from slipstream.target.cache import KVCache
from slipstream.target.masks import MaskPlan, Reach, layer_reaches

CPU = torch.device("cpu")
FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"

reaches = st.one_of(
    st.just(Reach()),
    st.builds(Reach, window=st.integers(1, 9)),
    st.builds(Reach, chunk=st.integers(1, 9)),
)


def cache_with(length: int) -> KVCache:
    """A cache of `length` committed tokens (no layers: masks read positions alone)."""
    cache = KVCache(0, CPU)
    cache.begin(0, torch.arange(length))
    cache.commit(None, length)
    return cache


def built(plan: MaskPlan, tree: DraftTree, length: int) -> Tensor | dict[str, Tensor]:
    """The masks of the pass that verifies `tree` after `length` cached tokens."""
    cache = cache_with(length)
    positions = length + torch.cat((torch.zeros(1, dtype=torch.int64), tree.depth))
    cache.begin(length, positions)
    return plan.build(ancestor_mask(tree.parents)[None], positions[None], cache)


def seen_by_plain_decoding(reach: Reach, tree: DraftTree, length: int) -> list[list[bool]]:
    """Per-path rule: the text of a row is prefix, root, path; what its last token sees there, put back into slots."""
    parents = tree.parents.tolist()
    mask = []
    for row in range(tree.num_nodes + 1):
        text = [*range(length + 1), *(length + 1 + node for node in path_to(parents, row - 1))]  # slots in text order
        last = len(text) - 1
        if reach.window is not None:
            text = text[max(0, last - reach.window + 1) :]
        if reach.chunk is not None:
            text = text[last // reach.chunk * reach.chunk :]
        mask.append([slot in text for slot in range(length + 1 + tree.num_nodes)])
    return mask


@settings(max_examples=200, deadline=None)
@given(reaches, trees(max_nodes=9), st.integers(0, 12))
def test_every_node_sees_what_it_would_in_plain_decoding(reach: Reach, tree: DraftTree, length: int) -> None:
    mask = built(MaskPlan({FULL: reach}, as_dict=False, dtype=torch.float32), tree, length)
    assert mask.shape == (1, 1, tree.num_nodes + 1, length + 1 + tree.num_nodes)
    assert mask[0, 0].eq(0).tolist() == seen_by_plain_decoding(reach, tree, length)


@settings(max_examples=60, deadline=None)
@given(reaches, st.lists(st.tuples(trees(max_nodes=5), st.integers(0, 9)), min_size=2, max_size=3), st.integers(0, 3))
def test_sequences_of_a_batch_have_the_masks_that_each_has_alone(
    reach: Reach, several: list[tuple[DraftTree, int]], more: int
) -> None:
    """Trees of one size after texts of different lengths, in a context that may be larger than need be."""
    rows = 1 + max(tree.num_nodes for tree, _ in several)
    padded = [tree.padded(rows) for tree, _ in several]
    lengths = [length for _, length in several]
    plan = MaskPlan({FULL: reach}, as_dict=False, dtype=torch.float32)
    both = KVCache(0, CPU, batch=len(several))
    both.begin(0, torch.arange(max(lengths)).expand(len(several), -1))
    both.commit(None, lengths)
    visible = torch.stack([ancestor_mask(tree.parents) for tree in padded])
    depth = torch.stack([torch.cat((torch.zeros(1, dtype=torch.int64), tree.depth)) for tree in padded])
    positions = both.lengths[:, None] + depth
    both.begin(both.length, positions, both.length + rows + more)
    masks = plan.build(visible, positions, both)
    assert masks.shape == (len(several), 1, rows, both.length + rows + more)
    for mask, tree, length in zip(masks, padded, lengths, strict=True):
        alone = built(plan, tree, length)
        assert torch.equal(mask[0, :, : length + rows], alone[0, 0])
        assert not mask[0, :, length + rows :].eq(0).any(), "nobody sees what lies behind"


def test_a_window_by_slots_would_be_seen() -> None:
    """Siblings share a position, so the last slot lies nearer to the prefix than its slot number says."""
    tree = make_tree([-1, -1, -1, -1], [1, 2, 3, 4])
    expected = seen_by_plain_decoding(Reach(window=3), tree, 6)[-1]
    by_slot = [bool(seen and 10 - slot < 3) for slot, seen in enumerate([*[True] * 7, False, False, False, True])]
    assert [slot for slot, seen in enumerate(expected) if seen] == [5, 6, 10]
    assert by_slot != expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masks_are_additive_in_the_models_dtype(dtype: torch.dtype) -> None:
    mask = built(MaskPlan({FULL: Reach()}, as_dict=False, dtype=dtype), make_tree([-1, -1], [1, 2]), 2)
    low = torch.finfo(dtype).min
    assert mask.dtype == dtype
    assert mask[0, 0].tolist() == [[0, 0, 0, low, low], [0, 0, 0, 0, low], [0, 0, 0, low, 0]]


def test_a_model_with_layer_types_gets_one_mask_for_each() -> None:
    plan = MaskPlan({FULL: Reach(), SLIDING: Reach(window=2)}, as_dict=True, dtype=torch.float32)
    tree = make_tree([-1, 0], [1, 2])
    masks = built(plan, tree, 3)
    assert set(masks) == {FULL, SLIDING}
    for kind, mask in masks.items():
        assert mask[0, 0].eq(0).tolist() == seen_by_plain_decoding(plan.reaches[kind], tree, 3)
    assert not torch.equal(masks[FULL], masks[SLIDING])


def test_a_drafting_level_sees_the_rows_it_is_told_of() -> None:
    """The second level of a draft: its rows start beyond `length`, and `visible` covers the level before."""
    cache = cache_with(4)
    cache.begin(4, torch.tensor([4]))
    positions = torch.tensor([5, 5])
    cache.begin(5, positions)
    visible = torch.tensor([[True, True, False], [True, False, True]])
    plan = MaskPlan({FULL: Reach(window=3)}, as_dict=False, dtype=torch.float32)
    mask = plan.build(visible[None], positions[None], cache)
    assert [row.nonzero().flatten().tolist() for row in mask[0, 0].eq(0)] == [[3, 4, 5], [3, 4, 6]]


def config(**settings: object) -> SimpleNamespace:
    return SimpleNamespace(_name_or_path="", model_type="tiny", **settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {FULL: Reach()}),
        ({"sliding_window": None}, {FULL: Reach()}),
        ({"sliding_window": 8}, {FULL: Reach(window=8)}),
        ({"sliding_window": 8, "use_sliding_window": False}, {FULL: Reach()}),
        (
            {"sliding_window": 8, "layer_types": [SLIDING, FULL, SLIDING]},
            {SLIDING: Reach(window=8), FULL: Reach()},
        ),
        ({"attention_chunk_size": 4, "layer_types": [CHUNKED, FULL]}, {CHUNKED: Reach(chunk=4), FULL: Reach()}),
        ({"sliding_window": 8, "layer_types": [FULL, FULL]}, {FULL: Reach()}),
    ],
)
def test_reaches_are_read_off_the_config(settings: dict[str, object], expected: dict[str, Reach]) -> None:
    assert layer_reaches(config(**settings)) == expected


def test_a_layer_type_that_cannot_be_rolled_back_is_refused() -> None:
    with pytest.raises(UnsupportedTargetError, match="layers of type 'linear_attention'"):
        layer_reaches(config(layer_types=[FULL, "linear_attention"]))


@pytest.mark.parametrize("takes_dict", [True, False])
def test_masks_come_as_a_dict_where_the_model_takes_one(takes_dict: bool) -> None:
    plan = MaskPlan.find(config(layer_types=[FULL, FULL]), torch.float32, lambda masks: takes_dict)
    assert plan.as_dict is takes_dict


def test_a_model_without_layer_types_is_never_offered_a_dict() -> None:
    assert not MaskPlan.find(config(sliding_window=8), torch.float32, lambda masks: True).as_dict


def test_mixed_attention_that_takes_only_one_mask_is_refused() -> None:
    mixed = config(layer_types=[FULL, SLIDING], sliding_window=8)
    with pytest.raises(UnsupportedTargetError, match="mixes attention types"):
        MaskPlan.find(mixed, torch.float32, lambda masks: False)
