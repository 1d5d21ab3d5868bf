"""The dynamic tree against a slow twin: EAGLE-2's expansion and reranking over a plain Python list of nodes."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from random_trees import token_paths
from slipstream.core.rules import Candidates
from slipstream.core.tree import DraftTree, ancestor_mask, chain
from slipstream.drafting.growth import Frontier, grow, rerank
from slipstream.drafting.shape import Dynamic
from slipstream.errors import InputError

Path = tuple[int, ...]

# Certain children (0), ones so nearly certain that float32 loses them under a deep parent, ties, and impossible ones.
CONFIDENCES = [0.0, -1e-12, -1e-9, -0.25, -0.5, -0.5, -1.0, -3.0, -math.inf]


@dataclass(frozen=True)
class Drafting:
    """A drafter whose children and confidences are fixed random functions of the path."""

    seed: int
    vocab_size: int
    confidences: Sequence[float]

    def children(self, path: Path, k: int) -> list[tuple[int, float]]:
        """(token, log-confidence) of the k best children, best first."""
        rng, count = random.Random(f"{self.seed}{path}"), self.vocab_size
        tokens = rng.sample(range(count), count)
        return list(zip(tokens, sorted(rng.choices(self.confidences, k=count), reverse=True), strict=True))[:k]


class Recorder:
    """`expand` for `grow`: answers from a Drafting, and notes what every row was and might see."""

    def __init__(self, drafting: Drafting) -> None:
        self.drafting = drafting
        self.paths: list[Path] = []  # of each row run so far
        self.visible: list[set[Path]] = []
        self.widths: list[int] = []

    def __call__(self, frontier: Frontier, k: int) -> Candidates:
        parents = [self.paths[row] if self.paths else () for row in frontier.parent_rows.tolist()]
        new = [(*parent, int(t)) if frontier.depth else () for parent, t in zip(parents, frontier.tokens, strict=True)]
        assert all(len(path) == frontier.depth for path in new)
        self.paths += new
        self.visible += [{self.paths[i] for i in row.nonzero().flatten().tolist()} for row in frontier.visible]
        self.widths.append(len(new))
        k = min(k, self.drafting.vocab_size)
        children = [self.drafting.children(path, k) for path in new]
        return Candidates(
            torch.tensor([[token for token, _ in row] for row in children]),
            torch.tensor([[confidence for _, confidence in row] for row in children]),
        )


def twin(drafting: Drafting, shape: Dynamic) -> list[tuple[Path, float]]:
    """(path, value) of the nodes kept, in the order of their creation. Values add up in float32, as the paper's."""
    nodes: list[tuple[Path, np.float32]] = []
    frontier = [((), np.float32(0.0))]
    for _ in range(shape.depth):
        level = [
            ((*path, token), np.float32(value + np.float32(confidence)))
            for path, value in frontier
            for token, confidence in drafting.children(path, min(shape.width, drafting.vocab_size))
        ]
        nodes += level
        frontier = sorted(level, key=lambda node: -node[1])[: shape.width]  # sorted is stable: ties to the earlier
    ranked = sorted(range(len(nodes)), key=lambda i: (-nodes[i][1], len(nodes[i][0]), i))
    return [(nodes[i][0], float(nodes[i][1])) for i in sorted(ranked[: shape.total])]


shapes = st.builds(Dynamic, width=st.integers(1, 5), depth=st.integers(1, 5), total=st.integers(1, 40))
draftings = st.builds(
    Drafting,
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(1, 9),  # often below the width
    confidences=st.lists(st.sampled_from(CONFIDENCES), min_size=1, max_size=5),
)


@settings(max_examples=150, deadline=None)
@given(draftings, shapes)
def test_the_tree_equals_the_slow_twins(drafting: Drafting, shape: Dynamic) -> None:
    tree = grow(Recorder(drafting), torch.tensor([3]), shape)
    assert list(zip(token_paths(tree), tree.log_value.tolist(), strict=True)) == twin(drafting, shape)


@settings(max_examples=150, deadline=None)
@given(draftings, shapes)
def test_the_tree_is_connected_unique_and_within_its_size(drafting: Drafting, shape: Dynamic) -> None:
    tree = grow(Recorder(drafting), torch.tensor([3]), shape)
    parents = tree.parents.tolist()
    assert all(-1 <= parent < node for node, parent in enumerate(parents))
    assert tree.depth.tolist() == [tree.depth[parent].item() + 1 if parent >= 0 else 1 for parent in parents]
    assert len(set(token_paths(tree))) == tree.num_nodes <= shape.total
    assert tree.max_depth == shape.depth
    above = torch.cat((tree.log_value, torch.zeros(1)))[tree.parents]
    assert tree.log_value.le(above).all()


@settings(max_examples=80, deadline=None)
@given(draftings, shapes)
def test_every_row_run_sees_its_ancestors_and_itself_and_nothing_else(drafting: Drafting, shape: Dynamic) -> None:
    recorder = Recorder(drafting)
    grow(recorder, torch.tensor([3]), shape)
    for path, seen in zip(recorder.paths, recorder.visible, strict=True):
        assert seen == {path[:depth] for depth in range(len(path) + 1)}
    assert len(recorder.paths) <= shape.most_rows
    assert len(recorder.widths) == shape.depth  # one pass a level, none for the last


