"""What each sub-layer of the target costs on this machine, at a given number of rows: measured once, then added up.

Counting weights is not enough: attention is a third of a layer's weights and, where kernels are slow, half of its time.
Passes of all widths, as they are and watched part by part, take turns (`timing.py`). The parts of a pass are scaled to
add up to what it takes unwatched, so that a pass with some of them left out and one with none go by the same clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from slipstream.runtime.costs import Measured, on_line
from slipstream.runtime.decisions import agree
from slipstream.runtime.timing import Call, Passes, medians, rounds_of, spread, timed
from slipstream.target.shadow import Change, Forward, shadow
from slipstream.target.target import Target

_BUDGET_S = 4.0
_MOST_ROUNDS = 15


class Skipped(Protocol):
    """The sub-layers that a skip set leaves out."""

    @property
    def attention(self) -> Sequence[int]:
        """Layers without their attention."""

    @property
    def mlp(self) -> Sequence[int]:
        """Layers without their MLP."""


@dataclass(frozen=True, slots=True)
class LayerParts:
    """The modules of a layer that are timed."""

    layer: nn.Module
    attention: Sequence[nn.Module]
    mlp: Sequence[nn.Module]
    vanishes: bool
    """The layer costs nothing at all where both are skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCost:
    """Seconds of one pass of the target, by part."""

    rows: int
    outside: float
    """Everything but the layers: embedding, masks, final norm, LM head."""
    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    rest: tuple[float, ...]
    """Of each layer outside its two sub-layers: norms and additions; saved where both are skipped."""

    @property
    def full(self) -> float:
        """Seconds with nothing skipped."""
        return self.outside + sum(self.attention) + sum(self.mlp) + sum(self.rest)

    def seconds(self, skip_set: Skipped) -> float:
        """Seconds with the sub-layers of `skip_set` left out."""
        attention, mlp = set(skip_set.attention), set(skip_set.mlp)
        saved = sum(self.attention[i] for i in attention) + sum(self.mlp[i] for i in mlp)
        return self.full - saved - sum(self.rest[i] for i in attention & mlp)

    def lasting(self, seconds: float) -> PassCost:
        """The same shares of a pass that takes so long in all."""
        scale = seconds / self.full
        attention, mlp, rest = (tuple(scale * one for one in part) for part in (self.attention, self.mlp, self.rest))
        return PassCost(rows=self.rows, outside=scale * self.outside, attention=attention, mlp=mlp, rest=rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """Passes of every width that a draft and its verification need, and the time that no pass accounts for."""

    passes: tuple[PassCost, ...]
    """Ascending by rows, the first for one row."""
    prefix: int
    """Tokens in the cache while the passes were timed."""
    overhead: float = 0.0
    """Seconds per drafted level outside all passes: choosing tokens and growing the tree."""
    cycle: float = 0.0
    """Seconds of a cycle, plain or not, outside all passes and drafting: building rows, choosing, the commit."""

    @property
    def plain(self) -> float:
        """Seconds per token of plain decoding."""
        return self.verify(1) + self.cycle

    def draft(self, rows: int, skip_set: Skipped) -> float:
        """Seconds of a drafting pass over `rows` rows."""
        return self._at(rows, lambda cost: cost.seconds(skip_set))

    def verify(self, rows: int) -> float:
        """Seconds of a full pass over `rows` rows."""
        return self._at(rows, lambda cost: cost.full)

    def skipped_fraction(self, skip_set: Skipped) -> float:
        """Share of the one-row pass's seconds that the set saves."""
        return 1.0 - self.draft(1, skip_set) / self.verify(1)

    def _at(self, rows: int, seconds: Callable[[PassCost], float]) -> float:
        """`seconds` at a number of rows, between two measured ones on the line through them."""
        return on_line(tuple((cost.rows, seconds(cost)) for cost in self.passes), rows)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> CostTable:
        """What `to_json` made. Raises ValueError or TypeError for anything else."""
        if not isinstance(record, Mapping) or not isinstance(record.get("passes"), Sequence):
            raise ValueError("no table of passes")
        lists = ("attention", "mlp", "rest")
        passes = (PassCost(**{**one, **{key: tuple(one.get(key, ())) for key in lists}}) for one in record["passes"])
        return cls(**{**record, "passes": tuple(passes)})

    def summary(self) -> list[dict[str, Any]]:
        """One line a width, in milliseconds: the whole pass and the mean sub-layer of each kind."""
        return [
            {
                "rows": cost.rows,
                "full_ms": round(1e3 * cost.full, 4),
                "attention_ms": round(1e3 * statistics.fmean(cost.attention), 4),
                "mlp_ms": round(1e3 * statistics.fmean(cost.mlp), 4),
                "outside_ms": round(1e3 * cost.outside, 4),
            }
            for cost in self.passes
        ]


def measure_sublayers(target: Target, layers: Sequence[LayerParts], widths: Iterable[int], prefix: int) -> Measured:
    """A `CostTable` of passes over one row and over each of `widths` rows, after `prefix` cached tokens.

    Takes about four seconds, or four passes of each width where that is longer. No overheads yet. Inside a layer that
    was compiled nothing can be timed: a part's share is then that of eager passes.
    """
    if target.executor.runs_modules:
        return _by_parts(target, layers, widths, prefix)
    began = time.perf_counter()
    eager = _by_parts(Target(target.model), layers, widths, prefix)
    whole = Passes(target, eager.costs.passes[-1].rows, prefix)
    calls = [whole.call(one.rows) for one in eager.costs.passes]
    target.executor.settle(calls)
    times = rounds_of(calls, target.device, budget_s=_BUDGET_S, most=_MOST_ROUNDS)
    passes = tuple(one.lasting(seconds) for one, seconds in zip(eager.costs.passes, medians(times), strict=True))
    worst = max(eager.spread, spread(times))
    return agree(Measured(replace(eager.costs, passes=passes), time.perf_counter() - began, worst))


def _by_parts(target: Target, layers: Sequence[LayerParts], widths: Iterable[int], prefix: int) -> Measured:
    """A `CostTable` of passes that run the model's modules one after another."""
    began = time.perf_counter()
    rows = sorted({1, *widths})
    passes = Passes(target, rows[-1], prefix)
    stopwatch = _Stopwatch(target, layers)
    calls: list[Call] = []
    for one in rows:
        calls += [passes.call(one), partial(stopwatch.watch, one, partial(passes.run, one, stopwatch.model))]
    times = rounds_of(calls, target.device, budget_s=_BUDGET_S, most=_MOST_ROUNDS)[::2]
    found = [stopwatch.parts(one, whole) for one, whole in zip(rows, medians(times), strict=True)]
    table = CostTable(passes=tuple(found), prefix=passes.context)
    return agree(Measured(table, time.perf_counter() - began, spread(times)))


@dataclass(frozen=True, slots=True)
class _Watched:
    """A pass that was watched."""

    total_s: float
    seconds: dict[nn.Module, float]
    """Of each part."""

    def of(self, modules: Iterable[nn.Module]) -> float:
        """Seconds of some parts together."""
        return sum(self.seconds[module] for module in modules)


class _Stopwatch:
    """Seconds in each part of a target's passes: by events in the stream on CUDA, by the host's clock elsewhere."""

    def __init__(self, target: Target, layers: Sequence[LayerParts]) -> None:
        self._layers, self._device = layers, target.device
        self._marks: dict[nn.Module, tuple[Any, Any]] = {}
        self._passes: dict[int, list[_Watched]] = {}  # by rows
        parts = [module for one in layers for module in (one.layer, *one.attention, *one.mlp)]
        self.model = shadow(target.model, {module: self._marking(module) for module in parts})
        """A shadow of the target whose passes mark when each part begins and ends."""

    def watch(self, rows: int, run: Call) -> None:
        """Run a pass of `model` over so many rows, and note what its parts took."""
        total_s = timed(run, self._device)
        seconds = {module: self._between(*marks) for module, marks in self._marks.items()}
        self._passes.setdefault(rows, []).append(_Watched(total_s, seconds))

    def parts(self, rows: int, whole_s: float) -> PassCost:
        """The parts of a pass over so many rows that takes `whole_s` seconds unwatched. The first pass warmed up."""
        passes = self._passes[rows][1:]
        attention = [statistics.median_low(one.of(layer.attention) for one in passes) for layer in self._layers]
        mlp = [statistics.median_low(one.of(layer.mlp) for one in passes) for layer in self._layers]
        whole = [statistics.median_low(one.of([layer.layer]) for one in passes) for layer in self._layers]
        total = statistics.median_low(one.total_s for one in passes)
        marks = max(total - whole_s, 0.0) / len(whole)  # what the marks of one layer cost
        between = [max(s - a - m - marks, 0.0) for s, a, m in zip(whole, attention, mlp, strict=True)]
        outside = max(total - sum(whole), 0.0)
        fixed = sum(s for s, layer in zip(between, self._layers, strict=True) if not layer.vanishes)
        rest = [s if layer.vanishes else 0.0 for s, layer in zip(between, self._layers, strict=True)]
        found = PassCost(
            rows=rows, outside=outside + fixed, attention=tuple(attention), mlp=tuple(mlp), rest=tuple(rest)
        )
        return found.lasting(whole_s)

    def _marking(self, module: nn.Module) -> Change:
        def change(own: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                began = self._now()
                output = own(*args, **kwargs)
                self._marks[module] = began, self._now()
                return output

            return forward

        return change

    def _now(self) -> Any:
        if self._device.type == "cuda":
            event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            return event
        return time.perf_counter()

    def _between(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end) / 1e3 if self._device.type == "cuda" else end - begin)
