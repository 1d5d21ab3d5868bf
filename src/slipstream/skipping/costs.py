"""What each sub-layer of the target costs on this device, at a given number of rows: measured once, then added up.

Counting weights is not enough: attention is a third of a layer's weights and, where kernels are slow, half of its time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from slipstream.skipping.skip_set import SkipSet
from slipstream.skipping.sublayers import SubLayers
from slipstream.target.shadow import Change, Forward, shadow
from slipstream.target.target import Target

_REPEATS = 15


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

    def seconds(self, skip_set: SkipSet) -> float:
        """Seconds with the sub-layers of `skip_set` left out."""
        attention, mlp = set(skip_set.attention), set(skip_set.mlp)
        saved = sum(self.attention[i] for i in attention) + sum(self.mlp[i] for i in mlp)
        return self.full - saved - sum(self.rest[i] for i in attention & mlp)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """Passes of every width that a draft and its verification need, and the time that no pass accounts for."""

    passes: tuple[PassCost, ...]
    """Ascending by rows, the first for one row."""
    prefix: int
    """Tokens in the cache while the passes were timed."""
    overhead: float = 0.0
    """Seconds per drafted level outside all passes: choosing tokens, growing the tree, its share of the commit."""
    plain: float = 0.0
    """Seconds per token of plain decoding."""

    def draft(self, rows: int, skip_set: SkipSet) -> float:
        """Seconds of a drafting pass over `rows` rows."""
        return self._at(rows, lambda cost: cost.seconds(skip_set))

    def verify(self, rows: int) -> float:
        """Seconds of a full pass over `rows` rows."""
        return self._at(rows, lambda cost: cost.full)

    def skipped_fraction(self, skip_set: SkipSet) -> float:
        """Share of the one-row pass's seconds that the set saves."""
        return 1.0 - self.draft(1, skip_set) / self.verify(1)

    def _at(self, rows: int, seconds: Callable[[PassCost], float]) -> float:
        """`seconds` at a number of rows, between two measured ones on the line through them."""
        points = [(cost.rows, seconds(cost)) for cost in self.passes]
        if len(points) == 1:
            return points[0][1]
        (low, low_s), (high, high_s) = next(
            (pair for pair in pairwise(points) if rows <= pair[1][0]), (points[-2], points[-1])
        )
        return low_s + (high_s - low_s) * (rows - low) / (high - low)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> CostTable:
        """What `to_dict` made."""
        lists = ("attention", "mlp", "rest")
        passes = (PassCost(**{**one, **{key: tuple(one[key]) for key in lists}}) for one in record["passes"])
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


@torch.inference_mode()
def measure_costs(target: Target, sublayers: SubLayers, widths: Sequence[int], prefix: int) -> CostTable:
    """Time passes over each of `widths` rows after `prefix` cached tokens, sub-layer by sub-layer.

    Least of several repeats for every part, each by itself, so that what else the machine does meanwhile counts little.
    No overhead yet, and no time of plain decoding.
    """
    widths = sorted({1, *widths})
    if target.context_length is not None:
        prefix = min(prefix, target.context_length - 1)
    cache = target.new_cache(extra_slots=max(widths) + 1)
    tokens = torch.arange(prefix, device=target.device) % target.vocab_size
    positions = torch.arange(prefix, device=target.device)
    target.forward(tokens, positions, target.causal(prefix), cache, last_logits_only=True)
    cache.commit(None, prefix)

    def run_rows(rows: int, model: nn.Module | None = None) -> None:
        ids = torch.arange(rows, device=target.device) % target.vocab_size
        siblings = torch.eye(rows, dtype=torch.bool, device=target.device)
        target.forward(ids, torch.full_like(ids, prefix), siblings, cache, instead=model)

    passes = [_measure(target, sublayers, rows, partial(run_rows, rows)) for rows in widths]
    return CostTable(passes=tuple(passes), prefix=prefix)


