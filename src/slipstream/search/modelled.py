"""The speed of a skip set, modelled: tokens that its drafts would bring over seconds that its passes would take.

Tokens: for every possible root of the target's answers the draft's length or tree is worked out from the agreement of
the skipping target with the answer (`agreement.py`), then the answers are walked cycle by cycle. Seconds: the measured
cost of the sub-layers that are kept, of the full pass that verifies, and of what surrounds them
(`runtime/sublayer_costs.py`). Plain decoding, which the speed is compared with, goes by the same table: its full pass
over one row.

What is exact: along the target's own text, which tokens the draft would propose, with which confidence, and so how many
are accepted of a chain that ends at its length. What is not: after its first wrong token a draft runs on its own text,
of which nothing is known; there the draft on the target's text at the same depth stands in. A chain's length after a
wrong token, and a tree's wrong branches, are estimated so: every node at a depth has children with the confidences of
the node on the target's path. The chain's exit threshold is taken as fixed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from slipstream.drafting.shape import Chain, Dynamic, Shape
from slipstream.runtime.sublayer_costs import CostTable
from slipstream.search.agreement import Agreement
from slipstream.skipping.skip_set import SkipSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a skip set is expected to do."""

    tokens_per_second: float
    speedup: float
    """Over plain decoding by the same costs."""
    bound: float
    """The speed-up if drafting took nothing but its passes: never below `speedup`."""
    tau: float
    num_drafted: float
    """Nodes a cycle."""
    first_agreement: float
    """Share of roots after which the draft's best token is the target's."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def modelled_speed(
    agreement: Agreement,
    segments: Sequence[int],
    shape: Shape,
    costs: CostTable,
    skip_set: SkipSet,
) -> Figures:
    """The figures of a skip set. segments: roots of each answer, which walks do not leave."""
    accepted, drafted = ACCEPTED[shape.kind](agreement, shape)
    roots = visited(accepted, segments)
    num_tokens, num_cycles = sum(segments), len(roots)
    drafts = drafted[roots].tolist()
    rate = num_tokens / cycles_seconds(costs, shape, drafts, skip_set)
    allowed = bound(costs, shape, drafts, skip_set, num_tokens)
    return Figures(
        tokens_per_second=rate,
        speedup=min(rate * costs.plain, allowed),  # where nothing is beyond the passes they differ by rounding alone
        bound=allowed,
        tau=num_tokens / num_cycles,
        num_drafted=sum(drafts) / num_cycles,
        first_agreement=float((agreement.rank[:, 0] == 0).double().mean()),
    )


def bound(costs: CostTable, shape: Shape, drafts: Sequence[int], skip_set: SkipSet, num_tokens: int) -> float:
    """The speed-up over plain decoding at which cycles that bring so many tokens could run at best, by their passes."""
    return num_tokens * costs.plain / cycles_seconds(replace(costs, overhead=0.0), shape, drafts, skip_set)


def cycles_seconds(costs: CostTable, shape: Shape, drafts: Sequence[int], skip_set: SkipSet) -> float:
    """Seconds of cycles that draft and verify so many nodes each."""
    return sum(count * cycle_seconds(costs, shape, n, skip_set) for n, count in Counter(drafts).items())


def cycle_seconds(costs: CostTable, shape: Shape, drafted: int, skip_set: SkipSet) -> float:
    """Seconds of a cycle that drafts and verifies `drafted` nodes."""
    levels = shape.levels(drafted)
    drafting = draft_seconds(costs, shape, levels, skip_set) + levels * costs.overhead
    return drafting + costs.verify(1 + drafted) + costs.cycle


def draft_seconds(costs: CostTable, shape: Shape, levels: int, skip_set: SkipSet) -> float:
    """Seconds of the passes that draft so many levels."""
    root = costs.draft(1, skip_set) if levels else 0.0
    return root + max(0, levels - 1) * costs.draft(shape.level_rows, skip_set)


def widths(shape: Shape) -> list[int]:
    """Rows of the passes that drafting and verifying this shape needs."""
    return sorted({1, shape.level_rows, 1 + shape.fewest_nodes, 1 + shape.most_nodes})


def accepted_of_chain(agreement: Agreement, settings: Chain) -> tuple[Tensor, Tensor]:
    """(accepted [roots], drafted [roots]) of chains that end after the first token below the threshold."""
    hits = (agreement.rank == 0).long().cumprod(dim=1).sum(dim=1)  # [roots] tokens right from the root on
    sure = agreement.log_confidence[:, :, 0].exp() >= settings.threshold  # [roots, length]
    drafted = 1 + sure[:, :-1].long().cumprod(dim=1).sum(dim=1)
    drafted = torch.minimum(drafted, (agreement.room - 1).clamp(min=0))  # the last token of all comes with the pass
    return torch.minimum(hits, drafted), drafted


def accepted_of_tree(agreement: Agreement, shape: Dynamic) -> tuple[Tensor, Tensor]:
    """(accepted [roots], drafted [roots]) of the dynamic tree below each root, grown as `growth.grow` does it.

    The tree is that of a drafter whose every node at a depth has children with the confidences found on the target's
    path: at the first level that is the tree itself.
    """
    roots, width = agreement.rank.shape[0], agreement.log_confidence.shape[2]
    frontier = torch.zeros(roots, 1)  # [roots, w] log-values of the nodes to run, in their order
    place = torch.zeros(roots, dtype=torch.int64)  # of the true node in the frontier; -1: not in it
    levels: list[Tensor] = []
    true: list[Tensor] = []  # [roots] index of the true node in each level; -1: not in it
    for level in range(shape.depth):
        values = (frontier[:, :, None] + agreement.log_confidence[:, level, None, :width]).flatten(1)  # [roots, w * k]
        rank = agreement.rank[:, level]
        index = torch.where((place >= 0) & (rank < width), place * width + rank, -1)
        levels.append(values)
        true.append(index)
        order = values.sort(dim=1, descending=True, stable=True).indices[:, : shape.width]
        frontier = values.gather(1, order)
        chosen = order == index[:, None]  # [roots, w]
        place = torch.where(chosen.any(dim=1), chosen.int().argmax(dim=1), -1)
    kept = torch.stack([_kept(levels, level, true[level], shape.total) for level in range(shape.depth)], dim=1)
    accepted = torch.minimum(kept.long().cumprod(dim=1).sum(dim=1), (agreement.room - 1).clamp(min=0))
    return accepted, torch.full_like(accepted, shape.most_nodes)


ACCEPTED: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"chain": accepted_of_chain, "dynamic": accepted_of_tree}
"""By the kind of the shape."""


def _kept(levels: Sequence[Tensor], level: int, index: Tensor, total: int) -> Tensor:
    """[roots] bool: whether node `index` of a level is among the `total` best of all levels; ties go to the earlier."""
    own = levels[level].gather(1, index.clamp(min=0)[:, None])  # [roots, 1]
    before = torch.zeros_like(index)
    for number, values in enumerate(levels):
        ahead = values > own
        if number < level:
            ahead |= values == own
        elif number == level:
            ahead |= (values == own) & (torch.arange(values.shape[1]) < index[:, None])
        before += ahead.sum(dim=1)
    return (index >= 0) & (before < total)


def visited(accepted: Tensor, segments: Sequence[int]) -> list[int]:
    """The roots of the cycles in which the answers would be generated."""
    found, first, lengths = [], 0, accepted.tolist()
    for count in segments:
        root = first
        while root < first + count:
            found.append(root)
            root += lengths[root] + 1
        first += count
    return found
