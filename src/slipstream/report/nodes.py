"""Figures of single drafted tokens: confidence against acceptance, and acceptance by position and by depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slipstream.records.schema import Calibration, Depths, Place, Positions, Record
from slipstream.report.names import temperature_name
from slipstream.report.style import BLUE, FAINT, INK, ORANGE, PAPER, looks, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS, POSITION_COLUMNS, DEPTH_COLUMNS = 5, 5, 6
FEW_CYCLES = FEW_NODES = 20
"""Points that stand for fewer are drawn hollow, and no line leads through them."""
LINES = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "dash-dotted"}
"""Of the temperatures."""


# Calibration


def calibration(record: Record, temperature: float) -> Figure:
    """One panel an entrant: how often the target accepts, against the drafter's confidence."""
    curves = calibrated(record, temperature)
    figure, grid = panels(len(curves), COLUMNS, 2.25)
    style = looks(record.run.entrants)
    for axes, curve in zip(grid, curves, strict=True):
        colour = style[curve.entrant].colour
        reliability(axes, curve.num_nodes, curve.num_accepted, curve.confidence, colour, "measured", diagonal=FAINT)
        error = curve.expected_calibration_error
        axes.set_title(curve.entrant + (f"\nerror {error:.3f}" if error is not None else ""), fontsize=8)
    figure.supxlabel("confidence given the parent", fontsize=9)
    figure.supylabel("share accepted", fontsize=9)
    return figure


def calibrated(record: Record, temperature: float) -> list[Calibration]:
    """The curves of a temperature that have more than one point: confidences in more than one bin."""
    return [one for one in record.calibration if one.temperature == temperature and sum(map(bool, one.num_nodes)) > 1]


def reliability(
    axes: Axes,
    num_nodes: Sequence[int],
    num_accepted: Sequence[int],
    confidence: Sequence[float],
    colour: str,
    label: str,
    *,
    diagonal: str,
) -> None:
    """Points of one curve with 95 % intervals (Wilson), and the diagonal in its colour.

    The lists are by bin of confidence: nodes, those accepted, and the sum of the nodes' confidences.
    """
    nodes, accepted = np.array(num_nodes, float), np.array(num_accepted, float)
    seen = nodes > 0
    nodes, accepted, sums = nodes[seen], accepted[seen], np.array(confidence)[seen]
    low, high = wilson(accepted, nodes)
    if not axes.lines:
        axes.plot([0, 1], [0, 1], color=diagonal, linewidth=1, linestyle="--", label="confidence = acceptance")
    share = accepted / nodes
    gaps = np.maximum([share - low, high - share], 0)
    style: dict[str, Any] = {"color": colour, "ecolor": colour, "elinewidth": 0.9, "markersize": 4}
    many, spots = nodes >= FEW_NODES, sums / nodes
    axes.errorbar(spots[many], share[many], gaps[:, many], fmt="o-", linewidth=1, label=label, **style)
    hollow: dict[str, Any] = {"markerfacecolor": PAPER, "alpha": 0.45}
    axes.errorbar(spots[~many], share[~many], gaps[:, ~many], fmt="o", **style, **hollow)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")


