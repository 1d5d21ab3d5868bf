"""A picture of what decoding costs on one machine: passes by rows and context, a drafter's levels by width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slipstream.report.style import BLUE, FAINT, GREEN, ORANGE, drawing, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]
"""(size, seconds), ascending."""


def save_machine_costs(passes: Mapping[int, Points], levels: Mapping[str, Points], file: Path) -> None:
    """Write the picture in the format of the file's ending. Raises InputError without matplotlib.

    passes: by context, (rows, seconds). levels: by name, (width, seconds); may be empty.
    """
    with drawing("machine-costs"):
        figure = _figure(passes, levels)
        figure.savefig(file, dpi=150)


def _figure(passes: Mapping[int, Points], levels: Mapping[str, Points]) -> Figure:
    figure = new_figure(8.6 if levels else 5.0, 3.2)
    left, *right = figure.subplots(1, 2 if levels else 1, squeeze=False)[0]
    for colour, (context, points) in zip((BLUE, ORANGE), passes.items(), strict=False):
        _line(left, points, colour, f"after {context} tokens")
    left.axhline(1e3 * next(iter(passes.values()))[0][1], color=FAINT, linewidth=1, linestyle="--", label="plain")
    _finish(left, "rows of a target pass", "ms a pass")
    for axes in right:
        for colour, (name, points) in zip((GREEN, ORANGE), levels.items(), strict=False):
            _line(axes, points, colour, name)
        _finish(axes, "width of a draft level", "ms a level")
    return figure


def _line(axes: Axes, points: Points, colour: str, label: str) -> None:
    sizes, seconds = zip(*points, strict=True)
    axes.plot(sizes, [1e3 * one for one in seconds], "o-", color=colour, markersize=4, linewidth=1.4, label=label)


def _finish(axes: Axes, what: str, unit: str) -> None:
    axes.set(xlabel=what, ylabel=unit, xlim=(0, None), ylim=(0, None))
    axes.legend()
