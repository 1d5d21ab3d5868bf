"""Passes whose linear layers and attention run by what is best for few rows, with nothing to compile first."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from slipstream.runtime.few_rows import few_rows, with_version
from slipstream.runtime.few_rows_attention import with_few_rows_attention
from slipstream.runtime.few_rows_layers import layer_changes
from slipstream.runtime.packed import PackedWeights, is_packed
from slipstream.target.attention import with_grouped_attention
from slipstream.target.passes import Executor
from slipstream.target.shadow import shadow

_SHARE = 4
"""Packed weights may take one part of so many of the memory that is available, unless they are asked for."""


class Packing(Executor):
    """What executors have in common that pack weights: those on a CPU, in dtypes in which that is faster."""

    def __init__(self, *, traced: bool = False) -> None:
        """traced: see `PackedWeights`."""
        self._weights, self._is_traced = PackedWeights(traced=traced), traced

    @property
    def costs_name(self) -> str:
        return with_version(self.name)

    @property
    def packed_bytes(self) -> int:
        """Memory of packed weights, beside that of the weights themselves."""
        return self._weights.nbytes

    def prepare(self, model: nn.Module) -> nn.Module:
        if any(parameter.device.type == "meta" for parameter in model.parameters()):
            return with_grouped_attention(model)  # accelerate moves weights in and out
        return self._with_packed(model)

    def _with_packed(self, model: nn.Module) -> nn.Module:
        """The model with packed weights and our attention."""
        attending = with_few_rows_attention(model, traced=self._is_traced)
        return shadow(attending, self._weights.changes(attending))

    def gumbel_rows(self, seed: int, stream: int, positions: Tensor, vocab_size: int) -> Tensor:
        library = few_rows() or few_rows(torch.float32)
        make = super().gumbel_rows if library is None or positions.device.type != "cpu" else library.gumbel_rows
        return make(seed, stream, positions, vocab_size)

    def forget(self) -> None:
        self._weights.forget()


class PackedPasses(Packing):
    """Runs passes eagerly and in exact sizes, with packed weights, and norms and rotary embeddings in one call each."""

    name = "packed"

    def _with_packed(self, model: nn.Module) -> nn.Module:
        packed = super()._with_packed(model)
        return shadow(packed, layer_changes(packed))


def gains_by_packing(model: nn.Module) -> bool:
    """Whether a model is faster with packed weights here, and there is plenty of memory for them."""
    weights = [one for one in model.parameters() if one.dim() == 2]
    dtypes = {one.dtype for one in weights}
    if len(dtypes) != 1 or any(one.device.type != "cpu" for one in weights) or few_rows(*dtypes) is None:
        return False
    return (
        any(map(is_packed, weights))
        or _SHARE * sum(one.numel() * one.element_size() for one in weights) <= _available_memory()
    )


def _available_memory() -> int:
    """Bytes, as Linux counts them; 0 where it is not said."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), 0)
