"""What the figures share: style, colours, names, and the look-up of a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tallies import DYNAMIC, SAME_BUDGET, STATIC

from slipstream.report.style import BLUE, ORANGE, SKY

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E3E5E8",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "slipstream",  # the same record gives the same file
}
COLOURS = {STATIC: ORANGE, SAME_BUDGET: SKY, DYNAMIC: BLUE, "layer-skip-chain": ORANGE, "layer-skip-tree": BLUE}
LABELS = {
    STATIC: "eagle: static, 25 nodes",
    SAME_BUDGET: "eagle2: dynamic, 25 nodes",
    DYNAMIC: "eagle2: dynamic, 60 nodes",
    "layer-skip-chain": "layer-skip: chain (published)",
    "layer-skip-tree": "layer-skip: dynamic tree, 12 nodes",
}
TASKS = {
    "mt_bench": "MT-bench",
    "humaneval": "HumanEval",
    "gsm8k": "GSM8K",
    "alpaca": "Alpaca",
    "cnn_dm": "CNN/DM",
    "nq": "Natural\nQuestions",
}
GREEDY, COUPLED, PUBLISHED = (0.0, "greedy"), (1.0, "coupled"), (1.0, "rejection")
RULES = {GREEDY: "T = 0", COUPLED: "T = 1, coupled", PUBLISHED: "T = 1, published rule"}


def row_of(rows: Iterable[Mapping[str, Any]], key: tuple[float, str], method: str) -> Mapping[str, Any]:
    """The row of a method under a rule."""
    return next(row for row in rows if (row["temperature"], row["rule"], row["method"]) == (*key, method))
