"""A skip set as text: which sub-layers it leaves out, where it comes from, what it is good for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slipstream.skipping.skip_set import SkipSet


def print_skip_set(skip_set: SkipSet) -> None:
    """Picture and provenance on stdout."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_picture(skip_set), markup=False)
    for line in _lines(skip_set.provenance):
        console.print(line, markup=False, style="dim", soft_wrap=True)


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
