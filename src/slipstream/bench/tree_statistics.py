"""What verified trees say of a drafter: how far its confidence can be believed, and where in a tree nodes are kept.

Both are counts that add up over cycles and go to JSON as they are. n is the number of nodes of a tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slipstream.bench.watching import Cycle
from slipstream.core.tree import ancestor_mask, earlier_siblings

Path = tuple[int, ...]

NUM_BINS = 20
"""Bins of confidence, equally wide: the lowest and the highest are those EAGLE-2 quotes (section 3.2)."""
NUM_OCTAVES = 12
"""Bins of path confidence, each half as wide as the one above: [1/2, 1], [1/4, 1/2), ...; the last takes the rest."""

POSITIONS: dict[str, Path] = {
    "P1": (0,),
    "P2": (1,),
    "P3": (0, 0),
    "P4": (0, 1),
    "P5": (1, 0),
    "P6": (1, 1),
}
"""Six positions by their ranks from the root, upper left to lower right: P1 and P2 are the two best children of the
root, P3 and P4 the two best of P1, P5 and P6 the two best of P2."""


class Fates(NamedTuple):
    """A tree's nodes, one row each, on the host."""

    confidence: Tensor  # [n] float64, of the node under its parent
    value: Tensor  # [n] float64, product of the confidences from the root to the node
    reached: Tensor  # [n] bool, whether its parent was accepted; the root always is
    accepted: Tensor  # [n] bool, whether it and all its ancestors were


def fates(cycle: Cycle) -> Fates:
    """What became of a tree's nodes. Acceptance is the target's word, before the answer's end cuts anything off."""
    tree = cycle.tree
    log_value = tree.log_value.double()
    under = torch.cat((log_value, log_value.new_zeros(1)))[tree.parents]  # index -1 reads the root's 0
    wrong = tree.tokens != cycle.choice[tree.parents + 1]
    accepted = ~(ancestor_mask(tree.parents)[1:, 1:] & wrong).any(dim=1)
    reached = torch.cat((accepted, accepted.new_ones(1)))[tree.parents]
    return Fates((log_value - under).exp().cpu(), log_value.exp().cpu(), reached.cpu(), accepted.cpu())


def rank_paths(cycle: Cycle) -> list[Path]:
    """Each node's ranks among its siblings, from the root down: (0, 2) is the third child of the first child."""
    parents = cycle.tree.parents.tolist()
    ranks = earlier_siblings(cycle.tree.parents).sum(dim=1).tolist()
    paths: list[Path] = []
    for parent, rank in zip(parents, ranks, strict=True):
        paths.append((*paths[parent], rank) if parent >= 0 else (rank,))
    return paths


