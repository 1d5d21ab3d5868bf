"""Draft trees: the tokens a drafter proposes after the root, and the relations between them.

The root is the last committed token; it is not a node of the tree. Wherever rows stand for "the root and all nodes"
(target logits, masks, choices), row 0 is the root and row i + 1 is node i. `n` is the number of nodes. All functions
are tensor operations of fixed shape: nothing here waits for the device. Trees of one size may be stacked: where a shape
begins with "...", all arguments may have further dimensions in front.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, slots=True)
class DraftTree:
    """Drafted tokens under the root, parents before children, no two siblings with the same token."""

    tokens: Tensor  # [..., n] int64
    parents: Tensor  # [..., n] int64, index of the parent node, -1 = root; of a node that fills up: its own
    depth: Tensor  # [..., n] int64, 1 for the root's children; 0 for a node that fills up
    log_value: Tensor  # [..., n] float32, sum of the drafter's log-confidences from the root to the node
    max_depth: int  # an upper bound of `depth`, known without asking the device
    q: Tensor | None = None  # [..., n, vocab] what each token was sampled from; None: tokens were not sampled

    @property
    def num_nodes(self) -> int:
        return self.tokens.shape[-1]

    def cut(self, max_depth: int) -> DraftTree:
        """The tree without the nodes deeper than `max_depth`. Waits for the device where there may be any."""
        if self.max_depth <= max_depth:
            return self
        kept = (self.depth <= max_depth).nonzero().squeeze(1)  # [kept]
        return replace(select_nodes(self, kept), max_depth=max_depth)

    def first(self, count: int) -> DraftTree:
        """The tree of the first `count` nodes, which hold each other's parents."""
        if count >= self.num_nodes:
            return self
        return select_nodes(self, torch.arange(count, device=self.tokens.device))

    def padded(self, rows: int) -> DraftTree:
        """The tree with nodes that fill it up to `rows` rows, the root's included.

        Such a node is its own parent, so it sees itself alone and no rule tries it as anyone's child; its depth is 0,
        so `walk` never takes it; its row of q is all zero, so it was never drawn. Its token, 0, is in every vocabulary.
        """
        more = rows - 1 - self.num_nodes
        assert more >= 0, "a tree cannot be padded to fewer rows than it has"
        own = torch.arange(self.num_nodes, rows - 1, device=self.parents.device)  # [more]
        return DraftTree(
            pad(self.tokens, (0, more)),
            torch.cat((self.parents, own.expand(*self.parents.shape[:-1], more)), dim=-1),
            pad(self.depth, (0, more)),
            pad(self.log_value, (0, more), value=-torch.inf),
            self.max_depth,
            None if self.q is None else pad(self.q, (0, 0, 0, more)),
        )


def empty_tree(device: torch.device | str = "cpu") -> DraftTree:
    """A tree without nodes: verifying it is one step of plain decoding."""
    none = torch.empty(0, dtype=torch.int64, device=device)
    return DraftTree(none, none, none, torch.empty(0, dtype=torch.float32, device=device), 0)


def chain(tokens: Tensor, log_confidence: Tensor | None = None, q: Tensor | None = None) -> DraftTree:
    """A draft chain: every token is the only child of the one before.

    tokens: [n] int64. log_confidence: [n], the drafter's log-probability of each token (zeros when it has none).
    q: [n, vocab], given when token i was sampled from row i.
    """
    n, device = tokens.shape[0], tokens.device
    if log_confidence is None:
        log_confidence = torch.zeros(n, device=device)
    order = torch.arange(n, device=device)
    return DraftTree(tokens, order - 1, order + 1, log_confidence.float().cumsum(0), n, q)


def select_nodes(tree: DraftTree, kept: Tensor) -> DraftTree:
    """The sub-tree of the nodes `kept` ([m] int64, ascending), which must hold the parent of each of its nodes."""
    rank = torch.full((tree.num_nodes + 1,), -1, dtype=torch.int64, device=kept.device)  # last entry: the root's -1
    rank[kept] = torch.arange(kept.shape[0], device=kept.device)
    return DraftTree(
        tree.tokens[kept],
        rank[tree.parents[kept]],  # index -1 reads the last entry
        tree.depth[kept],
        tree.log_value[kept],
        tree.max_depth,
        None if tree.q is None else tree.q[kept],
    )


def ancestor_mask(parents: Tensor) -> Tensor:
    """Who may see whom: entry (i, j) is true where row j is row i itself or one of its ancestors.

    parents: [..., n] int64. Returns [..., n + 1, n + 1] bool, row and column 0 the root. The transitive closure takes
    log2(n + 1) squarings of the one-step relation, so its shape and its number of steps depend on n alone.
    """
    rows = parents.shape[-1] + 1
    if rows == 1:  # plain decoding, whose steps are short
        return torch.ones(*parents.shape[:-1], 1, 1, dtype=torch.bool, device=parents.device)
    reach = torch.eye(rows, device=parents.device).repeat(*parents.shape[:-1], 1, 1)  # float: no matmul takes bools
    reach[..., 1:, :].scatter_(-1, parents[..., None] + 1, 1.0)
    for _ in range((rows - 1).bit_length()):
        reach = (reach @ reach).clamp_(max=1.0)
    return reach.bool()


def earlier_siblings(parents: Tensor) -> Tensor:
    """[..., n, n] bool, entry (i, j) true where nodes i and j share a parent and j stands before i."""
    same_parent = parents[..., :, None] == parents[..., None, :]
    return same_parent.tril(diagonal=-1)
