"""The dynamic draft tree of EAGLE-2 (arXiv 2406.16858, sections 4.1 and 4.2), for every drafter that has a model.

Expansion: level by level, the `width` nodes of highest value (product of confidences along the path; fewer where no
more can have a child in the end) are run together through the drafter and get their best children attached. Reranking:
of all nodes ever attached, the `total` of highest value become the draft. A node's value never exceeds its parent's and
ties go to the shallower, then the earlier node, so the choice is always connected. Shapes depend on (width, depth,
total) alone, and nothing waits for the device.

Which nodes are run next and which are kept in the end is the shape's part (`shape.py`): a dynamic one goes by values, a
static one answers both from a table.

Rows: the drafter runs the root as row 0, then at most `width` rows a level; `Frontier.visible` says which rows each new
row may attend to, so a drafter with a KV cache writes row r to its r-th draft slot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from slipstream.core.rules import Candidates
from slipstream.core.tree import DraftTree, select_nodes


class Growing(Protocol):
    """What a tree grows by: a tree's shape. Its answers may depend on values, but their sizes may not."""

    @property
    def depth(self) -> int:
        """Levels below the root."""

    def num_children(self, depth: int) -> int:
        """Children to attach to each node that was run, at this depth (1, 2, ...)."""

    def choose(self, level: DraftTree, confidence: Tensor) -> Tensor:
        """[w] indices of the nodes of a new level to run next. confidence: [nodes] of each under its parent, log."""

    def keep(self, tree: DraftTree, chosen: Tensor) -> DraftTree:
        """The draft. tree: all nodes, shallower first; chosen: indices of those that `choose` picked, all levels."""


@dataclass(frozen=True, slots=True)
class Frontier:
    """Nodes to run through the drafter in one pass, all of one depth."""

    tokens: Tensor  # [w] int64
    depth: int  # 0 for the root
    parent_rows: Tensor  # [w] int64, the row of each node's parent among the rows already run (the root's own: 0)
    visible: Tensor  # [w, rows run before + w] bool, the rows each node may attend to, itself included


Expand = Callable[[Frontier, int], Candidates]
"""Runs a frontier and proposes k children per node: (frontier, k) -> Candidates with [w, k] tensors."""


def grow(expand: Expand, root: Tensor, shape: Growing) -> DraftTree:
    """Grow a tree of `shape` under `root` ([1] int64)."""
    device = root.device
    frontier = Frontier(root, 0, root.new_zeros(1), torch.ones(1, 1, dtype=torch.bool, device=device))
    visible = frontier.visible  # [rows, rows] bool, of all rows run so far
    nodes = root.new_full((1,), -1)  # [w] the frontier's node indices, -1 for the root
    path_values = torch.zeros(1, device=device)  # [w] log-values of the frontier
    levels: list[DraftTree] = []
    chosen: list[Tensor] = []
    num_nodes = 0
    for depth in range(1, shape.depth + 1):
        children = expand(frontier, shape.num_children(depth))  # [w, k]
        levels.append(_attach(children, nodes, path_values, depth))
        best = shape.choose(levels[-1], children.log_confidence.flatten())  # [w]
        chosen.append(num_nodes + best)
        if depth == shape.depth:
            break
        first_row = visible.shape[0] - frontier.tokens.shape[0]
        parent_rows = first_row + best // children.tokens.shape[1]
        own = torch.eye(best.shape[0], dtype=torch.bool, device=device)
        seen = torch.cat((visible[parent_rows], own), dim=1)  # [w, rows + w]
        frontier = Frontier(levels[-1].tokens[best], depth, parent_rows, seen)
        visible = torch.cat((torch.nn.functional.pad(visible, (0, best.shape[0])), seen))
        nodes, path_values = chosen[-1], levels[-1].log_value[best]
        num_nodes += levels[-1].num_nodes
    return shape.keep(_join(levels), torch.cat(chosen))


def rerank(tree: DraftTree, total: int) -> DraftTree:
    """The `total` nodes of highest value. `tree` must list shallower nodes first: a stable sort then breaks ties."""
    if total >= tree.num_nodes:
        return tree
    kept = tree.log_value.sort(descending=True, stable=True).indices[:total].sort().values  # [total]
    return select_nodes(tree, kept)


def _attach(children: Candidates, parents: Tensor, path_values: Tensor, depth: int) -> DraftTree:
    """One level of nodes: the k children of each of w parents, in order."""
    k = children.tokens.shape[1]
    values = path_values[:, None] + children.log_confidence.float()  # [w, k]
    tokens = children.tokens.flatten()  # [w * k]
    return DraftTree(
        tokens, parents.repeat_interleave(k), torch.full_like(tokens, depth), values.flatten(), max_depth=depth
    )


def _join(levels: list[DraftTree]) -> DraftTree:
    return DraftTree(
        torch.cat([level.tokens for level in levels]),
        torch.cat([level.parents for level in levels]),
        torch.cat([level.depth for level in levels]),
        torch.cat([level.log_value for level in levels]),
        max_depth=levels[-1].max_depth,
    )
