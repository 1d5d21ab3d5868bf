"""The space that a search covers, and good places to start in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from slipstream.errors import InputError, SkipSetError
from slipstream.skipping.default_rule import default_rule
from slipstream.skipping.skip_set import SkipSet
from slipstream.skipping.sublayers import SubLayers

Bits = tuple[bool, ...]
"""For every sub-layer that may go, whether it goes."""

_FRACTIONS = (0.2, 0.3, 0.4, 0.5, 0.6)
"""Shares of the layers' cost that the greedy starting points skip."""
_INTERVALS = (2, 3, 4)
"""Uniform starting points skip every n-th layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The sub-layers that may be skipped: attention and MLP of every layer but the first and last few."""

    num_layers: int
    keep_first: int
    keep_last: int
    max_skipped: int | None = None
    """Sub-layers that may be skipped together; None: any number."""

    @classmethod
    def make(cls, num_layers: int, keep_first: int | None, keep_last: int | None, max_skipped: int | None) -> Space:
        """Checked; None keeps one layer at an end, but of fewer than four layers not the last.

        Raises InputError where nothing would be left to skip.
        """
        first = 1 if keep_first is None else keep_first
        last = (1 if num_layers >= 4 else 0) if keep_last is None else keep_last
        for name, value in (("keep-first", first), ("keep-last", last)):
            if not 0 <= value <= num_layers:
                raise InputError(f"--{name} is {value}; it must lie from 0 to the target's {num_layers} layers")
        if first + last >= num_layers:
            raise InputError(
                f"keeping the first {first} and the last {last} of {num_layers} layers leaves nothing to skip; "
                "lower --keep-first or --keep-last"
            )
        if max_skipped is not None and max_skipped < 1:
            raise InputError(f"--max-skipped is {max_skipped}; it must be at least 1")
        return cls(num_layers=num_layers, keep_first=first, keep_last=last, max_skipped=max_skipped)

    @property
    def layers(self) -> range:
        """Layers whose sub-layers may go."""
        return range(self.keep_first, self.num_layers - self.keep_last)

    @property
    def names(self) -> list[str]:
        """A parameter's name for each bit."""
        return [f"{kind}.{layer}" for kind in ("attention", "mlp") for layer in self.layers]

    def skip_set(self, bits: Sequence[bool], target: str | None = None) -> SkipSet:
        """The set that `bits` stand for."""
        half = len(self.layers)
        attention, mlp = (
            tuple(layer for layer, goes in zip(self.layers, part, strict=True) if goes)
            for part in (bits[:half], bits[half:])
        )
        return SkipSet(num_layers=self.num_layers, attention=attention, mlp=mlp, target=target)

    def bits(self, skip_set: SkipSet) -> Bits:
        """The bits of a set; what must be kept is not skipped in them."""
        return tuple(layer in kind for kind in (skip_set.attention, skip_set.mlp) for layer in self.layers)

    def repair(self, bits: Sequence[bool], harm: Sequence[float]) -> Bits:
        """`bits` with no more than `max_skipped` set: those of least harm stay. harm: by bit, ties to the earlier."""
        chosen = sorted((i for i, goes in enumerate(bits) if goes), key=lambda i: (harm[i], i))
        kept = set(chosen[: self.max_skipped])
        return tuple(i in kept for i in range(len(bits)))

    def neighbour(self, bits: Bits, known: Callable[[Bits], bool], rng: random.Random) -> Bits | None:
        """A set not yet known that differs from `bits` in one sub-layer, or in as few as need be; None: all known."""
        for num_changes in range(1, len(bits) + 1):
            for _ in range(4 * len(bits)):
                changed = set(rng.sample(range(len(bits)), num_changes))
                found = tuple(goes != (i in changed) for i, goes in enumerate(bits))
                if (self.max_skipped is None or sum(found) <= self.max_skipped) and not known(found):
                    return found
        return None


def starting_points(
    space: Space, sublayers: SubLayers, harm: Sequence[float], cost: Sequence[float]
) -> list[tuple[str, Bits]]:
    """(where it comes from, bits) of the sets to try first, each once.

    harm: what skipping each sub-layer alone does to the draft; cost: the seconds that it saves.
    """
    found: dict[Bits, str] = {}
    for name, bits in _starting_points(space, sublayers, harm, cost):
        found.setdefault(space.repair(bits, harm), name)
    return [(name, bits) for bits, name in found.items()]


def _starting_points(
    space: Space, sublayers: SubLayers, harm: Sequence[float], cost: Sequence[float]
) -> Iterable[tuple[str, Bits]]:
    try:
        attention, mlp = default_rule(sublayers.attention_bytes, sublayers.mlp_bytes)
    except SkipSetError:  # targets of a layer or two have no default
        pass
    else:
        default = SkipSet(num_layers=space.num_layers, attention=tuple(attention), mlp=tuple(mlp))
        yield "default", space.bits(default)
    for interval in _INTERVALS:
        yield f"uniform 1/{interval}", space.bits(uniform(space, interval))
    for fraction in _FRACTIONS:
        yield f"greedy {fraction:.0%}", greedy(harm, cost, fraction)


def uniform(space: Space, interval: int) -> SkipSet:
    """Every `interval`-th layer whole, the last of each group, among the layers that may go."""
    layers = tuple(space.layers[interval - 1 :: interval])
    return SkipSet(num_layers=space.num_layers, attention=layers, mlp=layers)


def greedy(harm: Sequence[float], cost: Sequence[float], fraction: float) -> Bits:
    """The sub-layers of least harm per second saved, until `fraction` of the seconds is saved."""
    order = sorted(range(len(harm)), key=lambda i: (max(harm[i], 0.0) / max(cost[i], 1e-12), i))
    chosen, saved = set[int](), 0.0
    for i in order:
        if saved >= fraction * sum(cost):
            break
        chosen.add(i)
        saved += cost[i]
    return tuple(i in chosen for i in range(len(harm)))
