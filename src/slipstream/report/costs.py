"""What a target pass over many rows costs: the price of a wider draft tree on this device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from slipstream.records.schema import Record
from slipstream.report.style import BLUE, FAINT, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def verify_cost(record: Record) -> Figure:
    """Milliseconds of a target pass over n rows, and how often one over a single row would fit into it."""
    pairs = sorted(record.verify_cost)
    rows = [pair[0] for pair in pairs]
    times = [pair[1] * 1e3 for pair in pairs]
    figure = new_figure(6.4, 3.0)
    axes = figure.subplots()
    axes.plot(rows, times, "o-", color=BLUE, markersize=4, linewidth=1.4)
    last = -math.inf
    axes.axhline(times[0], color=FAINT, linewidth=1, linestyle="--")
    for place, time in zip(rows, times, strict=True):
        if place < last + 0.05 * max(rows):
            continue  # its number would stand on the last one's
        last = place
        axes.annotate(
            f"{time / times[0]:.1f}x", (place, time), (0, 5), textcoords="offset points", ha="center", fontsize=7
        )
    axes.set_xlim(0, max(rows) * 1.05)
    axes.set_ylim(0, max(times) * 1.15)
    axes.set_xlabel("rows of the pass: root and drafted tokens")
    axes.set_ylabel("ms a pass")
    return figure
