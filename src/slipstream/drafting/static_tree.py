"""Static draft trees: the same ranks at every cycle, as a table for the growth of `growth.py`.

A node is named by its path of ranks: (0, 2) is the third-best child of the best child of the root. EAGLE-1
(arXiv 2401.15077) drafts with one such tree at every size of target.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from slipstream.core.tree import DraftTree, select_nodes
from slipstream.errors import InputError

Path = tuple[int, ...]

EAGLE_1: tuple[Path, ...] = (
    *((0,), (1,), (2,), (3,)),
    *((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)),
    *((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 0, 0)),
    *((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2)),
    *((0, 0, 0, 0, 0), (0, 0, 0, 0, 1)),
)
"""The tree of EAGLE-1's released code: 25 nodes, 5 levels."""


class StaticTree:
    """A tree of given ranks, as a `growth.Shape`."""

    def __init__(self, paths: Iterable[Path], device: torch.device) -> None:
        """paths: one a node, in any order, each with its parent's. Raises InputError for a node without its parent."""
        self.paths = tuple(sorted(set(paths), key=lambda path: (len(path), path)))
        self.device = device
        self._cuts: dict[int, StaticTree] = {}
        known = {(), *self.paths}
        orphan = next((path for path in self.paths if path[:-1] not in known or not path), None)
        if orphan is not None or not self.paths:
            raise InputError(f"a static tree needs every node's parent; {orphan} has none")

    @property
    def depth(self) -> int:
        return len(self.paths[-1])

    @property
    def total(self) -> int:
        """Nodes of the tree."""
        return len(self.paths)

    @cached_property
    def num_rows(self) -> int:
        """Rows the drafter runs for one tree, root included."""
        return 1 + sum(len(rows) for rows in self._rows[1:])

    def cut(self, max_depth: int) -> StaticTree:
        """The same tree, at most `max_depth` deep."""
        if max_depth >= self.depth:
            return self
        if max_depth not in self._cuts:
            self._cuts[max_depth] = StaticTree((p for p in self.paths if len(p) <= max_depth), self.device)
        return self._cuts[max_depth]

    def num_children(self, depth: int) -> int:
        return self._num_children[depth]

    def choose(self, level: DraftTree, confidence: Tensor) -> Tensor:
        return self._chosen[level.max_depth]

    def keep(self, tree: DraftTree, chosen: Tensor) -> DraftTree:
        return select_nodes(tree, self._kept)

    # Growth attaches num_children(d) nodes to each row of depth d - 1: a path's place among them follows from its ranks

    @cached_property
    def _rows(self) -> list[list[Path]]:
        """The paths that have children, by depth, the root's first."""
        inner = {path[:-1] for path in self.paths}
        return [[path for path in ((), *self.paths) if len(path) == depth and path in inner] for depth in self._depths]

    @property
    def _depths(self) -> range:
        return range(self.depth + 1)

    @cached_property
    def _num_children(self) -> list[int]:
        return [1 + max((path[-1] for path in self.paths if len(path) == d), default=0) for d in self._depths]

    def _place(self, path: Path) -> int:
        """Index of a node among those attached at its depth."""
        depth = len(path)
        return self._rows[depth - 1].index(path[:-1]) * self._num_children[depth] + path[-1]

    @cached_property
    def _chosen(self) -> list[Tensor]:
        places = [[self._place(path) for path in rows] if depth else [] for depth, rows in enumerate(self._rows)]
        return [torch.tensor(level, dtype=torch.int64, device=self.device) for level in places]

    @cached_property
    def _kept(self) -> Tensor:
        sizes = [
            len(rows) * k for rows, k in zip(self._rows, self._num_children[1:], strict=False)
        ]  # of level 1, 2, ...
        kept = [sum(sizes[: len(path) - 1]) + self._place(path) for path in self.paths]
        return torch.tensor(sorted(kept), dtype=torch.int64, device=self.device)
