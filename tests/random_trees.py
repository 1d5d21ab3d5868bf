"""Random trees and distributions for property tests, with the plain-Python relations they are checked against."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from slipstream.core.tree import DraftTree, empty_tree


def make_tree(parents: list[int], tokens: list[int], log_values: list[float] | None = None) -> DraftTree:
    """A tree from plain lists."""
    if not parents:
        return empty_tree()
    depth = [len(path_to(parents, node)) for node in range(len(parents))]
    values = torch.tensor(log_values if log_values is not None else [0.0] * len(parents))
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), torch.tensor(depth), values, max(depth))


@st.composite
def trees(draw: st.DrawFn, max_nodes: int = 12, vocab_size: int = 8) -> DraftTree:
    """A tree of any shape, unique tokens among siblings, values that never grow along a path (equal ones included)."""
    parents: list[int] = []
    tokens: list[int] = []
    values: list[float] = []
    for node in range(draw(st.integers(0, max_nodes))):
        free = {p: vocab_size - parents.count(p) for p in range(-1, node)}
        parent = draw(st.sampled_from([p for p, count in free.items() if count]))
        taken = {tokens[i] for i in range(node) if parents[i] == parent}
        tokens.append(draw(st.sampled_from([t for t in range(vocab_size) if t not in taken])))
        above = values[parent] if parent >= 0 else 0.0
        values.append(above + draw(st.sampled_from([0.0, -0.25, -0.5, -1.0])))
        parents.append(parent)
    return make_tree(parents, tokens, values)


def distributions(vocab_size: int) -> st.SearchStrategy[list[float]]:
    """Probabilities with zeros and ties among them."""
    weights = st.lists(st.integers(0, 6), min_size=vocab_size, max_size=vocab_size)
    return weights.filter(any).map(lambda ws: [w / sum(ws) for w in ws])


def rows(*distributions: list[float]) -> Tensor:
    """Distributions as rows of a float64 tensor."""
    return torch.tensor(distributions, dtype=torch.float64)


def path_to(parents: list[int], node: int) -> list[int]:
    """The nodes from the root's child down to `node`."""
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


def token_paths(tree: DraftTree) -> list[tuple[int, ...]]:
    """What each node stands for: its tokens from the root down."""
    parents, tokens = tree.parents.tolist(), tree.tokens.tolist()
    return [tuple(tokens[i] for i in path_to(parents, node)) for node in range(tree.num_nodes)]
