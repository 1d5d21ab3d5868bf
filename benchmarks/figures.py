"""Draws the record of `draft_trees.py`.

    python benchmarks/figures.py benchmarks/records/draft-trees-demo.json --out docs/figures [--png]

Everything in a figure is read from the record. SVG is for the documentation; --png adds the same as PNG, to look at.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from node_figures import calibration, positions
from plotting import COLOURS, COUPLED, GREEDY, LABELS, RULES, STYLE, TASKS, row_of
from tallies import DYNAMIC, SAME_BUDGET, STATIC, UNCALIBRATED
from tree_picture import draw_cycle

from slipstream.report.style import BLUE, GREY, ORANGE


def main() -> int:
    """Draw all figures of one record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"), help="folder of the figures")
    parser.add_argument("--png", action="store_true", help="also as PNG, 800 pixels wide")
    options = parser.parse_args()
    matplotlib.rcParams.update(STYLE)
    record = json.loads(options.record.read_text(encoding="utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(record):
        figure.savefig(options.out / f"{name}.svg", metadata={"Date": None}, facecolor="white")
        if options.png:
            figure.savefig(options.out / f"{name}.png", dpi=100, facecolor="white")
        print(options.out / f"{name}.svg")
    return 0


def figures(record: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """All figures of a record, by file name."""
    dynamic = "Tokens per target pass: static tree against dynamic tree, same draft head"
    yield "draft-trees-tau", tau_by_task(record, (STATIC, SAME_BUDGET, DYNAMIC), dynamic)
    yield "draft-trees-ablation", ablation(record)
    yield "draft-trees-calibration", calibration(record)
    yield "draft-trees-positions", positions(record)
    yield "draft-trees-sampling", sampling(record)
    skipping = "Tokens per target pass: self-speculative chain against dynamic tree"
    yield "draft-trees-layer-skip", tau_by_task(record, ("layer-skip-chain", "layer-skip-tree"), skipping)
    for cycle in record.get("cycles", ()):
        query = cycle["query"].replace("+", "-plus-").replace("=", "-equals")
        yield f"draft-trees-{query}", draw_cycle(cycle)


def tau_by_task(record: Mapping[str, Any], methods: Sequence[str], title: str) -> Figure:
    """Grouped bars of tau by task, one panel a temperature."""
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    names = [*record["tasks"], "all"]
    for axes, key in zip(panels, (GREEDY, COUPLED), strict=True):
        for number, method in enumerate(methods):
            found = (record["all"] if name == "all" else record["tasks"][name] for name in names)
            taus = [row_of(one["rows"], key, method)["tau"] for one in found]
            bars(axes, taus, number, len(methods), COLOURS[method], LABELS[method])
        axes.set_title(RULES[key], loc="left")
        axes.set_ylabel("tau\n(tokens per target pass)")
        plain_line(axes)
    panels[-1].set_xticks(range(len(names)), [TASKS.get(name, name) for name in names])
    top = panels[0].get_ylim()[1]
    panels[0].set_ylim(0, top * 1.12)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def bars(axes: Axes, values: Sequence[float], number: int, count: int, colour: str, label: str) -> None:
    """One of several series of bars side by side, with its values above."""
    width = 0.84 / count
    places = np.arange(len(values)) + (number - (count - 1) / 2) * width
    drawn = axes.bar(places, values, width * 0.94, color=colour, label=label)
    axes.bar_label(drawn, fmt="%.2f", fontsize=7, padding=1.5)
    axes.grid(axis="x", visible=False)


def plain_line(axes: Axes) -> None:
    """Plain decoding's one token a pass."""
    axes.axhline(1.0, color=GREY, linewidth=1, linestyle="--", zorder=3, label="plain decoding")


def ablation(record: Mapping[str, Any]) -> Figure:
    """Tau of the whole method and without its two parts, all tasks together."""
    variants = {
        f"{DYNAMIC}-neither": "neither",
        f"{DYNAMIC}-no-value": "rerank only",
        f"{DYNAMIC}-no-rerank": "value only",
        UNCALIBRATED: "not calibrated\n(EAGLE-2 as published)",
        DYNAMIC: "value, rerank and\ncalibrated confidence",
    }
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    figure.suptitle(
        "What expansion by value, reranking and calibration add (width 10, depth 6, total 60; all tasks)", fontsize=11
    )
    for axes, key in zip(figure.subplots(1, 2, sharey=True), (GREEDY, COUPLED), strict=True):
        rows = [row_of(record["all"]["rows"], key, method) for method in variants]
        drawn = axes.barh(range(len(rows)), [row["tau"] for row in rows], 0.62, color=[GREY, GREY, GREY, ORANGE, BLUE])
        notes = [f"{row['tau']:.2f}   {row['nodes_per_cycle']:.0f} nodes" for row in rows]
        axes.bar_label(drawn, notes, fontsize=8, padding=3)
        axes.set_yticks(range(len(rows)), variants.values())
        axes.set_xlim(0, max(row["tau"] for row in rows) * 1.42)
        axes.set_xlabel("tau (tokens per target pass)")
        axes.set_title(RULES[key], loc="left")
        axes.grid(axis="y", visible=False)
    return figure


def sampling(record: Mapping[str, Any]) -> Figure:
    """Tau at T=0, and at T=1 by coupled sampling and by the published rule; how repetitive the texts were."""
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    figure.suptitle("Drafting for a sampled target: coupled against the published rule (all tasks)", fontsize=11)
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    methods = (STATIC, SAME_BUDGET, DYNAMIC, "layer-skip-chain")
    colours = dict(zip(RULES, (GREY, BLUE, ORANGE), strict=True))
    rows = record["all"]["rows"]
    for number, key in enumerate(RULES):
        bars(left, [row_of(rows, key, one)["tau"] for one in methods], number, 3, colours[key], RULES[key])
        rate = row_of(rows, key, DYNAMIC)["repetition_rate"]
        right.bar_label(right.bar(number, rate, 0.7, color=colours[key]), fmt="%.2f", fontsize=8)
    plain_line(left)
    left.set_xticks(
        range(len(methods)), ["eagle\n25 nodes", "eagle2\n25 nodes", "eagle2\n60 nodes", "layer-skip\nchain"]
    )
    left.set_ylabel("tau (tokens per target pass)")
    left.set_title("Tokens per target pass", loc="left")
    right.set_title("Repetition of the texts", loc="left")
    right.set_ylabel("share of 4-grams seen before")
    right.set_xticks(range(3), ["T = 0", "T = 1\ncoupled", "T = 1\npublished"], fontsize=8)
    right.grid(axis="x", visible=False)
    right.margins(y=0.12)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


if __name__ == "__main__":
    sys.exit(main())
