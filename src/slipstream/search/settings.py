"""The settings of a search for a skip set."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from slipstream.drafting.shape import Chain, Dynamic
from slipstream.errors import InputError, unknown_choice

TREES = ("dynamic", "chain")
OBJECTIVES = ("modelled", "throughput")
SAMPLERS = ("tpe", "gp", "random")

_AT_LEAST = {"trials": 1, "num_prompts": 1, "max_new_tokens": 2, "rows": 1, "repeats": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """What to search by. Raises InputError for a value out of range."""

    objective: str = "modelled"
    """modelled: expected tokens over measured costs, from one pass a trial; throughput: measured tokens per second."""
    sampler: str = "tpe"
    """tpe, gp (Gaussian process, slower to ask) or random."""
    trials: int = 200
    """Sets to try in all, those of an interrupted search included."""
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
    keep_first: int | None = None
    """First layers that are never touched; None: one."""
    keep_last: int | None = None
    """Last layers that are never touched; None: one, of fewer than four layers none."""
    max_skipped: int | None = None
    """Sub-layers skipped together, at most."""
    starting_points: bool = True
    """Begin with the default, uniform and greedy sets."""
    shape: Dynamic | Chain = field(default_factory=Dynamic)
    """The draft that the set is to be good for."""
    seed: int = 0
    """Of the sampler, and of sampled answers."""

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("objective", self.objective, OBJECTIVES),
            ("sampler", self.sampler, SAMPLERS),
        ):
            if value not in choices:
                raise unknown_choice(name, value, choices)
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must be 0 or more")
        if self.temperature < 0:
            raise InputError(f"temperature is {self.temperature}; it must be 0 or more")

    @property
    def tree(self) -> str:
        """The name of the draft's shape, as `layer-skip` takes it."""
        return self.shape.kind

    def defining(self) -> dict[str, Any]:
        """What a study's values hang on: all but how it is searched and how long. JSON values."""
        record = {"tree": self.tree, **asdict(self)}
        return {name: value for name, value in record.items() if name not in ("sampler", "trials", "starting_points")}


def make_shape(
    tree: str,
    *,
    width: int | None = None,
    depth: int | None = None,
    total: int | None = None,
    length: int | None = None,
    threshold: float | None = None,
) -> Dynamic | Chain:
    """The draft of these sizes; None: that of `Dynamic` or `Chain`. Raises InputError for a size of the other tree."""
    if tree not in TREES:
        raise unknown_choice("tree", tree, TREES)
    of_tree = {"width": width, "depth": depth, "total": total}
    of_chain = {"length": length, "threshold": threshold}
    own, other = (of_tree, of_chain) if tree == TREES[0] else (of_chain, of_tree)
    if unread := [name for name, value in other.items() if value is not None]:
        raise InputError(f"--{unread[0]} says nothing about a {tree} draft, which takes {', '.join(own)}")
    given: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    return Dynamic(**given) if tree == TREES[0] else Chain(**given)
