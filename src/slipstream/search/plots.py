"""Pictures of a search: how its trials went, and which sub-layers the best set keeps. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from slipstream.errors import InputError
from slipstream.skipping.skip_set import SkipSet

FORMATS = ("svg", "png")
INSTALL = "pip install matplotlib"
_KEPT, _SKIPPED = "#2f6f8f", "#e8e8e8"


def plot_search(values: Sequence[float], origins: Sequence[str], plain: float, title: str) -> Any:
    """Every trial's speed over plain decoding's, and the best so far; what the sampler proposed apart from other
    origins. values, plain: tokens per second.
    """
    values = [value / plain for value in values]
    figure = _figure(8, 4)
    axes = figure.subplots()
    numbers = range(1, len(values) + 1)
    groups = (
        ("sampler", "o", [origin == "sampler" for origin in origins]),
        ("neighbour", "v", [origin == "neighbour" for origin in origins]),
        ("starting point", "s", [origin not in ("sampler", "neighbour") for origin in origins]),
    )
    for name, marker, member in groups:
        points = [(n, value) for n, value, inside in zip(numbers, values, member, strict=True) if inside]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, s=16, alpha=0.7, label=name)
    axes.step(numbers, list(accumulate(values, max)), where="post", color="black", label="best so far")
    axes.axhline(1.0, color="#b03a2e", linestyle="--", label="plain decoding")
    axes.set(xlabel="trial", ylabel="times plain decoding's speed", title=title, ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return figure


def plot_layers(skip_set: SkipSet, title: str) -> Any:
    """One square per sub-layer: filled where it runs in the draft."""
    figure = _figure(max(4.0, 0.28 * skip_set.num_layers + 1.5), 1.9)
    axes = figure.subplots()
    for row, skipped in enumerate((skip_set.attention, skip_set.mlp)):
        colours = [_SKIPPED if layer in skipped else _KEPT for layer in range(skip_set.num_layers)]
        axes.bar(range(skip_set.num_layers), 0.86, width=0.86, bottom=row - 0.43, color=colours, edgecolor="#999999")
    axes.set(title=title, xlabel="layer (filled: runs in the draft)", yticks=(0, 1), ylim=(1.6, -0.6))
    axes.set_yticklabels(("attention", "MLP"))
    axes.set_xticks(range(0, skip_set.num_layers, 1 + skip_set.num_layers // 20))
    axes.set_aspect("equal")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def write_plots(
    skip_set: SkipSet, values: Sequence[float], origins: Sequence[str], plain: float, beside: Path, kind: str
) -> list[Path]:
    """Both pictures next to the skip-set file `beside`. values, plain: tokens per second of the trials, and of plain
    decoding by the same costs. kind: one of `FORMATS`. Returns the files.
    """
    task = skip_set.provenance.get("task", "")
    objective = skip_set.provenance.get("objective", "")
    figures = {
        "search": plot_search(values, origins, plain, f"search for {task}: {objective} speed of the sets tried"),
        "layers": plot_layers(skip_set, f"{len(skip_set.attention)} attention and {len(skip_set.mlp)} MLP skipped"),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(beside.with_name(f"{beside.stem}.{name}.{kind}"))
        figure.savefig(paths[-1], format=kind)
    return paths


def have_matplotlib() -> bool:
    """Whether plots can be drawn."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def _figure(width: float, height: float) -> Any:
    """An empty figure, drawn without a window and without a global state. Raises InputError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(f"plots need matplotlib, which is not installed; run: {INSTALL}") from error
    return Figure(figsize=(width, height), layout="constrained")
