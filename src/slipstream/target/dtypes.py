"""Dtypes: their names, what this processor has instructions for, and in which one a loaded model would be faster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from slipstream.errors import unknown_choice
from slipstream.target.sharding import is_part

NAMES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_SHORT = {"fp32": "float32", "fp64": "float64", "bf16": "bfloat16", "fp16": "float16"}

_SAMPLE = 8_000_000
"""Weights that are timed at most: 16 MB in bfloat16, more than a core's own caches hold."""
_SAMPLE_SHARE = 0.25
"""Of a model's weights, so that no second copy of it comes into being."""
_LEAST = 1_000_000
"""Fewer weights than these take no time worth a remark."""
_ROWS = (1, 8)
"""Of the passes that are timed: plain decoding's, and one that checks a few drafted tokens."""
_TURNS, _PATIENCE_S = 3, 0.2
_WORTH_SAYING = 1.2


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The torch type of a name; None stays None, "as saved". Raises InputError for an unknown name."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    name = _SHORT.get(dtype, dtype)
    if name not in NAMES:
        raise unknown_choice("dtype", dtype, [*NAMES, *_SHORT])
    return NAMES[name]


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16: AVX-512 BF16 or AMX.

    Without them PyTorch computes such products by way of float32, which gains nothing.
    """
    return not _instructions().isdisjoint(("avx512_bf16", "amx_bf16"))


def _instructions() -> set[str]:
    """Names of what this processor has instructions for."""
    if find := getattr(torch.cpu, "get_capabilities", None):
        return {name for name, has in find().items() if has is True}
    try:
        return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return set()


def multiplies_faster_in_bfloat16(device: torch.device) -> bool:
    """Whether products of many rows are faster in bfloat16 there: on GPUs that know it, and by AMX.

    Processors with AVX-512 BF16 alone take dot products at half the rate of float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and "amx_bf16" in _instructions()


@dataclass(frozen=True, slots=True)
class Faster:
    """Another dtype in which a model's products were faster on this CPU."""

    own: str
    other: str
    ratio: float

    def __str__(self) -> str:
        holds_all = self.other == "float32" and self.own != "float64"
        rounding = "" if holds_all else "; rounds the weights, which makes another model of it"
        return (
            f"{self.other} would be about {self.ratio:.1f} times as fast as {self.own} on this CPU (measured on a "
            f"share of the weights; dtype={self.other!r}, --dtype {self.other}{rounding})"
        )


def faster_dtype(model: nn.Module) -> Faster | None:
    """The dtype in which this CPU multiplies the model's weights faster than in their own, if by a fifth or more.

    Measured on a share of the linear layers for some tens of milliseconds, with the threads that PyTorch has now. The
    dtypes take turns, and the slowest turn of the other must beat the own's fastest, so that other programs' noise is
    no advice. None also for a model elsewhere than on a CPU, of quantised weights, or too small to matter.
    """
    weights = _sample(model)
    if not weights:
        return None
    own = weights[0].dtype
    in_dtype = {dtype: [weight.to(dtype) for weight in weights] for dtype in (own, torch.float32, torch.bfloat16)}
    taken: dict[torch.dtype, list[float]] = {dtype: [] for dtype in in_dtype}
    deadline = time.perf_counter() + _PATIENCE_S
    for turn in range(1 + _TURNS):
        for dtype, converted in in_dtype.items():
            seconds = _time(converted)
            if turn:  # the first warms up
                taken[dtype].append(seconds)
        if time.perf_counter() > deadline:
            break
    if len(taken[own]) < 2:  # a machine too busy to tell
        return None
    other = min(taken, key=lambda dtype: max(taken[dtype]))
    if min(taken[own]) < _WORTH_SAYING * max(taken[other]):
        return None
    return Faster(_name(own), _name(other), min(taken[own]) / min(taken[other]))


def _sample(model: nn.Module) -> list[Tensor]:
    """Weights of linear layers, as many as may be timed; all of one floating dtype and on the CPU, or none."""
    linear = [module.weight.detach() for module in model.modules() if type(module) is nn.Linear]
    if len({weight.dtype for weight in linear}) != 1 or any(weight.device.type != "cpu" for weight in linear):
        return []
    if any(map(is_part, linear)):
        return []
    if linear[0].dtype not in NAMES.values():
        return []
    left = min(_SAMPLE, int(_SAMPLE_SHARE * sum(weight.numel() for weight in linear)))
    chosen = []
    for weight in linear:
        part = weight[: left // weight.shape[1]]
        chosen.append(part)
        left -= part.numel()
        if not len(part):
            break
    return [part for part in chosen if len(part)] if sum(part.numel() for part in chosen) >= _LEAST else []


@torch.inference_mode()
def _time(weights: Sequence[Tensor]) -> float:
    """Seconds for the products of all weights with few rows."""
    began = time.perf_counter()
    for rows in _ROWS:
        for weight in weights:
            nn.functional.linear(torch.ones(rows, weight.shape[1], dtype=weight.dtype), weight)
    return time.perf_counter() - began


def rounding_note(dtype: torch.dtype) -> str | None:
    """What to expect of 16-bit dtypes, in one line; None for others."""
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    return (
        f"in {_name(dtype)} an answer may part from plain decoding's where two tokens are equally good to the last "
        "digit, and goes on as well; in float32 that is rare. See docs/losslessness.md; `slipstream certify` tests it"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
