"""Draws the static and the dynamic draft tree of one cycle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from slipstream.records.schema import Node
from slipstream.records.shapes import read_shape
from slipstream.report.tree_picture import TALL_ROW, depths_of, draw_tree, rows_of, visible

TITLES = {"eagle": "static (EAGLE-1)", "eagle2-25": "dynamic (EAGLE-2)"}


def draw_cycle(cycle: Mapping[str, Any]) -> Figure:
    """The static and the dynamic tree under one prefix, side by side."""
    trees = {
        method: [read_shape(Node, node, method) for node in tree["nodes"]] for method, tree in cycle["trees"].items()
    }
    layouts = {method: rows_of(nodes) for method, nodes in trees.items()}
    height = max(max(rows) for rows in layouts.values()) + 1
    depth = max(max(depths_of(nodes)) for nodes in trees.values())
    figure = Figure(figsize=(8, 1.35 + TALL_ROW * height), layout="constrained")
    figure.suptitle(f'One cycle after the prefix "...{cycle["query"]}": static and dynamic draft tree', fontsize=11)
    for axes, (method, nodes) in zip(figure.subplots(1, len(trees)), trees.items(), strict=True):
        draw_tree(axes, nodes, cycle["trees"][method]["root"], layouts[method], (depth, height))
        kept = sum(node.accepted for node in nodes)
        axes.set_title(f"{TITLES.get(method, method)}\n{len(nodes)} drafted tokens, {kept} accepted", fontsize=9)
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
