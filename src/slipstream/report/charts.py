"""The figures of a record: which there are, what they are called, and one sentence on how to read each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from slipstream.records.schema import ALL, CycleTree, Record
from slipstream.report import bars, costs, cycles, nodes
from slipstream.report.names import count, task_name, temperature_name, temperature_slug
from slipstream.report.tree_picture import tree_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure that a record has the data for. It is drawn when asked for."""

    name: str
    """Of its file, without the ending."""
    section: str
    """Under which heading of the page it stands."""
    title: str
    reading: str
    """How to read it."""
    draw: Callable[[], Figure]


SECTIONS = ("Speed and tau by task", "Cycles", "Drafted tokens", "Draft trees of real cycles")
INTRODUCTIONS = {
    "Speed and tau by task": "Speed-up: tokens per second over those of plain, this package's own plain decoding, in "
    "the same run. tau: tokens that one pass of the target emits; plain decoding's is 1. T: temperature; at T = 0 the "
    "likeliest token is taken.",
    "Cycles": "A cycle drafts some tokens, has the target check them all in one pass, keeps those that the target "
    "would have chosen itself, and adds the target's own next token.",
    "Drafted tokens": "Confidence: the probability that the drafter gives a token after the tokens before it in the "
    "draft. Accepted: the target would have chosen it, and all drafted tokens before it.",
    "Draft trees of real cycles": "The first recorded cycle of every entrant: neither prompt nor cycle was picked. In "
    "each node stand the token and the drafter's confidence in it given its parent; the bluer, the surer of the whole "
    "path. Orange: accepted by the target.",
}
"""What holds for all figures of a section."""


def charts(record: Record) -> list[Chart]:
    """All figures that the record has data for, in the order of the page."""
    return [*_by_task(record), *_cycles(record), *_nodes(record), *_trees(record)]


def _by_task(record: Record) -> Iterator[Chart]:
    for one in record.temperatures:
        rows, where, slug = record.rows_of(ALL, one), temperature_name(one), temperature_slug(one)
        if any(row.ratio_to_plain is not None for row in rows):
            yield Chart(
                f"speed-{slug}",
                SECTIONS[0],
                f"Speed-up over plain, {where}",
                "Longer is faster; left of the dashed line a method is slower than plain decoding. Under the bars of "
                "all tasks, the line spans the quartiles over answers, with the median as a tick; an arrow where it "
                "goes beyond the axis.",
                partial(bars.speed_by_task, record, one),
            )
        if any(row.tau is not None for row in rows):
            yield Chart(
                f"tau-{slug}",
                SECTIONS[0],
                f"tau, {where}",
                "Tokens that one pass of the target emits: longer means fewer passes. It does not depend on the "
                "machine (but for trees sized by measured cost), and becomes speed only where drafting is cheap.",
                partial(bars.tau_by_task, record, one),
            )


def _cycles(record: Record) -> Iterator[Chart]:
    for one in record.temperatures:
        if cycles.drafting(record.rows_of(ALL, one)):
            yield Chart(
                f"accept-lengths-{temperature_slug(one)}",
                SECTIONS[1],
                f"Tokens per cycle, {temperature_name(one)}",
                "How often a cycle emitted 1, 2, 3, ... tokens: 1 means that nothing drafted was kept; a peak at the "
                "right end means that deeper drafts would pay.",
                partial(cycles.accept_lengths, record, one),
            )
    if any(cycles.timed(record.rows_of(ALL, one)) for one in record.temperatures):
        yield Chart(
            "time-split",
            SECTIONS[1],
            "Where the time of a cycle goes",
            "One bar a method, mean milliseconds of a cycle: its drafting, building the tree's masks, the target's "
            "pass (verify), choosing tokens, and everything else on the host.",
            partial(cycles.time_split, record),
        )
    if record.verify_cost:
        yield Chart(
            "verify-cost",
            SECTIONS[1],
            "What a target pass over n rows costs",
            "A flat line means that verifying a large tree is free; the steeper it is, the smaller a tree should be. "
            "The numbers are multiples of the leftmost pass.",
            partial(costs.verify_cost, record),
        )


def _nodes(record: Record) -> Iterator[Chart]:
    for one in record.temperatures:
        if nodes.calibrated(record, one):
            yield Chart(
                f"calibration-{temperature_slug(one)}",
                SECTIONS[2],
                f"Confidence against acceptance, {temperature_name(one)}",
                "On the dashed diagonal, a drafter that is 80 % sure of a token is right 80 % of the time; below it, "
                "it is too sure of itself. Only tokens whose predecessors were accepted count. Vertical lines: 95 % "
                f"intervals; hollow points stand for fewer than {nodes.FEW_NODES} tokens. error: mean distance from "
                "the diagonal, each token weighing the same. Methods whose confidences all lie in one twentieth of "
                "the axis have no curve.",
                partial(nodes.calibration, record, one),
            )
    for one in record.temperatures:
        if nodes.placed(record, one):
            yield Chart(
                f"positions-{temperature_slug(one)}",
                SECTIONS[2],
                f"Acceptance by position in the tree, {temperature_name(one)}",
                "P1 to P6 are places in a draft tree, drawn at the left: the two likeliest first tokens, and the two "
                "likeliest tokens after each. Acceptance: of the cycles whose tree had the place, the share in which "
                "its token was accepted; over all cycles, and in the thirds in which the drafter was surest and least "
                "sure of it. A long grey bar means that acceptance depends on the context, which a tree of fixed shape "
                "cannot follow.",
                partial(nodes.positions, record, one),
            )
    if any(nodes.reaching(record, one) for one in record.temperatures):
        yield Chart(
            "depth",
            SECTIONS[2],
            "Acceptance by depth",
            "Of the cycles that got as far as a depth, the share that accepted a token there; a flat curve means that "
            f"drafting deeper loses nothing. Hollow points stand for fewer than {nodes.FEW_CYCLES} cycles; depths that "
            "no entrant reached so often are left out.",
            partial(nodes.depths, record),
        )


def _trees(record: Record) -> Iterator[Chart]:
    """The first tree of every entrant, in the entrants' order."""
    for entrant in record.run.entrants:
        tree = next((one for one in record.trees if one.entrant == entrant.name and one.nodes), None)
        if tree is not None:
            yield Chart(
                f"tree-{entrant.name}",
                SECTIONS[3],
                f"{tree.entrant} on {task_name(tree.task)}, {temperature_name(tree.temperature)}",
                _tree_reading(tree),
                partial(tree_figure, tree),
            )


def _tree_reading(tree: CycleTree) -> str:
    kept = sum(node.accepted for node in tree.nodes)
    cycle = f"Cycle {tree.cycle + 1}" if tree.cycle is not None else "A cycle"
    after = f", after “{tree.prefix.strip()}”" if tree.prefix.strip() else ""
    return (
        f"{cycle} of the answer to prompt {tree.prompt_id}, turn {tree.turn + 1}{after}: "
        f"{count(len(tree.nodes), 'drafted token')}, {kept} accepted, then the target's own “{tree.next}”."
    )
