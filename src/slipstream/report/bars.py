"""Bars of tau and of speed-up: one line an entrant, one panel a task, so that many entrants stay legible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from slipstream.records.schema import ALL, Record, Row
from slipstream.report.names import task_name
from slipstream.report.style import FAINT, INK, Look, looks, number, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE_INCHES = 0.2
COLUMNS = 8
ROOM = 1.3
"""Of the axis: the longest bar, and room for its number."""


def tau_by_task(record: Record, temperature: float) -> Figure:
    """The tau of every entrant that reports its cycles, on every task."""
    return _by_task(record, temperature, lambda row: row.tau, "tokens per target pass (dashed: 1, plain decoding)")


def speed_by_task(record: Record, temperature: float) -> Figure:
    """Speed-up of every entrant over plain, on every task; for all tasks together with the quartiles over answers."""
    return _by_task(record, temperature, lambda row: row.ratio_to_plain, "speed-up over plain (dashed: 1)", spread=True)


def _by_task(
    record: Record, temperature: float, value: Callable[[Row], float | None], label: str, *, spread: bool = False
) -> Figure:
    """One panel a task and one for all together, entrants sorted by the latter."""
    names = _ranked(record, temperature, value)
    tasks = [*record.measured_tasks, ALL]
    figure, grid = panels(len(tasks), COLUMNS, 0.35 + LINE_INCHES * len(names))
    style = looks(record.run.entrants)
    found = [record.row(task, name, temperature) for task in tasks for name in names]
    limit = ROOM * max(1.0, *(known for row in found if row and (known := value(row)) is not None))
    for axes, task in zip(grid, tasks, strict=True):
        rows = [record.row(task, name, temperature) for name in names]
        _panel(axes, [value(row) if row else None for row in rows], [style[name] for name in names])
        if spread and task == ALL:
            _whiskers(axes, rows, limit)
        axes.set_title(task_name(task), fontweight="bold" if task == ALL else "normal")
    grid[0].set_yticks(range(len(names)), names)
    grid[0].set_ylim(len(names) - 0.4, -0.6)
    grid[0].set_xlim(0, limit)
    figure.supxlabel(label, fontsize=9)
    return figure


def _ranked(record: Record, temperature: float, value: Callable[[Row], float | None]) -> list[str]:
    """Entrants that have the figure, highest first."""
    found = [(value(row), row.entrant) for row in record.rows_of(ALL, temperature)]
    known = [(one, name) for one, name in found if one is not None]
    return [name for _, name in sorted(known, key=lambda pair: -pair[0])]


def _panel(axes: Axes, values: Sequence[float | None], style: Sequence[Look]) -> None:
    """Bars with their values; no bar where there is none."""
    for place, (value, look) in enumerate(zip(values, style, strict=True)):
        if value is None:
            number(axes, 0, place, "-")
            continue
        axes.barh(place, value, 0.76, color=look.colour, hatch=look.hatch, edgecolor=FAINT, linewidth=0.4)
        number(axes, max(value, 1.0), place, f"{value:.2f}")  # clear of the dashed line
    axes.axvline(1.0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, labelsize=8)


def _whiskers(axes: Axes, rows: Sequence[Row | None], limit: float) -> None:
    """Quartiles over answers, at the lower edge of the bars; cut at the limit, so that none stretches the axis."""
    for place, row in enumerate(rows):
        if row is not None and row.ratio_to_plain_spread is not None:
            spread, height = row.ratio_to_plain_spread, place + 0.38
            style: dict[str, Any] = {"color": INK, "linewidth": 1.2, "solid_capstyle": "butt"}
            axes.plot([min(spread.q1, limit), min(spread.q3, limit)], [height] * 2, **style)
            if spread.median <= limit:
                axes.plot([spread.median], [height], "|", color=INK, markersize=5)
            if spread.q3 > limit:
                axes.plot([limit], [height], ">", color=INK, markersize=4, clip_on=False)