def test_rows_run_are_exactly_those_announced_where_the_vocabulary_is_large_enough() -> None:
    shape = Dynamic(width=4, depth=3, total=10)
    recorder = Recorder(Drafting(1, 9, CONFIDENCES))
    grow(recorder, torch.tensor([3]), shape)
    assert recorder.widths == [1, 4, 4]
    assert len(recorder.paths) == shape.most_rows


def test_a_level_runs_no_node_that_cannot_have_a_kept_child() -> None:
    """Three nodes: of the first level two may have one, of the second one, and no level needs more children."""
    recorder = Recorder(Drafting(1, 9, CONFIDENCES))
    asked: list[int] = []

    def expand(frontier: Frontier, k: int) -> Candidates:
        asked.append(k)
        return recorder(frontier, k)

    grow(expand, torch.tensor([3]), Dynamic(width=5, depth=3, total=3))
    assert recorder.widths == [1, 2, 1]
    assert asked == [3, 2, 1]


def test_certain_children_never_displace_their_parents() -> None:
    """Children with confidence 1 have their parent's value exactly; at the cut the parent must win the tie.

    EAGLE-2's code accumulates in the model's dtype and keeps such a child without its parent in fp16.
    """
    for total in range(1, 15):
        tree = grow(Recorder(Drafting(0, 9, [0.0])), torch.tensor([3]), Dynamic(width=3, depth=4, total=total))
        assert tree.num_nodes == total
        paths = set(token_paths(tree))
        assert all(path[:-1] in paths or len(path) == 1 for path in paths)
        assert tree.depth.tolist() == sorted(tree.depth.tolist())
        assert tree.depth.max() == (1 if total <= 3 else 2 if total <= 12 else 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_are_float32_whatever_the_drafter_computes_in(dtype: torch.dtype) -> None:
    """A near-certain child (0.9995) under a parent of value e**-8 stays apart from it: in fp16 the sum is lost."""

    def expand(frontier: Frontier, k: int) -> Candidates:
        confidence = math.log(0.9995) if frontier.depth else -8.0
        row = torch.tensor([confidence, -math.inf], dtype=dtype)
        return Candidates(torch.tensor([[0, 1]]).expand(len(frontier.tokens), 2), row.expand(len(frontier.tokens), 2))

    tree = grow(expand, torch.tensor([3]), Dynamic(width=2, depth=3, total=4))
    assert tree.log_value.dtype == torch.float32
    values = dict(zip(token_paths(tree), tree.log_value.tolist(), strict=True))
    assert values[0,] > values[0, 0] > values[0, 0, 0]
    assert torch.tensor(-8.0, dtype=torch.float16) + math.log(0.9995) == -8.0  # what the trap is made of


def test_a_tree_of_depth_one_is_the_roots_best_children() -> None:
    recorder = Recorder(Drafting(4, 9, [-0.5, -1.0, -2.0]))
    tree = grow(recorder, torch.tensor([3]), Dynamic(width=5, depth=1, total=3))
    assert token_paths(tree) == [(token,) for token, _ in recorder.drafting.children((), 5)[:3]]
    assert recorder.widths == [1]


def test_a_tree_of_width_one_is_a_chain() -> None:
    tree = grow(Recorder(Drafting(4, 9, [-0.5])), torch.tensor([3]), Dynamic(width=1, depth=6, total=99))
    assert torch.equal(ancestor_mask(tree.parents), ancestor_mask(chain(tree.tokens).parents))
    assert tree.log_value.tolist() == [-0.5 * depth for depth in range(1, 7)]


def test_every_candidate_is_kept_where_the_budget_allows() -> None:
    tree = grow(Recorder(Drafting(4, 9, CONFIDENCES)), torch.tensor([3]), Dynamic(width=3, depth=3, total=1000))
    assert tree.num_nodes == 3 + 9 + 9


@functools.cache
def candidates() -> DraftTree:
    return grow(Recorder(Drafting(7, 9, CONFIDENCES)), torch.tensor([3]), Dynamic(width=3, depth=3, total=1000))


@given(st.integers(1, 25))
def test_reranking_keeps_the_highest_values(total: int) -> None:
    kept = rerank(candidates(), total)
    assert kept.num_nodes == min(total, candidates().num_nodes)
    best = sorted(candidates().log_value.tolist(), reverse=True)[:total]
    assert sorted(kept.log_value.tolist(), reverse=True) == best


def test_a_cut_shape_differs_in_depth_alone() -> None:
    shape = Dynamic(width=3, depth=5, total=20)
    assert shape.cut(2) == Dynamic(width=3, depth=2, total=20)
    assert shape.cut(9) == shape
    assert shape.most_rows == 1 + 3 * 4


@pytest.mark.parametrize("name", ["width", "depth", "total"])
def test_a_shape_below_one_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"tree {name} is 0; it must be at least 1"):
        Dynamic(**{name: 0})


@pytest.mark.parametrize("name", ["width", "depth", "total"])
def test_a_tree_that_would_fill_the_memory_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"tree {name} is 1000000; it must be at most"):
        Dynamic(**{name: 1_000_000})
