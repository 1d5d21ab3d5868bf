"""The formulas of docs/theory.md against layer-skip chains and trees: tokens per cycle, and speed.

    python benchmarks/theory.py --threads 1 --out benchmarks/records/theory-demo.json --figure docs/figures/theory.svg

What predicts: acceptance as the longest chain shows it, ranks as the widest tree shows them, and the costs of single
passes. What is predicted: all other lengths and sizes. Every configuration answers a prompt before any sees the next.
The figure needs matplotlib; `--from RECORD` draws it again without measuring.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import mul
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pass_cost import ROWS, costs

import slipstream
from records import provenance, write_record
from slipstream.bench.watching import Cycle, WatchedDrafter
from slipstream.methods.layer_skip.theory import best_values, chain_tokens, tree_tokens
from slipstream.model import Model
from slipstream.prompts import load_prompts
from slipstream.runtime.costs import Costs

LENGTHS = (1, 2, 3, 4, 6, 8, 12)
TREES = ((2, 2, 4), (4, 2, 8), (4, 3, 6), (4, 3, 12), (4, 4, 16), (8, 3, 20), (8, 4, 32))
"""(width, depth, nodes); the last is the widest."""
PREFIX = 200  # cached tokens while passes are timed
TIMED_EVERY = 3  # prompts


def main() -> int:
    """Measure or read, print, write the record and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="tiny")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--skip-set", help="instead of the target's default")
    parser.add_argument("--prompts", type=int, default=18, help="of the package's own")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--from", dest="source", type=Path, help="read this record instead of measuring")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path, help="*.svg or *.png")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    record = json.loads(options.source.read_text()) if options.source else measure(options)
    print(table(record))
    if options.out is not None:
        write_record(record, options.out)
    if options.figure is not None:
        draw(record, options.figure)
    return 0


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The record."""
    base = slipstream.load(
        options.model, "layer-skip", skip_set=options.skip_set, dtype=options.dtype, device=options.device
    )
    source = provenance(
        base.target, model=options.model, prompts=options.prompts, max_new_tokens=options.max_new_tokens, prefix=PREFIX
    )
    models = dict(configurations(base))
    costs(base, 1, PREFIX)  # warm-up
    timed: list[list[dict[str, float]]] = []
    stats, cycles = run(models, options, lambda: timed.append([costs(base, rows, PREFIX) for rows in ROWS]))
    passes = [
        {"rows": rows[0]["rows"], **{kind: median(one[kind] for one in rows) for kind in ("full_ms", "skipping_ms")}}
        for rows in zip(*timed, strict=True)
    ]
    return {
        "provenance": source,
        "skip_set": {"attention": base.drafter.skip_set.attention, "mlp": base.drafter.skip_set.mlp},
        "skipped_fraction": round(base.drafter.skipped_fraction, 4),
        "passes": passes,
        **points(stats, cycles, passes),
    }


def configurations(base: Model) -> Iterator[tuple[str, Model]]:
    """Plain decoding, then all chains and trees, over one target and one skip set."""
    target, tokenizer = base.target.model, base.tokenizer
    yield "plain", slipstream.load(target, "plain", tokenizer=tokenizer)
    fixed = {"skip_set": base.drafter.skip_set}
    chain = {"tree": "chain", "threshold": 0.0, "adaptive": False}
    shapes = {f"chain {length}": {**chain, "length": length} for length in LENGTHS}
    shapes |= {f"tree {w} {d} {n}": {"width": w, "depth": d, "total": n} for w, d, n in TREES}
    for name, shape in shapes.items():
        loaded = slipstream.load(target, "layer-skip", tokenizer=tokenizer, **fixed, **shape)
        yield name, Model(loaded.target, WatchedDrafter(loaded.drafter), tokenizer)


def run(
    models: Mapping[str, Model], options: argparse.Namespace, time_passes: Callable[[], None]
) -> tuple[dict[str, slipstream.Stats], dict[str, list[Cycle]]]:
    """What every configuration did, and the cycles of each; passes are timed in between, on the same machine's mood."""
    stats = {name: slipstream.Stats() for name in models}
    cycles: dict[str, list[Cycle]] = {name: [] for name in models}
    for number, prompt in enumerate(load_prompts()[: options.prompts]):
        if number % TIMED_EVERY == 0:
            time_passes()
        for name, model in models.items():
            output = model.generate(prompt.turns[0], max_new_tokens=options.max_new_tokens, temperature=0)
            stats[name] += output.stats
            if isinstance(model.drafter, WatchedDrafter):
                cycles[name] += model.drafter.take()
        print(f"prompt {number + 1}/{options.prompts}", file=sys.stderr)
    return stats, cycles