def _measure(target: Target, sublayers: SubLayers, rows: int, run: Callable[..., None]) -> PassCost:
    """run: makes a pass, of a shadow if it is given one."""
    run()  # warm-up
    watched = [[layer.module, *(patch.module for patch in layer.attention + layer.mlp)] for layer in sublayers.layers]
    stopwatch = _Stopwatch(target.device, [module for modules in watched for module in modules])
    run_watched = partial(run, stopwatch.watched(target.model))
    outside, best = float("inf"), dict.fromkeys(stopwatch.modules, float("inf"))
    unobserved, observed = [], []
    for _ in range(_REPEATS):
        unobserved.append(stopwatch.time_undisturbed(run))
        observed.append(stopwatch.time_undisturbed(run_watched))
        total = stopwatch.time(run_watched)
        seconds = stopwatch.read()
        outside = min(outside, total - sum(seconds[layer.module] for layer in sublayers.layers))
        for module in best:
            best[module] = min(best[module], seconds[module])
    attention = [sum(best[patch.module] for patch in layer.attention) for layer in sublayers.layers]
    mlp = [sum(best[patch.module] for patch in layer.mlp) for layer in sublayers.layers]
    watching = max(min(observed) - min(unobserved), 0.0) / len(watched)  # what the marks of one layer cost
    between = [
        max(best[layer.module] - attention_s - mlp_s - watching, 0.0)
        for layer, attention_s, mlp_s in zip(sublayers.layers, attention, mlp, strict=True)
    ]
    fixed = [layer.identity is None for layer in sublayers.layers]  # run even where both sub-layers are skipped
    return PassCost(
        rows=rows,
        outside=max(outside, 0.0) + sum(s for s, stays in zip(between, fixed, strict=True) if stays),
        attention=tuple(attention),
        mlp=tuple(mlp),
        rest=tuple(0.0 if stays else s for s, stays in zip(between, fixed, strict=True)),
    )


class _Stopwatch:
    """Seconds in each of some modules during a pass: by events in the stream on CUDA, by the host's clock elsewhere."""

    def __init__(self, device: torch.device, modules: Sequence[nn.Module]) -> None:
        self.modules = tuple(dict.fromkeys(modules))
        self._device = device
        self._marks: dict[nn.Module, tuple[Any, Any]] = {}

    def time(self, run: Callable[[], None]) -> float:
        """Seconds of a call, its work on the device included."""
        self._synchronize()
        began = time.perf_counter()
        run()
        self._synchronize()
        return time.perf_counter() - began

    def time_undisturbed(self, run: Callable[[], None]) -> float:
        """The same by `undisturbed_clock`."""
        clock = undisturbed_clock(self._device)
        self._synchronize()
        began = clock()
        run()
        self._synchronize()
        return clock() - began

    def watched(self, model: nn.Module) -> nn.Module:
        """A shadow of `model` whose passes mark when each module begins and ends."""
        return shadow(model, {module: self._marking(module) for module in self.modules})

    def _marking(self, module: nn.Module) -> Change:
        def change(own: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                began = self._now()
                output = own(*args, **kwargs)
                self._marks[module] = began, self._now()
                return output

            return forward

        return change

    def read(self) -> dict[nn.Module, float]:
        """Seconds of every module in the last pass that was watched."""
        return {module: self._between(begin, end) for module, (begin, end) in self._marks.items()}

    def _now(self) -> Any:
        if self._device.type == "cuda":
            event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            return event
        return time.perf_counter()

    def _between(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end) / 1e3 if self._device.type == "cuda" else end - begin)

    def _synchronize(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


def undisturbed_clock(device: torch.device) -> Callable[[], float]:
    """Seconds: on one CPU thread those that it ran, so that other processes do not count; else the time of day's.

    Whole passes are too long to have a processor to themselves on a busy machine. Sub-layers are not: their least time
    is free of other processes by any clock.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter
