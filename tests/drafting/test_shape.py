"""The shapes of a draft. A static tree fed to the growth code has exactly the nodes of its table."""

from __future__ import annotations

import pytest
import torch

from slipstream.core.rules import Candidates
from slipstream.core.tree import DraftTree
from slipstream.drafting.growth import Frontier, grow
from slipstream.drafting.published_trees import EAGLE_1, published_tree
from slipstream.drafting.shape import Auto, Chain, Dynamic, Shape, Static, sized
from slipstream.errors import InputError

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
    shape, expand = Static(EAGLE_1).cut(max_depth), Expander()
    tree = grow(expand, torch.tensor([7]), shape)
    wanted = {path for path in EAGLE_1 if len(path) <= max_depth}
    assert set(paths_of(tree)) == wanted
    assert tree.num_nodes == len(wanted) == shape.most_nodes
    assert tree.depth.tolist() == [len(path) for path in paths_of(tree)]
    assert sum(expand.rows) == shape.most_rows, "only nodes with children are run"


def test_nodes_are_run_under_their_own_ancestors():
    expand = Expander()
    grow(expand, torch.tensor([7]), Static(EAGLE_1))
    tokens, seen_by = [7], []
    for frontier in expand.frontiers[1:]:
        tokens += frontier.tokens.tolist()
        seen_by += [[tokens[i] for i in row.nonzero().squeeze(1).tolist()] for row in frontier.visible]
    inner = sorted({path[:-1] for path in EAGLE_1 if len(path) > 1}, key=lambda path: (len(path), path))
    assert seen_by == [[7, *(10 * (d + 1) + rank for d, rank in enumerate(path))] for path in inner]


def test_values_add_up_along_the_path():
    tree = grow(Expander(), torch.tensor([7]), Static(EAGLE_1))
    parent_value = torch.where(tree.parents >= 0, tree.log_value[tree.parents], 0.0)
    assert (tree.log_value < parent_value).all()


@pytest.mark.parametrize("paths", [[], [(0,), (1, 0)], [()]])
def test_a_table_with_orphans_is_refused(paths):
    with pytest.raises(InputError, match="static tree"):
        Static(paths)


# -- all shapes ----------------------------------------------------------------------------------------------------

SHAPES: dict[str, Shape] = {
    "chain:12": Chain(length=12),
    "chain": Chain(),
    "8x5x20": Dynamic(width=8, depth=5, total=20),
    "static": Static(published_tree("mc_sim_7b_63")),
    "static:zephyr_stage2": Static(published_tree("zephyr_stage2")),
    "auto:8x5x40": Auto(Dynamic(width=8, depth=5, total=40)),
    "auto": Auto(Dynamic(width=3, depth=2, total=5)),
}


@pytest.mark.parametrize("text", SHAPES)
def test_a_text_describes_a_shape(text):
    shape = Shape.parse(text, largest=Dynamic(width=3, depth=2, total=5))
    assert type(shape) is type(SHAPES[text])
    for name in ("kind", "depth", "most_rows", "most_nodes", "fewest_nodes", "level_rows"):
        assert getattr(shape, name) == getattr(SHAPES[text], name), name
    assert shape.options() == SHAPES[text].options()


@pytest.mark.parametrize("text", ["", "8x5", "8x5x20x1", "chain:", "chain:long", "auto:", "auto:8", "automatic"])
def test_a_text_that_describes_none_is_refused(text):
    with pytest.raises(InputError, match="no shape of a draft"):
        Shape.parse(text)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("max_depth", [1, 2, 99])
def test_a_cut_shape_is_no_deeper_and_no_larger(shape, max_depth):
    cut = shape.cut(max_depth)
    assert cut.depth == min(shape.depth, max_depth)
    assert (cut.kind, cut.most_rows <= shape.most_rows) == (shape.kind, True)
    assert cut.fewest_nodes <= cut.most_nodes <= shape.most_nodes


@pytest.mark.parametrize(("width", "depth", "total"), [(2, 3, 99), (3, 2, 4), (4, 1, 9), (1, 5, 5)])
def test_trees_are_as_large_as_the_shape_says(width, depth, total):
    shape, expand = Dynamic(width=width, depth=depth, total=total), Expander()
    tree = grow(expand, torch.tensor([7]), shape)
    assert tree.num_nodes == shape.most_nodes == shape.fewest_nodes
    assert len(expand.rows) == shape.levels(tree.num_nodes)
    assert sum(expand.rows) <= shape.most_rows
    assert max(expand.rows) <= shape.level_rows


@pytest.mark.parametrize("shape", [Dynamic(width=2, depth=3, total=5), Auto(Dynamic(width=2, depth=3, total=5))])
def test_options_ask_for_the_same_dynamic_tree(shape):
    found = sized(shape.options(), Dynamic())
    assert (type(found), found.options()) == (type(shape), shape.options())


def test_a_total_that_is_neither_a_number_nor_auto_is_refused():
    for total in ("many", "auto:", "auto:x"):
        with pytest.raises(InputError, match="tree total is"):
            sized({"total": total}, Dynamic())
