from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from random_trees import make_tree, path_to, token_paths, trees
from slipstream.core.tree import DraftTree, ancestor_mask, chain, earlier_siblings, empty_tree, select_nodes


def naive_ancestor_mask(parents: list[int]) -> list[list[bool]]:
    """Row 0 and column 0 are the root; every row sees the root, its path, and nothing else."""
    seen = [{0}] + [{0} | {i + 1 for i in path_to(parents, node)} for node in range(len(parents))]
    return [[column in row for column in range(len(parents) + 1)] for row in seen]


def assert_well_formed(tree: DraftTree) -> None:
    parents = tree.parents.tolist()
    assert all(-1 <= parent < node for node, parent in enumerate(parents))
    assert tree.depth.tolist() == [len(path_to(parents, node)) for node in range(tree.num_nodes)]
    assert len(set(token_paths(tree))) == tree.num_nodes
    assert all(depth <= tree.max_depth for depth in tree.depth.tolist())


@given(trees())
def test_mask_is_the_ancestor_relation(tree: DraftTree) -> None:
    assert ancestor_mask(tree.parents).tolist() == naive_ancestor_mask(tree.parents.tolist())


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 9, 63, 64, 65])
def test_mask_of_a_chain_is_causal_at_every_length(length: int) -> None:
    mask = ancestor_mask(chain(torch.zeros(length, dtype=torch.int64)).parents)
    assert torch.equal(mask, torch.ones(length + 1, length + 1, dtype=torch.bool).tril())


@given(trees())
def test_every_path_runs_from_root_to_node_one_depth_at_a_time(tree: DraftTree) -> None:
    mask = ancestor_mask(tree.parents)
    depth = torch.cat((torch.zeros(1, dtype=torch.int64), tree.depth))
    for row in range(tree.num_nodes + 1):
        assert sorted(depth[mask[row]].tolist()) == list(range(int(depth[row]) + 1))


@given(trees())
def test_earlier_siblings_share_the_parent_and_stand_before(tree: DraftTree) -> None:
    parents = tree.parents.tolist()
    naive = [[j < i and parents[j] == parents[i] for j in range(len(parents))] for i in range(len(parents))]
    assert earlier_siblings(tree.parents).tolist() == naive


@given(trees(), st.data())
def test_selected_nodes_keep_their_paths_and_values(tree: DraftTree, data: st.DataObject) -> None:
    parents = tree.parents.tolist()
    wanted = data.draw(st.sets(st.integers(0, tree.num_nodes - 1))) if parents else set()
    kept = sorted({node for leaf in wanted for node in path_to(parents, leaf)})
    part = select_nodes(tree, torch.tensor(kept, dtype=torch.int64))
    assert_well_formed(part)
    assert token_paths(part) == [token_paths(tree)[node] for node in kept]
    assert part.log_value.tolist() == [tree.log_value[node].item() for node in kept]


@given(trees(), st.integers(0, 14))
def test_cut_keeps_exactly_the_nodes_of_allowed_depth(tree: DraftTree, max_depth: int) -> None:
    part = tree.cut(max_depth)
    assert_well_formed(part)
    assert part.max_depth <= max_depth
    assert token_paths(part) == [path for path in token_paths(tree) if len(path) <= max_depth]


@given(trees(), st.integers(0, 14))
def test_first_keeps_exactly_the_leading_nodes(tree: DraftTree, count: int) -> None:
    part = tree.first(count)
    assert_well_formed(part)
    assert token_paths(part) == token_paths(tree)[:count]


def test_a_selected_part_keeps_the_rows_of_q() -> None:
    q = torch.eye(4)
    part = chain(torch.arange(4), q=q).cut(3).first(2)
    assert part.q is not None
    assert torch.equal(part.q, q[:2])


def test_a_chain_sums_its_log_confidences() -> None:
    tree = chain(torch.tensor([5, 5, 2]), torch.tensor([-0.5, -0.25, -1.0]))
    assert_well_formed(tree)
    assert token_paths(tree) == [(5,), (5, 5), (5, 5, 2)]
    assert tree.log_value.tolist() == [-0.5, -0.75, -1.75]
    assert chain(torch.tensor([5, 5])).log_value.tolist() == [0.0, 0.0]


def test_an_empty_tree_is_the_root_alone() -> None:
    tree = empty_tree()
    assert_well_formed(tree)
    assert ancestor_mask(tree.parents).tolist() == [[True]]
    assert earlier_siblings(tree.parents).shape == (0, 0)
    assert tree.cut(0).num_nodes == tree.first(0).num_nodes == chain(tree.tokens).num_nodes == 0


def test_a_leak_between_siblings_would_be_seen() -> None:
    """The naive relation is strict: one wrong entry, in either direction, differs from it."""
    tree = make_tree([-1, -1, 0], [1, 2, 3])
    mask, naive = ancestor_mask(tree.parents), naive_ancestor_mask(tree.parents.tolist())
    for row in range(4):
        for column in range(4):
            mask[row, column] ^= True
            assert mask.tolist() != naive
            mask[row, column] ^= True


@given(trees(), st.integers(0, 9))
def test_nodes_that_fill_a_tree_up_see_themselves_alone(tree: DraftTree, more: int) -> None:
    n = tree.num_nodes
    padded = tree.padded(1 + n + more)
    assert padded.num_nodes == n + more
    assert padded.max_depth == tree.max_depth
    for name in ("tokens", "parents", "depth", "log_value"):
        assert torch.equal(getattr(padded, name)[:n], getattr(tree, name)), name
    mask, own = ancestor_mask(padded.parents), torch.eye(1 + n + more, dtype=torch.bool)
    assert torch.equal(mask[: n + 1, : n + 1], ancestor_mask(tree.parents))
    assert torch.equal(mask[n + 1 :], own[n + 1 :])
    assert not mask[: n + 1, n + 1 :].any()
    assert torch.equal(earlier_siblings(padded.parents)[:n, :n], earlier_siblings(tree.parents))
    assert not earlier_siblings(padded.parents)[n:].any()


def test_a_tree_is_never_padded_to_fewer_rows() -> None:
    with pytest.raises(AssertionError, match="fewer rows"):
        chain(torch.tensor([1, 2])).padded(2)
