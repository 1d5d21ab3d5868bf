"""Verification: which tokens the target says at every node, and which drafted nodes they keep.

p is the target's distribution, q the drafter's. Each `choose_*` rule gives the target's own next token at the root and
at every node (`choice`, row 0 the root); `walk` then follows the tree while a child carries its parent's choice. With
every rule the emitted tokens are distributed as plain decoding's; with `choose_greedy` and `choose_coupled` they *are*
plain decoding's tokens. Uniform random numbers are arguments, so a test can replay or enumerate them. All functions
take stacked trees of one size: every shape may have further dimensions in front.

Sources: speculative sampling, Leviathan et al. 2023 (arXiv 2211.17192), Algorithm 1 and Chen et al. 2023
(arXiv 2302.01318); deterministic tree children, EAGLE-2 (arXiv 2406.16858) as its code does it: q is one-hot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from slipstream.core.largest import argmax, argmax_of_sum
from slipstream.core.tree import DraftTree, ancestor_mask, earlier_siblings

NO_TOKEN = -1
"""The choice of a row in which no token is left. Only where it is emitted does it matter: `LogitsPipeline.commit`."""


class Walk(NamedTuple):
    """The accepted path, as tensors, so that reading it costs one copy to the host."""

    num_accepted: Tensor  # [...] int64, drafted tokens kept
    order: Tensor  # [..., n] int64, node indices; the first num_accepted are the path from the root down


def walk(tree: DraftTree, choice: Tensor, ancestors: Tensor | None = None) -> Walk:
    """Follow the choices from the root while a child carries them.

    choice: [n + 1] int64. ancestors: `ancestor_mask(tree.parents)` if it is at hand. A node is kept if it and all its
    ancestors carry their parent's choice; siblings differ in token, so the kept nodes form one path. Nodes that fill a
    tree up (`DraftTree.padded`) are not kept.
    """
    if ancestors is None:
        ancestors = ancestor_mask(tree.parents)
    wrong = (tree.tokens != choice.gather(-1, tree.parents + 1)) | (tree.depth == 0)  # [n]
    kept = ~(ancestors[..., 1:, 1:] & wrong[..., None, :]).any(dim=-1)  # [n]
    return Walk(kept.sum(dim=-1), torch.argsort(~kept, dim=-1, stable=True))  # parents before children: by depth


class Outcome(NamedTuple):
    """A walk on the host."""

    path: list[int]  # nodes kept, from the root down
    tokens: list[int]  # theirs, and the next token after them
    further: list[int]  # what else was copied


def read_walk(kept: Walk, choice: Tensor, *further: Tensor) -> Outcome:
    """Copy a walk to the host, and `further` int64 tensors [k] with it: the one copy of a cycle. choice: [n + 1]."""
    rows = choice.shape[0]
    num_accepted, *rest = torch.cat((kept.num_accepted[None], kept.order, choice, *further)).tolist()
    path, choices = rest[:num_accepted], rest[rows - 1 : 2 * rows - 1]
    return Outcome(path, [choices[0], *(choices[node + 1] for node in path)], rest[2 * rows - 1 :])


def nodes_to_move(order: Tensor, path: Sequence[int]) -> Tensor | None:
    """The nodes of a path on their device, [len(path)] int64; None where they are the first nodes, in order.

    order: as `walk` gives it. path: the same on the host, cut where the text ends.
    """
    return None if list(path) == list(range(len(path))) else order[: len(path)]


def or_no_token(choice: Tensor, logits: Tensor) -> Tensor:
    """The choices, with NO_TOKEN where the row has none: a rule chooses a removed token from no other row.

    choice: [n + 1] int64. logits: [n + 1, vocab], -inf where a token is ruled out.
    """
    chosen = logits.gather(-1, choice[..., None]).squeeze(-1)  # [n + 1]
    return choice.masked_fill(chosen == -torch.inf, NO_TOKEN)


def choose_greedy(logits: Tensor) -> Tensor:
    """The most probable token of each row (the first of equals). logits: [n + 1, vocab]. Returns [n + 1] int64."""
    return argmax(logits)


def choose_coupled(logits: Tensor, noise: Tensor, rows: Tensor | None = None) -> Tensor:
    """Gumbel-max with given noise: an exact sample of softmax(logits) in each row.

    logits: [n + 1, vocab], -inf where a token is ruled out. noise: [positions, vocab] float64. rows: [n + 1] int64, of
    each node the row of noise of the text position that its next token would take; by default one after another. Nodes
    of equal depth share a row: only one of them is walked.
    """
    if rows is None:
        return (logits.double() + noise).argmax(dim=-1)
    return argmax_of_sum(logits, noise, rows)


def choose_chain(tokens: Tensor, q: Tensor, p: Tensor, u_accept: Tensor, u_next: Tensor) -> Tensor:
    """Speculative sampling of a chain whose tokens were sampled from q (Leviathan et al., Algorithm 1).

    tokens: [n]. q: [n, vocab], rows sum to 1. p: [n + 1, vocab], rows sum to 1. u_accept: [n] and u_next: [n + 1],
    uniforms in [0, 1). Row i accepts its drafted token with probability min(1, p/q), else takes a recovered token from
    norm(max(p - q, 0)); the last row gives the bonus token. How long the chain is may depend on its earlier tokens,
    but a token once drawn must be verified: leaving it out would bias the output. A row of q that is all zero drafts
    nothing: it gives the bonus token of the chain that ends there.
    """
    at_nodes, bonus = p[..., :-1, :], p[..., -1:, :]
    q_drafted, p_drafted = (one.gather(-1, tokens[..., None]).squeeze(-1) for one in (q, at_nodes))  # [n]
    accepted = (u_accept * q_drafted < p_drafted) & (q_drafted > 0)  # u < p/q, undivided
    residual = (at_nodes - q).clamp_(min=0.0)  # [n, vocab]
    # Where nothing is left, q is p but for rounding, and p itself serves in the near-impossible rejection.
    residual = torch.where(residual.any(dim=-1, keepdim=True), residual, at_nodes)
    choice = draw(torch.cat((residual, bonus), dim=-2), u_next)
    return torch.cat((torch.where(accepted, tokens, choice[..., :-1]), choice[..., -1:]), dim=-1)


def choose_one_hot(tree: DraftTree, p: Tensor, u_accept: Tensor, u_next: Tensor) -> Tensor:
    """The published rule for deterministic children (EAGLE-2): at each node try its children in order.

    Child x is accepted with probability p(x); else p(x) is set to 0, p is renormalised and the next child is tried;
    after the last, the next token is drawn from what is left. Right for any tree whose shape does not depend on the
    uniforms. p: [n + 1, vocab], rows sum to 1. u_accept: [n]; u_next: [n + 1]. Returns [n + 1] int64.
    """
    rows = tree.parents + 1  # [n], the row of each node's parent
    entries = rows * p.shape[-1] + tree.tokens  # [n], where p of each drafted token stands
    mass = p.flatten(-2).gather(-1, entries)  # [n]
    earlier = earlier_siblings(tree.parents)  # [n, n]
    rest = p.flatten(-2).scatter(-1, entries, 0.0).reshape(p.shape)  # [n + 1, vocab]
    # What p still holds when a child is tried, summed up rather than 1 - tried: where nothing is left after a child, it
    # is then its mass exactly, and no rounding can reject it.
    # Not a product of matrices: a row without any token is nan, and would spoil the sums of all others.
    later = mass[..., None, :].masked_fill(~earlier.mT, 0.0).sum(dim=-1)  # [n], mass of the later siblings
    left = rest.sum(dim=-1).gather(-1, rows) + later + mass  # [n]
    accepted = u_accept * left < mass  # u < p / left, undivided
    first = accepted & ~(earlier & accepted[..., None, :]).any(dim=-1)  # no earlier sibling was accepted
    choice = draw(rest, u_next)
    # Rows with an accepted child take its token; the others write to a spare row that is dropped.
    spare = torch.full_like(rows, choice.shape[-1])
    with_spare = torch.cat((choice, choice[..., :1]), dim=-1)
    return with_spare.scatter(-1, torch.where(first, rows, spare), tree.tokens)[..., :-1]


def draw(weights: Tensor, u: Tensor) -> Tensor:
    """One token per row by inversion. weights: [rows, vocab] >= 0, not normalised. u: [rows] in [0, 1).

    A row without mass (possible only where a drafted token is accepted for certain) gives its last token.
    """
    cumulative = weights.cumsum(dim=-1)  # [rows, vocab]
    threshold = u[..., None] * cumulative[..., -1:]  # in the wider type: rounding u to 1 would pass the last token
    # "<=" so that a token of zero weight is never drawn, not even with u = 0.
    return (cumulative <= threshold).sum(dim=-1).clamp_(max=weights.shape[-1] - 1)