class CalibrationCurve:
    """Confidence against acceptance, over nodes whose parent was accepted."""

    def __init__(self) -> None:
        self.sums = torch.zeros(3, NUM_BINS, dtype=torch.float64)  # nodes, accepted nodes, their confidences summed

    def count(self, found: Fates) -> None:
        """Take in one tree."""
        confidence, accepted = found.confidence[found.reached], found.accepted[found.reached]
        bins = (confidence * NUM_BINS).long().clamp_(0, NUM_BINS - 1)  # [m]
        self.sums.index_add_(1, bins, torch.stack((torch.ones_like(confidence), accepted.double(), confidence)))

    def merge(self, counts: dict[str, Any]) -> None:
        """Add what `to_dict` gave."""
        self.sums += torch.tensor([counts["num_nodes"], counts["num_accepted"], counts["confidence"]])

    @property
    def expected_error(self) -> float:
        """Expected calibration error: the mean gap between acceptance and confidence in a node's bin; 0 if empty."""
        nodes, accepted, confidence = self.sums
        return float((accepted - confidence).abs().sum() / nodes.sum().clamp(min=1.0))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: by bin, the number of nodes, how many were accepted, and the sum of their confidences."""
        nodes, accepted, confidence = self.sums
        return {
            "num_nodes": nodes.long().tolist(),
            "num_accepted": accepted.long().tolist(),
            "confidence": [round(one, 4) for one in confidence.tolist()],
            "expected_calibration_error": round(self.expected_error, 5),
        }


class DepthTable:
    """Acceptance by depth: of the cycles with a node at a depth whose parent was accepted, those that accepted one."""

    def __init__(self) -> None:
        self.num_reached: list[int] = []  # entry d: cycles with a node at depth d + 1 whose parent was accepted
        self.num_accepted: list[int] = []

    def count(self, cycle: Cycle, found: Fates) -> None:
        """Take in one tree."""
        depth = cycle.tree.depth.cpu()
        self._add(
            torch.bincount(torch.unique(depth[found.reached]) - 1).tolist(),
            torch.bincount(depth[found.accepted] - 1).tolist(),
        )

    def merge(self, counts: dict[str, Any]) -> None:
        """Add what `to_dict` gave."""
        self._add(counts["num_reached"], counts["num_accepted"])

    def to_dict(self) -> dict[str, list[int]]:
        """For JSON; the first entry is depth 1."""
        padding = [0] * (len(self.num_reached) - len(self.num_accepted))
        return {"num_reached": self.num_reached, "num_accepted": self.num_accepted + padding}

    def _add(self, reached: list[int], accepted: list[int]) -> None:
        self.num_reached = [a + b for a, b in zip_longest(self.num_reached, reached, fillvalue=0)]
        self.num_accepted = [a + b for a, b in zip_longest(self.num_accepted, accepted, fillvalue=0)]


@dataclass(slots=True)
class Position:
    """How one position of the tree fared, by the drafter's confidence in the whole path to it."""

    num_nodes: list[int]  # [octaves] cycles that had the position, by the path's confidence, highest first
    num_accepted: list[int]  # [octaves] those in which it and all its ancestors were accepted
    num_reached: int = 0
    """Cycles in which its parent was accepted."""

    def count(self, value: float, reached: bool, accepted: bool) -> None:
        """Count one cycle. value: confidence of the path."""
        octave = next((k for k in range(NUM_OCTAVES - 1) if value >= 0.5 ** (k + 1)), NUM_OCTAVES - 1)
        self.num_nodes[octave] += 1
        self.num_accepted[octave] += accepted
        self.num_reached += reached

    def third(self, *, high: bool) -> float:
        """Acceptance in the third of the cycles in which the drafter was surest, or least sure; a bin may be split."""
        wanted = left = sum(self.num_nodes) / 3
        accepted = 0.0
        bins = list(zip(self.num_nodes, self.num_accepted, strict=True))
        for nodes, kept in bins if high else reversed(bins):
            share = min(1.0, left / nodes) if nodes else 0.0
            accepted += share * kept
            left -= share * nodes
        return max(0.0, accepted / wanted) if wanted else 0.0  # no -0.0 by rounding

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the counts, and the rates they give."""
        nodes, accepted = sum(self.num_nodes), sum(self.num_accepted)
        return {
            "num_nodes": self.num_nodes,
            "num_accepted": self.num_accepted,
            "num_reached": self.num_reached,
            "acceptance": round(accepted / max(1, nodes), 4),
            "acceptance_if_reached": round(accepted / max(1, self.num_reached), 4),
            "acceptance_when_sure": round(self.third(high=True), 4),
            "acceptance_when_unsure": round(self.third(high=False), 4),
        }


class PositionTable:
    """`POSITIONS` of a static tree; cycles whose tree lacks a position do not count for it."""

    def __init__(self) -> None:
        self.positions = {name: Position([0] * NUM_OCTAVES, [0] * NUM_OCTAVES) for name in POSITIONS}

    def count(self, cycle: Cycle, found: Fates) -> None:
        """Take in one tree."""
        index = {path: node for node, path in enumerate(rank_paths(cycle))}
        for name, path in POSITIONS.items():
            if path in index:
                node = index[path]
                self.positions[name].count(
                    float(found.value[node]), bool(found.reached[node]), bool(found.accepted[node])
                )

    def merge(self, counts: dict[str, Any]) -> None:
        """Add what `to_dict` gave."""
        for name, own in self.positions.items():
            other = counts[name]
            own.num_nodes = [a + b for a, b in zip(own.num_nodes, other["num_nodes"], strict=True)]
            own.num_accepted = [a + b for a, b in zip(own.num_accepted, other["num_accepted"], strict=True)]
            own.num_reached += other["num_reached"]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, by position."""
        return {name: position.to_dict() for name, position in self.positions.items()}


class TreeTally:
    """All of these over the trees of one or many answers."""

    def __init__(self) -> None:
        self.num_cycles = 0
        self.calibration, self.positions, self.depths = CalibrationCurve(), PositionTable(), DepthTable()

    def count(self, cycle: Cycle) -> None:
        """Take in one tree, which must have a node."""
        found = fates(cycle)
        self.num_cycles += 1
        self.calibration.count(found)
        self.positions.count(cycle, found)
        self.depths.count(cycle, found)

    def merge(self, counts: dict[str, Any]) -> None:
        """Add what `to_dict` gave."""
        self.num_cycles += counts["num_cycles"]
        self.calibration.merge(counts["calibration"])
        self.positions.merge(counts["positions"])
        self.depths.merge(counts["depths"])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "num_cycles": self.num_cycles,
            "calibration": self.calibration.to_dict(),
            "positions": self.positions.to_dict(),
            "depths": self.depths.to_dict(),
        }
