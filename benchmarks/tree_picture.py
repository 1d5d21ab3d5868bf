"""Draws the draft trees of one cycle, root at the left, the drafter's confidence in every node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

ACCEPTED, EDGE = "#D55E00", "#8A8F98"
SHADES = LinearSegmentedColormap.from_list("path confidence", ["#FFFFFF", "#56A0D3"])
ROW_INCHES = 0.35
LONGEST = 7  # characters of a token that fit into a node
TITLES = {"eagle": "static (EAGLE-1)", "eagle2-25": "dynamic (EAGLE-2)"}


def draw_cycle(cycle: Mapping[str, Any]) -> Figure:
    """The static and the dynamic tree under one prefix, side by side."""
    layouts = {method: rows_of(tree["nodes"]) for method, tree in cycle["trees"].items()}
    height = max(max(rows) for rows in layouts.values()) + 1
    depth = max(max(depths_of(tree["nodes"])) for tree in cycle["trees"].values())
    figure = Figure(figsize=(8, 1.35 + ROW_INCHES * height), layout="constrained")
    figure.suptitle(f'One cycle after the prefix "...{cycle["query"]}": static and dynamic draft tree', fontsize=11)
    for axes, (method, tree) in zip(figure.subplots(1, len(layouts)), cycle["trees"].items(), strict=True):
        draw_tree(axes, tree, layouts[method], (depth, height))
        kept = sum(node["accepted"] for node in tree["nodes"])
        axes.set_title(
            f"{TITLES.get(method, method)}\n{len(tree['nodes'])} drafted tokens, {kept} accepted", fontsize=9
        )
    figure.supxlabel(
        "In each node: the token and the drafter's confidence in it given its parent; shade: confidence in its path.\n"
        f"Orange: accepted by the target. Next token after them: {legend(cycle)}",
        fontsize=8,
        parse_math=False,
    )
    return figure


def legend(cycle: Mapping[str, Any]) -> str:
    """What the target said after each tree's accepted path."""
    return ", ".join(
        f'"{visible(tree["next"])}" ({TITLES.get(name, name).split()[0]})' for name, tree in cycle["trees"].items()
    )


def rows_of(nodes: Sequence[Mapping[str, Any]]) -> list[int]:
    """The row of every node: a first child stands in its parent's, so that the drafter's favourite path is straight."""
    children: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        children.setdefault(node["parent"], []).append(index)
    rows = [0] * len(nodes)
    next_row = 0

    def place(index: int) -> None:
        nonlocal next_row
        if index >= 0:
            rows[index] = next_row
        for rank, child in enumerate(children.get(index, ())):
            next_row += rank > 0
            place(child)

    place(-1)
    return rows


def depths_of(nodes: Sequence[Mapping[str, Any]]) -> list[int]:
    """The depth of every node, 1 for the root's children."""
    depths: list[int] = []
    for node in nodes:
        depths.append(1 + (depths[node["parent"]] if node["parent"] >= 0 else 0))
    return depths


def draw_tree(axes: Axes, tree: Mapping[str, Any], rows: Sequence[int], size: tuple[int, int]) -> None:
    """One tree. rows: from `rows_of`. size: levels and rows that the panel has room for."""
    depths = depths_of(tree["nodes"])
    for index, node in enumerate(tree["nodes"]):
        parent = node["parent"]
        start = (depths[parent], rows[parent]) if parent >= 0 else (0, 0)
        draw_edge(axes, start, (depths[index], rows[index]), node["accepted"])
        label = f"{visible(node['text'])}\n{node['confidence']:.2f}"
        draw_node(axes, depths[index], rows[index], label, SHADES(node["value"]), node["accepted"])
    draw_node(axes, 0, 0, f"{visible(tree['root'])}\nroot", "#E6E6E6", accepted=True)
    axes.set_xlim(-0.5, size[0] + 0.5)
    axes.set_ylim(size[1] - 0.4, -0.6)
    axes.axis("off")


def draw_edge(axes: Axes, start: tuple[int, int], end: tuple[int, int], accepted: bool) -> None:
    """From a parent down to its child's row, then across."""
    bend = (start[0] + 0.5, start[1]), (start[0] + 0.5, end[1])
    xs, ys = zip(start, *bend, end, strict=True)
    style = {"color": ACCEPTED, "linewidth": 2.2, "zorder": 2} if accepted else {"color": EDGE, "linewidth": 0.8}
    axes.plot(xs, ys, **({"zorder": 1} | style))


def draw_node(axes: Axes, x: float, y: float, label: str, fill: Any, accepted: bool) -> None:
    """A box with the token and its confidence."""
    box = {
        "boxstyle": "round,pad=0.22,rounding_size=0.25",
        "facecolor": fill,
        "edgecolor": ACCEPTED if accepted else EDGE,
        "linewidth": 1.6 if accepted else 0.7,
    }
    axes.text(
        x, y, label, ha="center", va="center", fontsize=7.2, linespacing=1.0, bbox=box, zorder=3, parse_math=False
    )


def visible(text: str) -> str:
    """A token's text on one line, spaces at its ends and line breaks shown, long ones shortened."""
    text = text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")
    text = "".join(one if one.isprintable() else f"<{ord(one):02X}>" for one in text)
    text = "\N{OPEN BOX}" * (len(text) - len(text.lstrip(" "))) + text.lstrip(" ")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
