"""A static tree fed to the growth code has exactly the nodes of its table."""

from __future__ import annotations

import pytest
import torch

from slipstream.core.rules import Candidates
from slipstream.core.tree import DraftTree
from slipstream.drafting.growth import Frontier, TreeShape, grow
from slipstream.drafting.static_tree import EAGLE_1, StaticTree
from slipstream.errors import InputError

CPU = torch.device("cpu")
VOCAB = 50


class Expander:
    """Children by rank: token = 10 * depth + rank, and confidences that fall with the rank. Counts its rows."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.frontiers: list[Frontier] = []

    def __call__(self, frontier: Frontier, k: int) -> Candidates:
        w = frontier.tokens.shape[0]
        self.rows.append(w)
        self.frontiers.append(frontier)
        ranks = torch.arange(k).expand(w, k)
        noise = torch.rand(w, k, generator=torch.Generator().manual_seed(frontier.depth))
        return Candidates(10 * (frontier.depth + 1) + ranks, -0.5 * ranks - noise)


def paths_of(tree: DraftTree) -> list[tuple[int, ...]]:
    """Each node as its ranks from the root, by the tokens that `Expander` gives."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token % 10))
    return paths


def test_eagle_1_tree_is_the_published_table():
    assert len(EAGLE_1) == len(set(EAGLE_1)) == 25
    assert [sum(len(path) == depth for path in EAGLE_1) for depth in range(1, 6)] == [4, 8, 8, 3, 2]


@pytest.mark.parametrize("max_depth", [1, 2, 3, 4, 5, 9])
def test_growth_fills_the_table(max_depth):
    shape, expand = StaticTree(EAGLE_1, CPU).cut(max_depth), Expander()
    tree = grow(expand, torch.tensor([7]), shape)
    wanted = {path for path in EAGLE_1 if len(path) <= max_depth}
    assert set(paths_of(tree)) == wanted
    assert tree.num_nodes == len(wanted) == shape.total
    assert tree.depth.tolist() == [len(path) for path in paths_of(tree)]
    assert sum(expand.rows) == shape.num_rows, "only nodes with children are run"


def test_nodes_are_run_under_their_own_ancestors():
    expand = Expander()
    grow(expand, torch.tensor([7]), StaticTree(EAGLE_1, CPU))
    tokens, seen_by = [7], []
    for frontier in expand.frontiers[1:]:
        tokens += frontier.tokens.tolist()
        seen_by += [[tokens[i] for i in row.nonzero().squeeze(1).tolist()] for row in frontier.visible]
    inner = sorted({path[:-1] for path in EAGLE_1 if len(path) > 1}, key=lambda path: (len(path), path))
    assert seen_by == [[7, *(10 * (d + 1) + rank for d, rank in enumerate(path))] for path in inner]


def test_values_add_up_along_the_path():
    tree = grow(Expander(), torch.tensor([7]), StaticTree(EAGLE_1, CPU))
    parent_value = torch.where(tree.parents >= 0, tree.log_value[tree.parents], 0.0)
    assert (tree.log_value < parent_value).all()


@pytest.mark.parametrize("paths", [[], [(0,), (1, 0)], [()]])
def test_a_table_with_orphans_is_refused(paths):
    with pytest.raises(InputError, match="static tree"):
        StaticTree(paths, CPU)


def test_without_rerank_every_level_keeps_its_chosen_nodes():
    tree = grow(Expander(), torch.tensor([7]), TreeShape(width=3, depth=4, total=5, rerank=False))
    assert torch.bincount(tree.depth).tolist() == [0, 3, 3, 3, 3]
    assert set(tree.parents.tolist()) <= set(range(-1, 9))


def test_without_value_the_surest_step_is_run_next():
    def expand(frontier: Frontier, k: int) -> Candidates:
        log_confidence = {0: [[-0.1, -3.0]], 1: [[-1.0, -1.1], [-0.2, -0.3]], 2: [[-1.0, -2.0]] * 2}[frontier.depth]
        return Candidates(torch.tensor([[1, 2]] * frontier.tokens.shape[0]), torch.tensor(log_confidence))

    shapes = {by_value: TreeShape(width=2, depth=3, total=99, by_value=by_value) for by_value in (True, False)}
    parents = {by_value: grow(expand, torch.tensor([7]), shape).parents for by_value, shape in shapes.items()}
    assert sorted(set(parents[True][6:].tolist())) == [2, 3], "children of the likelier first token"
    assert sorted(set(parents[False][6:].tolist())) == [4, 5], "the surest steps, after an unlikely first token"
