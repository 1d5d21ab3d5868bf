"""The records of this repository, and what one loses on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parents[1] / "benchmarks" / "records"


def lost(old: Any, new: Any, place: str = "record") -> list[str]:
    """Places at which `old` says something that `new` does not."""
    if isinstance(old, dict):
        return [one for key in old for one in lost(old[key], new.get(key), f"{place}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [one for index, (a, b) in pairs for one in lost(a, b, f"{place}[{index}]")]
    return [] if old == new else [place]
