"""What decoding costs on this machine, to be shown: passes by rows and context, a drafter's levels by width."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from slipstream.drafting.drafter import ModelDrafter
from slipstream.drafting.shape import Auto, Dynamic
from slipstream.methods.hybrid import drafting_model
from slipstream.model import Model
from slipstream.runtime.costs import ROWS, LevelCosts, PassCosts
from slipstream.runtime.kept_costs import KeptCosts

WIDTHS = (1, 2, 4, 8)
"""Of the levels that are shown, and the width that the drafter has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineCosts:
    """What was found."""

    machine: dict[str, Any]
    """All that costs hang on."""
    passes: PassCosts
    levels: tuple[LevelCosts, ...]
    """By width; none for methods that draft without passes of their own."""
    measured_s: float
    """Seconds that measuring took; 0: all was read."""
    file: str
    """Where costs are kept."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, in seconds."""
        return {
            "machine": self.machine,
            "passes": [
                {"context": context, "rows": rows, "seconds": self.passes.seconds(rows, context)}
                for context, _ in self.passes.by_context
                for rows in ROWS
            ],
            "levels": [{"width": one.width, "first_s": one.first_s, "further_s": one.further_s} for one in self.levels],
            "measured_s": round(self.measured_s, 3),
            "file": self.file,
        }


def machine_costs(model: Model, *, fresh: bool = False) -> MachineCosts:
    """Costs of a target and its drafter: read, or measured and kept. fresh: measured in any case."""
    kept = KeptCosts(model.target, fresh=fresh)
    passes, levels = kept.passes(), []
    drafter = drafting_model(model.drafter)
    if drafter is not None:
        tree = widest(drafter)
        levels = [
            drafter.level_costs(kept, replace(tree, width=width, total=max(tree.total, width)))
            for width in sorted({*WIDTHS, tree.width})
        ]
    return MachineCosts(
        machine=kept.machine,
        passes=passes,
        levels=tuple(levels),
        measured_s=kept.measured_s,
        file=str(kept.path),
    )


def widest(drafter: ModelDrafter) -> Dynamic:
    """The largest dynamic tree of a drafter; for other shapes, one of their depth and width."""
    shape = drafter.shape
    if isinstance(shape, Auto):
        return shape.largest.as_dynamic()
    return Dynamic(width=shape.level_rows, depth=shape.depth, total=max(shape.most_nodes, shape.level_rows))
