"""What a benchmark runs, as the user said it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from slipstream.errors import InputError, unknown_choice

PLAIN = "plain"
JUDGES = ("auto", "float64", "none")

_AT_LEAST_ONE = ("prompts_per_task", "max_new_tokens", "max_prompt_tokens", "samples", "repeats")


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrantSpec:
    """One row of the tables: a method of ours with its options, or a peer."""

    name: str
    kind: Literal["ours", "peer"]
    method: str
    """The method's name, or the peer's."""
    options: Mapping[str, Any] = field(default_factory=dict)
    process: bool = False
    """Whether it runs in a process of its own."""

    @classmethod
    def parse(cls, text: str, peers: Sequence[str] = ()) -> EntrantSpec:
        """Read `[NAME=]METHOD[:OPTION=VALUE,...]`, such as `eagle2-60=eagle2:width=10,depth=6,total=60`.

        NAME is the method's if left out. Values are JSON where they can be read so. A part without a value is the
        shape of the drafts, as `Shape.parse` reads it: `eagle2:10x6x60`, `layer-skip:chain:8`. peers: their names.
        Raises InputError for anything else, an unknown method, and an option that the method does not read.
        """
        from slipstream.methods.registry import METHODS, find_method

        head, _, tail = text.partition(":")
        label, named, method = head.partition("=")
        name, method = (label, method) if named else (head, head)
        if not name or not method:
            raise InputError(f"{text!r} is not of the form [NAME=]METHOD[:OPTION=VALUE,...]")
        options: dict[str, Any] = {}
        for part in tail.split(",") if tail else ():
            options |= _options(part, text)
        if method in peers:
            return cls(name=name, kind="peer", method=method, options=options)
        if method not in METHODS:
            raise unknown_choice("method", method, [*METHODS, *peers])
        find_method(method, options)
        return cls(name=name, kind="ours", method=method, options=options)


def _options(text: str, whole: str) -> dict[str, Any]:
    from slipstream.drafting.shape import Shape

    name, equals, value = text.partition("=")
    if text and not equals:
        try:
            return Shape.parse(text).options()
        except InputError as error:
            raise InputError(f"{whole!r}: option {text!r} is not of the form OPTION=VALUE; {error}") from None
    if not (name and value):
        raise InputError(f"{whole!r}: option {text!r} is not of the form OPTION=VALUE")
    try:
        return {name: json.loads(value)}
    except json.JSONDecodeError:
        return {name: value}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How questions are answered, timed and judged, whatever they are and whoever answers."""

    prompts_per_task: int | None = None
    """The first prompts of each task; None: all, of a data set of the hub 80."""
    max_new_tokens: int = 128
    """Tokens of an answer at most."""
    max_prompt_tokens: int | None = None
    """Longer prompts lose the end of their longest message; None: what the context leaves beside the answer."""
    temperatures: tuple[float, ...] = (0.0, 1.0)
    """0 decodes greedily; may be repeated."""
    top_p: float | None = None
    """Nucleus of sampled answers; None: all tokens. top-k is always off, for peers too."""
    seed: int = 0
    """Of the sampled answers."""
    samples: int = 1
    """Answers to each prompt at temperatures above 0, each with a seed of its own."""
    repeats: int = 1
    """How often each answer is timed; the median counts."""
    verification: str = "coupled"
    """coupled: token for token plain sampling; rejection: the published rules, the same in distribution."""
    judge: str = "auto"
    """Generate answers that differ from plain decoding again in float64: auto (up to 1e9 parameters), float64 (always)
    or none."""

    def __post_init__(self) -> None:
        from slipstream.core.sampling import VERIFICATIONS  # here, so that help needs no torch

        for name in _AT_LEAST_ONE:
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if not self.temperatures or min(self.temperatures) < 0:
            raise InputError(f"temperatures are {list(self.temperatures)}; give one or more, none below 0")
        if len(set(self.temperatures)) < len(self.temperatures):
            raise InputError(f"temperatures are {list(self.temperatures)}; each may be given once")
        if self.verification not in VERIFICATIONS:
            raise unknown_choice("verification", self.verification, VERIFICATIONS)
        if self.judge not in JUDGES:
            raise unknown_choice("judge", self.judge, JUDGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings(BenchOptions):
    """Everything that decides what a run does; a run is resumed only with the same."""

    entrants: tuple[EntrantSpec, ...]
    """In the order of the tables; plain decoding on our engine comes first, everything is compared with it."""
    tasks: tuple[str, ...]
    data: str
    """What the questions came from, to be shown."""
    questions_hash: str
    """Of the questions themselves."""

    def __post_init__(self) -> None:
        BenchOptions.__post_init__(self)
        names = [one.name for one in self.entrants]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"{doubled[0]!r} is entered twice; name one otherwise: NAME=METHOD:OPTION=VALUE")
        if not names or names[0] != PLAIN:
            raise InputError("plain decoding must be the first entrant: all others are compared with it")

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as it comes back from it."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found
