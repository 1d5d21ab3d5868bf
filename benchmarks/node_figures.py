"""Figures of single nodes: the drafter's confidence against acceptance, and acceptance by position in the tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotting import COUPLED, GREEDY, PUBLISHED, RULES, row_of
from tallies import DYNAMIC, STATIC, UNCALIBRATED

from slipstream.records.schema import Place
from slipstream.records.shapes import read_shape
from slipstream.report.nodes import draw_positions, reliability
from slipstream.report.style import BLUE, GREY, ORANGE


def calibration(record: Mapping[str, Any]) -> Figure:
    """Confidence against acceptance, and how many nodes stand behind each point."""
    figure = Figure(figsize=(8, 4.9), layout="constrained")
    figure.suptitle("Does the drafter's confidence say how often the target accepts? (eagle2, 60 nodes)", fontsize=11)
    panels = figure.subplots(2, 3, sharex=True, sharey="row", height_ratios=(3, 1))
    for column, key in enumerate(RULES):
        curves = record["all"]["calibration"]
        curve = row_of(curves, key, DYNAMIC)
        if key != PUBLISHED:  # which takes a draft's probabilities as they are
            draw_curve(panels[0, column], row_of(curves, key, UNCALIBRATED), ORANGE, "uncalibrated")
        draw_curve(panels[0, column], curve, BLUE, "measured, 95 % interval")
        counts = np.array(curve["num_nodes"])
        panels[1, column].bar(centres(len(counts)), counts, 0.9 / len(counts), color=GREY)
        panels[1, column].set_yscale("log")
        panels[1, column].set_xlabel("confidence given the parent")
        error = f"calibration error {curve['expected_calibration_error']:.3f}"
        panels[0, column].set_title(f"{RULES[key]}\n{error}", loc="left")
    panels[0, 0].set_ylabel("share accepted")
    panels[1, 0].set_ylabel("nodes per bin")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def draw_curve(axes: Axes, curve: Mapping[str, Any], colour: str, label: str) -> None:
    """Points of one curve with 95 % intervals, and the diagonal."""
    counts = (curve[name] for name in ("num_nodes", "num_accepted", "confidence"))
    reliability(axes, *counts, colour, label, diagonal=GREY)


def centres(bins: int) -> np.ndarray:
    """Middles of equal bins of [0, 1]."""
    return (np.arange(bins) + 0.5) / bins


def positions(record: Mapping[str, Any]) -> Figure:
    """Acceptance by position of the static tree: on average, by task, and where the drafter was sure or unsure."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    figure.suptitle("Acceptance by position in the static tree, and how far it depends on the context", fontsize=11)
    for axes, key in zip(figure.subplots(1, 2, sharey=True), (GREEDY, COUPLED), strict=True):
        found = row_of(record["all"]["positions"], key, STATIC)["positions"]
        places = np.arange(len(found))
        draw_positions(axes, [read_shape(Place, one, name) for name, one in found.items()], mean_colour="black")
        for task in record["tasks"].values():
            own = row_of(task["positions"], key, STATIC)["positions"]
            shares = [one["acceptance"] for one in own.values()]
            axes.plot(places + 0.28, shares, ".", color=GREY, markersize=4)
        axes.plot([], [], ".", color=GREY, markersize=4, label="single tasks")
        axes.set_xticks(places, [f"{name}\n{ranks(path)}" for name, path in record["definitions"]["positions"].items()])
        axes.set_title(RULES[key], loc="left")
        axes.set_ylim(0, 1)
        axes.set_xlabel("position (ranks from the root)")
        axes.grid(axis="x", visible=False)
    figure.axes[0].set_ylabel("share of cycles in which it is accepted")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def ranks(path: Sequence[int]) -> str:
    """Ranks counted from 1: "1.2" is the second child of the first."""
    return ".".join(str(rank + 1) for rank in path)
