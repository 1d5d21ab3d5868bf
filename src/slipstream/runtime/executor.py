"""Executors: how passes of a target are run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from slipstream.errors import InputError, unknown_choice
from slipstream.runtime.buckets import Buckets
from slipstream.runtime.captured import CapturedPasses
from slipstream.runtime.compiled import CompiledPasses
from slipstream.runtime.packed_passes import PackedPasses, gains_by_packing
from slipstream.target.passes import Executor


class FixedSizes(Executor):
    """Runs passes eagerly in the sizes of a few buckets. A pass may cost more than in its exact size."""

    def __init__(self, buckets: Buckets | None = None) -> None:
        self._buckets = Buckets() if buckets is None else buckets

    def rows(self, count: int) -> int:
        return self._buckets.fit_rows(count)

    def context(self, slots: int) -> int:
        return self._buckets.fit_context(slots)


SIZES: dict[str, Callable[[], Executor]] = {"exact": Executor, "fixed": FixedSizes}
"""By what `load` calls them."""
RUNTIMES = ("auto", "eager", "packed", "compiled", "captured")
_NEEDS = {
    "packed": ("cpu", "a CPU", "captured"),
    "compiled": ("cpu", "a CPU", "captured"),
    "captured": ("cuda", "CUDA", "compiled"),
}
"""The device of a runtime, what it is called, and the runtime for the other one."""
_MADE: dict[str, Callable[[], Executor]] = {
    "packed": PackedPasses,
    "compiled": CompiledPasses,
    "captured": CapturedPasses,
}


def make_executor(sizes: str = "exact", runtime: str = "auto") -> Executor:
    """An executor for passes of "exact" or "fixed" sizes. Raises InputError for others.

    runtime: "eager", "packed", whose sizes are always exact, or "compiled" or "captured", whose sizes are always fixed.
    "auto" is eager until the model is known (`suited_executor`).
    """
    if sizes not in SIZES:
        raise unknown_choice("sizes", sizes, SIZES)
    if runtime not in RUNTIMES:
        raise unknown_choice("runtime", runtime, RUNTIMES)
    return _MADE.get(runtime, SIZES[sizes])()


def suited_executor(sizes: str, runtime: str, model: nn.Module) -> Executor:
    """The same for a model that is loaded: "auto" packs its weights where that makes it faster (`gains_by_packing`)."""
    if runtime == "auto" and sizes == "exact" and gains_by_packing(model):
        return PackedPasses()
    return make_executor(sizes, runtime)


def check_runtime(runtime: str, device: torch.device) -> None:
    """Raises InputError where passes cannot be run so on the model's device."""
    kind, name, other = _NEEDS.get(runtime, (device.type, "", ""))
    if device.type != kind:
        raise InputError(f"runtime={runtime!r} is for {name}, and the model is on {device}; use {other!r} or 'eager'")
