"""What a search for a skip set is asked for in plain values. No torch here: the command's help is made of this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slipstream.errors import InputError, unknown_choice

SIZES = {"dynamic": ("width", "depth", "total"), "chain": ("length", "threshold")}
"""Of a draft, by its tree."""
OBJECTIVES = ("modelled", "throughput")
SAMPLERS = ("tpe", "gp", "random")

_AT_LEAST = {"trials": 1, "num_prompts": 1, "max_new_tokens": 2, "rows": 1, "repeats": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How to search. Raises InputError for a value out of range."""

    trials: int = 200
    """Sets to try in all, those of an interrupted search included."""
    objective: str = "modelled"
    """modelled: expected tokens over measured costs, from one pass a trial; throughput: measured tokens per second."""
    sampler: str = "tpe"
    """tpe, gp (Gaussian process, slower to ask) or random."""
    starting_points: bool = True
    """Begin with the default, uniform and greedy sets."""
    num_prompts: int = 12
    """Prompts to search on, at most."""
    max_new_tokens: int = 64
    """Tokens of each answer of the target, at most."""
    temperature: float = 0.0
    """Of the answers; above 0 they are sampled, and drafts are coupled to the same noise."""
    rows: int = 1536
    """Rows of a modelled trial, about: fewer than one block for every token make blocks start further apart."""
    repeats: int = 1
    """Times that each prompt is answered in a trial of the throughput objective, and where sets meet plain decoding."""
    seed: int = 0
    """Of the sampler, and of sampled answers."""
    keep_first: int | None = None
    """First layers that are never touched; None: one."""
    keep_last: int | None = None
    """Last layers that are never touched; None: one, of fewer than four layers none."""
    max_skipped: int | None = None
    """Sub-layers skipped together, at most."""

    def __post_init__(self) -> None:
        for name, choices in (("objective", OBJECTIVES), ("sampler", SAMPLERS)):
            if getattr(self, name) not in choices:
                raise unknown_choice(name, getattr(self, name), choices)
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        for name in ("seed", "temperature"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOptions:
    """The draft that a set is to be good for, as `layer-skip` is asked for it; None: as the draft's shape has it."""

    tree: str = "dynamic"
    """dynamic or chain."""
    width: int | None = None
    """dynamic: nodes of the tree expanded at each level."""
    depth: int | None = None
    """dynamic: levels of the tree."""
    total: int | None = None
    """dynamic: drafted tokens verified at once; the root is not counted."""
    length: int | None = None
    """chain: tokens drafted at most."""
    threshold: float | None = None
    """chain: stop below this confidence."""

    def __post_init__(self) -> None:
        if self.tree not in SIZES:
            raise unknown_choice("tree", self.tree, SIZES)
        own = SIZES[self.tree]
        names = (name for names in SIZES.values() for name in names)
        if unread := next((name for name in names if name not in own and getattr(self, name) is not None), None):
            raise InputError(f"--{unread} says nothing about a {self.tree} draft, which takes {', '.join(own)}")

    @property
    def sizes(self) -> dict[str, Any]:
        """Those of the draft's sizes that were given."""
        given = {name: getattr(self, name) for name in SIZES[self.tree]}
        return {name: value for name, value in given.items() if value is not None}