# -- predicting --------------------------------------------------------------------------------------------------------


def points(
    stats: Mapping[str, slipstream.Stats], cycles: Mapping[str, Sequence[Cycle]], passes: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """What was read off the longest chain and the widest tree, and every configuration, predicted and measured."""
    by_depth = acceptance_by_depth(cycles[f"chain {LENGTHS[-1]}"], LENGTHS[-1])
    accepted = sum(by_depth["accepted"])
    constant = accepted / sum(by_depth["tried"])
    rates = [kept / max(1, tried) for kept, tried in zip(by_depth["accepted"], by_depth["tried"], strict=True)]
    widest = "tree {} {} {}".format(*TREES[-1])
    ranks = rank_shares(cycles[widest], TREES[-1][0])
    full, skipping = (
        Costs(tuple((int(one["rows"]), one[kind]) for one in passes), (0.0,)) for kind in ("full_ms", "skipping_ms")
    )
    plain = stats["plain"]
    plain_ms = 1e3 * seconds(plain) / plain.num_cycles
    between = max(0.0, plain_ms - full.verify(1))  # of a cycle, outside the passes

    def point(name: str, tokens: Mapping[str, float], draft_ms: float, rows: int, **what: int) -> dict[str, Any]:
        cycle_ms = draft_ms + full.verify(rows) + between
        measured = stats[name]
        return {
            **what,
            "num_cycles": measured.num_cycles,
            "tau": round(measured.tau, 4),
            **{f"tau_{kind}": round(value, 4) for kind, value in tokens.items()},
            "cycle_ms": round(1e3 * seconds(measured) / measured.num_cycles, 3),
            "cycle_ms_predicted": round(cycle_ms, 3),
            "speedup": round(seconds(plain) / plain.num_tokens / (seconds(measured) / measured.num_tokens), 4),
            **{f"speedup_{kind}": round(value * plain_ms / cycle_ms, 4) for kind, value in tokens.items()},
        }

    chains = [
        point(
            f"chain {length}",
            {
                "constant": chain_tokens(constant, length),
                "by_depth": tree_tokens(accumulate(rates[:length], mul)),
            },
            draft_ms=length * skipping.verify(1),
            rows=1 + length,
            length=length,
        )
        for length in LENGTHS
    ]
    trees = [
        point(
            f"tree {width} {depth} {nodes}",
            {
                "by_ranks": tree_tokens(best_values(ranks[:width], nodes, depth)),
                "by_values": mean_value(cycles[f"tree {width} {depth} {nodes}"], depth),
            },
            draft_ms=skipping.verify(1) + (depth - 1) * skipping.verify(width),
            rows=1 + nodes,
            width=width,
            depth=depth,
            nodes=nodes,
        )
        for width, depth, nodes in TREES
    ]
    return {
        "plain_ms": round(plain_ms, 3),
        "acceptance": round(constant, 4),
        "by_depth": by_depth,
        "ranks": [round(share, 4) for share in ranks],
        "chains": chains,
        "trees": trees,
    }


def seconds(stats: slipstream.Stats) -> float:
    """Seconds of all cycles; the prompts' prefill is no part of them."""
    return stats.cycles_s


def acceptance_by_depth(cycles: Sequence[Cycle], length: int) -> dict[str, list[int]]:
    """How often the token at depth 1, 2, ... was tried, those before it being accepted, and how often accepted.

    Of drafts of full length only: others were cut short by the end of the answer.
    """
    kept = [len(cycle.path) for cycle in cycles if cycle.tree.num_nodes == length]
    depths = range(1, length + 1)
    return {
        "tried": [sum(count >= depth - 1 for count in kept) for depth in depths],
        "accepted": [sum(count >= depth for count in kept) for depth in depths],
    }


def rank_shares(cycles: Sequence[Cycle], width: int) -> list[float]:
    """How often the target took the best, second best, ... child of the root."""
    counts = [0] * width
    for cycle in cycles:
        first = cycle.tree.tokens[cycle.tree.parents == -1].tolist()  # best first
        taken = int(cycle.choice[0])
        if taken in first:
            counts[first.index(taken)] += 1
    return [count / len(cycles) for count in counts]


def mean_value(cycles: Sequence[Cycle], depth: int) -> float:
    """Tokens of a cycle as the drafter's own values promise them."""
    whole = [tree_tokens(cycle.tree.log_value.exp().tolist()) for cycle in cycles if cycle.tree.max_depth == depth]
    return sum(whole) / len(whole)


# -- showing -----------------------------------------------------------------------------------------------------------


def table(record: Mapping[str, Any]) -> str:
    """Measured and predicted, a line a configuration."""
    lines = [f"acceptance {record['acceptance']}, ranks {record['ranks']}, plain {record['plain_ms']} ms a token"]
    for one in (*record["chains"], *record["trees"]):
        name = f"chain {one['length']}" if "length" in one else "tree {width} {depth} {nodes}".format(**one)
        cells = [f"{key} {one[key]:.3f}" for key in one if key.startswith(("tau", "speedup", "cycle_ms"))]
        lines.append(f"{name:12} " + "  ".join(cells))
    return "\n".join(lines)


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Three panels: tokens of chains, speed of chains, and of trees both against their predictions."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "theory"  # the same record, the same file
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    tokens, speed, trees = panels
    chains = record["chains"]
    lengths = [one["length"] for one in chains]
    average = f"one acceptance for all, {record['acceptance']:.2f}"
    styles = {"constant": ("--", average), "by_depth": ("-", "acceptance by depth")}
    for axes, measure, label in ((tokens, "tau", "tokens per cycle"), (speed, "speedup", "speed relative to plain")):
        for kind, (style, name) in styles.items():
            axes.plot(lengths, [one[f"{measure}_{kind}"] for one in chains], style, color="black", label=name)
        axes.plot(lengths, [one[measure] for one in chains], "o", color="#c0392b", label="measured")
        axes.set(xlabel="chain length K", ylabel=f"{label} (chains)", ylim=(0, None))
        axes.legend(frameon=False)
    groups = (
        ("tau_by_ranks", "tau", "o", "#c0392b", "tau, by ranks"),
        ("tau_by_values", "tau", "x", "#888888", "tau, by values"),
        ("speedup_by_ranks", "speedup", "s", "#2f6f8f", "speed, by ranks"),
    )
    for predicted, measured, marker, colour, label in groups:
        across, up = ([one[key] for one in record["trees"]] for key in (predicted, measured))
        trees.plot(across, up, marker, color=colour, label=label)
    top = 1.1 * max(one[key] for one in record["trees"] for key in ("tau", "tau_by_ranks", "tau_by_values"))
    trees.plot([0, top], [0, top], "-", color="grey", linewidth=0.8)
    trees.set(xlabel="predicted (trees)", ylabel="measured (trees)", xlim=(0, top), ylim=(0, top))
    trees.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    sys.exit(main())