def wilson(accepted: np.ndarray, nodes: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a share."""
    share = accepted / nodes
    centre = (share + z**2 / (2 * nodes)) / (1 + z**2 / nodes)
    half = z / (1 + z**2 / nodes) * np.sqrt(share * (1 - share) / nodes + z**2 / (4 * nodes**2))
    return centre - half, centre + half


# Positions


def positions(record: Record, temperature: float) -> Figure:
    """One panel an entrant: how often the positions P1..P6 of its trees are accepted."""
    found = placed(record, temperature)
    figure, (key, *grid) = panels(len(found) + 1, POSITION_COLUMNS, 1.9, first_apart=True)
    _draw_key(key)
    places = [place for one in found for place in one.positions.values()]
    top = min(1.04, 1.15 * max(max(place.acceptance, place.acceptance_when_sure) for place in places) + 0.02)
    for axes, one in zip(grid, found, strict=True):
        draw_positions(axes, list(one.positions.values()))
        axes.set_title(one.entrant, fontsize=8)
        axes.set_xticks(range(len(one.positions)), list(one.positions))
        axes.set_ylim(0, top)
        axes.grid(axis="x", visible=False)
    figure.supylabel("share accepted", fontsize=9)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _draw_key(axes: Axes) -> None:
    """Where the positions stand in a tree."""
    at = {
        "root": (2.5, 2),
        "P1": (1, 1),
        "P2": (4, 1),
        "P3": (0.25, 0),
        "P4": (1.75, 0),
        "P5": (3.25, 0),
        "P6": (4.75, 0),
    }
    under = {"P1": "root", "P2": "root", "P3": "P1", "P4": "P1", "P5": "P2", "P6": "P2"}
    for name, parent in under.items():
        axes.plot(*zip(at[parent], at[name], strict=True), color=FAINT, linewidth=1, zorder=1)
    for name, (x, y) in at.items():
        box = {"boxstyle": "round,pad=0.25", "facecolor": PAPER, "edgecolor": FAINT, "linewidth": 0.8}
        axes.text(x, y, name, ha="center", va="center", fontsize=7, bbox=box)
    axes.set(xlim=(-0.5, 5.5), ylim=(-0.6, 2.6))
    axes.set_axis_off()
    axes.set_title("places in the tree", fontsize=8)


def placed(record: Record, temperature: float) -> list[Positions]:
    """The positions of a temperature that were met at all."""
    return [
        one
        for one in record.positions
        if one.temperature == temperature and any(any(place.num_nodes) for place in one.positions.values())
    ]


def draw_positions(axes: Axes, places: Sequence[Place], mean_colour: str = INK) -> None:
    """The acceptance of each position: over all cycles, and in the surest and the least sure third of them."""
    spots = np.arange(len(places))
    sure, unsure = [one.acceptance_when_sure for one in places], [one.acceptance_when_unsure for one in places]
    axes.vlines(spots, unsure, sure, color="#C9CDD2", linewidth=7, zorder=1)
    axes.plot(spots, sure, "^", color=BLUE, label="surest third of cycles")
    axes.plot(spots, unsure, "v", color=ORANGE, label="least sure third")
    shares = [one.acceptance for one in places]
    axes.plot(spots, shares, "_", color=mean_colour, markersize=16, markeredgewidth=2, label="all cycles")


# Depth


def depths(record: Record) -> Figure:
    """One panel an entrant: the share of cycles that accept a node at a depth, of those that got so far."""
    from matplotlib.ticker import MaxNLocator

    temperatures = [one for one in record.temperatures if reaching(record, one)]
    names = list(dict.fromkeys(curve.entrant for one in temperatures for curve in reaching(record, one)))
    figure, grid = panels(len(names), DEPTH_COLUMNS, 1.3)
    style = looks(record.run.entrants)
    for axes, name in zip(grid, names, strict=True):
        for temperature, line in zip(temperatures, LINES, strict=False):
            for curve in (one for one in reaching(record, temperature) if one.entrant == name):
                _depth_curve(axes, curve, style[name].colour, line)
        axes.set_title(name, fontsize=8)
    deepest = max(_deepest(curve) for one in temperatures for curve in reaching(record, one))
    grid[0].set_xlim(0.6, deepest + 0.4)
    grid[0].set_ylim(-0.04, 1.06)
    grid[0].xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    kinds = [f"{temperature_name(one)} {name}" for one, name in zip(temperatures, LINES.values(), strict=False)]
    figure.supxlabel(f"depth in the tree ({', '.join(kinds)})", fontsize=9)
    figure.supylabel("share accepted", fontsize=9)
    return figure


def reaching(record: Record, temperature: float) -> list[Depths]:
    """The curves of a temperature that reach a depth at all."""
    return [one for one in record.depths if one.temperature == temperature and any(one.num_reached)]


def _deepest(curve: Depths) -> int:
    """The last depth that enough cycles reached; the first one at least."""
    return max((depth for depth, reached in enumerate(curve.num_reached, 1) if reached >= FEW_CYCLES), default=1)


def _depth_curve(axes: Axes, curve: Depths, colour: str, line: str) -> None:
    reached, accepted = np.array(curve.num_reached, float), np.array(curve.num_accepted, float)
    spots = np.flatnonzero(reached)
    shares = accepted[spots] / reached[spots]
    axes.plot(spots + 1, shares, line, color=colour, linewidth=1.3)
    few = reached[spots] < FEW_CYCLES
    axes.plot(spots[~few] + 1, shares[~few], "o", color=colour, markersize=3.5)
    axes.plot(spots[few] + 1, shares[few], "o", color=colour, markersize=3.5, markerfacecolor=PAPER)
