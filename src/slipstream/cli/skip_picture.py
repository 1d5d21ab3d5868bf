"""A skip set as text: which sub-layers it leaves out, where it comes from, what it is good for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slipstream.skipping.skip_set import SkipSet


_MEANINGS = {
    "method": "how the set was found",
    "objective": "what sets were compared by: expected tokens over measured costs (modelled), or measured tokens per "
    "second (throughput)",
    "sampler": "what proposed the sets to try",
    "task": "the texts that it was searched on",
    "trials": "sets that were tried",
    "best_trial": "the one that was kept",
    "best_origin": "where that came from: a starting point, or the sampler",
    "figures": "of the set, by the objective: tokens per second, speedup over plain decoding, tokens a pass (tau), "
    "drafted tokens a pass, share of first drafted tokens that are right",
    "starting_points": "tokens per second of the sets that the search began with, by the objective",
    "skipped_fraction": "share of the layers' weight bytes that is left out",
    "skipped_cost": "share of a one-row pass's time that is left out",
    "costs": "passes by rows: the whole, an attention and an MLP on average, and what is outside the layers",
    "prompts": "how many it was searched on",
    "answer_tokens": "tokens of their answers",
    "settings": "those of the search",
    "device": "what costs were measured on",
    "threads": "PyTorch's, on that device",
    "against_plain": "real answers timed beside plain decoding: speed over it, its interval, and the most that the "
    "costs allow",
    "confidence_scale": "how far the draft's confidence may be believed, from calibration",
    "calibration": "choices that this rests on, the best scale by temperature, and nats a choice with and without it",
}
"""What the entries of a skip set's provenance say; others explain themselves."""


def print_skip_set(skip_set: SkipSet) -> None:
    """Picture and provenance on stdout."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_picture(skip_set), markup=False)
    for line in _lines(skip_set.provenance):
        console.print(line, markup=False, style="dim", soft_wrap=True)
    explained = [name for name in _MEANINGS if name in skip_set.provenance]
    if explained:
        console.print("\nwhat these are", style="bold")
    for name in explained:
        console.print(f"{name}: {_MEANINGS[name]}", markup=False, style="dim")


def _picture(skip_set: SkipSet) -> str:
    """Two rows of one character per layer: # runs in the draft, . is skipped."""
    rows = [f"target {skip_set.target or 'any'} of {skip_set.num_layers} layers; # runs, . is skipped"]
    for name, skipped in (("attention", skip_set.attention), ("mlp", skip_set.mlp)):
        marks = "".join("." if layer in skipped else "#" for layer in range(skip_set.num_layers))
        rows.append(f"{name:<10}{marks}  {len(skipped)} skipped: {', '.join(map(str, skipped)) or 'none'}")
    return "\n".join(rows)


def _lines(provenance: Mapping[str, Any]) -> Iterator[str]:
    """A line for each entry; what an entry holds goes on one line as name value pairs."""
    for name, value in provenance.items():
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for one in value:
                yield f"{name}: {_pairs(one)}"
        elif isinstance(value, Mapping):
            yield f"{name}: {_pairs(value)}"
        else:
            yield f"{name}: {value}"


def _pairs(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_pairs(value) if isinstance(value, Mapping) else value}" for key, value in record.items())
