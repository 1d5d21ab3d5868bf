"""The published size of a dynamic tree, by the size of the target."""

from __future__ import annotations

from slipstream.drafting.growth import TreeShape

_PAPER = ((30e9, 48), (10e9, 50), (3e9, 60))  # parameters from which on, drafted tokens (arXiv 2406.16858, section 4)


def default_shape(num_parameters: int) -> TreeShape:
    """The paper's tree for a target of this size; for small targets, which are slowed by every row, a small one."""
    for least, total in _PAPER:
        if num_parameters >= least:
            return TreeShape(width=10, depth=6, total=total)
    return TreeShape(width=8, depth=5, total=20)
