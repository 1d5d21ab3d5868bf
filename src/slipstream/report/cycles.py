"""Figures of cycles: how many tokens they emit, and where their time goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slipstream.records.schema import ALL, Record, Row
from slipstream.report.names import temperature_name
from slipstream.report.style import FAINT, WIDTH, looks, new_figure, number, panels, tight

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = {"draft": "#B0744A", "build": "#DDC9A3", "verify": "#7488A8", "sample": "#8FBBA9", "host": "#C2C7CE"}
"""Of a cycle's time. Muted, so that none is taken for a method's colour."""
LINE_INCHES = 0.22
COLUMNS = 6


def accept_lengths(record: Record, temperature: float) -> Figure:
    """For every drafting entrant, the share of cycles that emitted 1, 2, ... tokens, all tasks together."""
    rows = drafting(record.rows_of(ALL, temperature))
    longest = max(len(row.accept_lengths or ()) for row in rows)
    figure, grid = panels(len(rows), COLUMNS, 1.25)
    style = looks(record.run.entrants)
    for axes, row in zip(grid, rows, strict=True):
        counts = np.array(row.accept_lengths, float)
        look = style[row.entrant]
        bars: dict[str, Any] = {"color": look.colour, "hatch": look.hatch, "edgecolor": FAINT, "linewidth": 0.3}
        axes.bar(range(len(counts)), counts / counts.sum(), 0.84, **bars)
        axes.set_title(f"{row.entrant}  {row.tau:.2f}", fontsize=8)
        axes.grid(axis="x", visible=False)
    step = 1 if longest <= 9 else 2 if longest <= 18 else 4
    grid[0].set_xticks(range(1, longest, step))
    grid[0].set_xlim(0.4, longest - 0.4)
    figure.supxlabel("accept_length: tokens that a cycle emitted (above each panel: the mean, tau)", fontsize=9)
    figure.supylabel("share of cycles", fontsize=9)
    return figure


def drafting(rows: Sequence[Row]) -> list[Row]:
    """Rows whose cycles are known and emit more than one token at times."""
    return [row for row in rows if row.tau and row.accept_lengths and sum(row.accept_lengths[2:])]


def time_split(record: Record) -> Figure:
    """Mean milliseconds of a cycle, by what they went into; one panel a temperature."""
    temperatures = [one for one in record.temperatures if timed(record.rows_of(ALL, one))]
    names = [row.entrant for row in timed(record.rows_of(ALL, temperatures[0]))]
    figure = new_figure(WIDTH, 0.95 + LINE_INCHES * len(names))
    tight(figure)
    grid = figure.subplots(1, len(temperatures), sharey=True, squeeze=False)[0]
    for axes, temperature in zip(grid, temperatures, strict=True):
        found = {row.entrant: row.cycle_ms for row in timed(record.rows_of(ALL, temperature))}
        left = np.zeros(len(names))
        for part, colour in PARTS.items():
            widths = np.array([getattr(found.get(name), part, 0.0) for name in names])
            axes.barh(range(len(names)), widths, 0.76, left, color=colour, label=part, edgecolor=FAINT, linewidth=0.3)
            left = left + widths
        for place, total in enumerate(left):
            number(axes, total, place, f"{total:.1f}" if total else "-")
        axes.set_xlim(0, left.max() * 1.12)
        axes.set_title(temperature_name(temperature), loc="left")
        axes.set_xlabel("ms a cycle")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    figure.axes[0].set_yticks(range(len(names)), names, fontsize=8)
    figure.axes[0].set_ylim(len(names) - 0.4, -0.6)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(PARTS), fontsize=8)
    return figure


def timed(rows: Sequence[Row]) -> list[Row]:
    """Rows whose cycles were timed."""
    return [row for row in rows if row.cycle_ms is not None]
