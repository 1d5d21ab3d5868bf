"""Draws the draft tree of one cycle, root at the left, the drafter's confidence in every node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slipstream.records.schema import CycleTree, Node
from slipstream.report.style import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCEPTED, EDGE, LETTERS, ROOT = "#D55E00", "#8A8F98", "#000000", "#E6E6E6"
SHADES = ("#FFFFFF", "#56A0D3")
"""Of a path's confidence, 0 to 1."""
LONGEST = 7  # characters of a token that fit into a node
TALL_ROW, LOW_ROW = 0.35, 0.22  # inches; with the confidence under the token, and beside it
MANY_ROWS = 16


def tree_figure(tree: CycleTree) -> Figure:
    """The picture of one tree, as large as it needs to be."""
    rows, depths = rows_of(tree.nodes), depths_of(tree.nodes)
    depth, height = max(depths, default=0), max(rows, default=0) + 1
    one_line = height > MANY_ROWS
    level, row = (1.05, LOW_ROW) if one_line else (0.8, TALL_ROW)
    figure = new_figure(max(3.2, level * (depth + 1)), max(0.6, row * height))
    axes = figure.subplots()
    draw_tree(axes, tree.nodes, tree.root, rows, (depth, height), one_line=one_line)
    return figure


def rows_of(nodes: Sequence[Node]) -> list[int]:
    """The row of every node: a first child stands in its parent's, so that the drafter's favourite path is straight."""
    children: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        children.setdefault(node.parent, []).append(index)
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


def depths_of(nodes: Sequence[Node]) -> list[int]:
    """The depth of every node, 1 for the root's children."""
    depths: list[int] = []
    for node in nodes:
        depths.append(1 + (depths[node.parent] if node.parent >= 0 else 0))
    return depths


def draw_tree(
    axes: Axes, nodes: Sequence[Node], root: str, rows: Sequence[int], size: tuple[int, int], *, one_line: bool = False
) -> None:
    """One tree. rows: from `rows_of`. size: levels and rows that the panel has room for."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("path confidence", SHADES)
    depths = depths_of(nodes)
    gap = " " if one_line else "\n"
    for index, node in enumerate(nodes):
        start = (depths[node.parent], rows[node.parent]) if node.parent >= 0 else (0, 0)
        draw_edge(axes, start, (depths[index], rows[index]), node.accepted)
        label = f"{visible(node.text)}{gap}{node.confidence:.2f}"
        draw_node(axes, depths[index], rows[index], label, shades(node.value), node.accepted)
    draw_node(axes, 0, 0, f"{visible(root)}{gap}root", ROOT, accepted=True)
    axes.set_xlim(-0.5, size[0] + 0.5)
    axes.set_ylim(size[1] - 0.4, -0.6)
    axes.axis("off")


def draw_edge(axes: Axes, start: tuple[int, int], end: tuple[int, int], accepted: bool) -> None:
    """From a parent down to its child's row, then across."""
    bend = (start[0] + 0.5, start[1]), (start[0] + 0.5, end[1])
    xs, ys = zip(start, *bend, end, strict=True)
    style: dict[str, Any] = {"color": ACCEPTED, "linewidth": 2.2} if accepted else {"color": EDGE, "linewidth": 0.8}
    axes.plot(xs, ys, zorder=2 if accepted else 1, **style)


def draw_node(axes: Axes, x: float, y: float, label: str, fill: Any, accepted: bool) -> None:
    """A box with the token and its confidence."""
    box = {
        "boxstyle": "round,pad=0.22,rounding_size=0.25",
        "facecolor": fill,
        "edgecolor": ACCEPTED if accepted else EDGE,
        "linewidth": 1.6 if accepted else 0.7,
    }
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7.2, "linespacing": 1.0, "zorder": 3}
    axes.text(x, y, label, color=LETTERS, bbox=box, parse_math=False, **style)


def visible(text: str) -> str:
    """A token's text on one line, spaces at its ends and line breaks shown, long ones shortened."""
    text = text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")
    text = "".join(one if one.isprintable() else f"<{ord(one):02X}>" for one in text)
    text = "\N{OPEN BOX}" * (len(text) - len(text.lstrip(" "))) + text.lstrip(" ")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
