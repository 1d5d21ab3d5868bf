"""Linear layers whose weights lie packed for the processor, once for all passes that read them.

PyTorch hands a bfloat16 weight to oneDNN as it lies in memory, and oneDNN reads one that was packed before in about
half the time where rows are few, with the same result to the last bit. Where our own product for few rows is faster
(`few_rows.py`), weights are packed for that, those in float32 too, and its sums are in another order. A packed weight
takes as much memory as the weight itself, however many passes, sizes and skip sets read it.

An operator of ours finds the packed form by the weight that it is called with. So a compiled graph has weights as
inputs like any others, and holds none.
"""

from __future__ import annotations

import functools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from slipstream.runtime.few_rows import MOST_ROWS, few_rows
from slipstream.target.shadow import Change, Forward

_NAME = "slipstream::packed_linear"


class _Packed:
    """A weight in both forms. It holds the memory of the weight, so that no other can come to lie in its place."""

    def __init__(self, weight: Tensor) -> None:
        self._pack(weight)

    def of(self, weight: Tensor) -> Any:
        """The packed form, renewed where the weight was changed in place."""
        if weight._version != self._version:
            self._pack(weight)
        return self.packed

    def _pack(self, weight: Tensor) -> None:
        # Not the parameter itself, whose memory `model.to(dtype)` lets go of.
        self._weight, self._version = weight.detach(), weight._version
        library = few_rows(weight.dtype)
        whole = self._weight
        self.packed = torch.ops.mkldnn._reorder_linear_weight(whole, 1) if library is None else library.packed(whole)

    @property
    def nbytes(self) -> int:
        return self._weight.numel() * self._weight.element_size()


_BY_PLACE: WeakValueDictionary[int, _Packed] = WeakValueDictionary()
"""By where a weight lies in memory: all packed weights that some `PackedWeights` holds."""


class PackedWeights:
    """The packed weights of one target's linear layers."""

    def __init__(self, *, traced: bool = False) -> None:
        """traced: passes are traced by a compiler, which is to see an operator; it costs a call."""
        self._held: dict[int, _Packed] = {}
        self._change = _as_operator if traced else _as_function

    @property
    def nbytes(self) -> int:
        """Bytes of the packed forms."""
        return sum(one.nbytes for one in self._held.values())

    def changes(self, model: nn.Module) -> dict[nn.Module, Change]:
        """For a shadow: its linear layers with packed weights, where that is faster."""
        found = [module for module in model.modules() if isinstance(module, nn.Linear) and _can_pack(module)]
        for module in found:
            self._pack(module.weight)
        return dict.fromkeys(found, self._change)

    def _pack(self, weight: Tensor) -> None:
        place = weight.data_ptr()
        if place not in self._held:
            self._held[place] = _BY_PLACE.setdefault(place, _Packed(weight))

    def forget(self) -> None:
        """Let go of all."""
        self._held.clear()


def is_packed(weight: Tensor) -> bool:
    """Whether somebody holds its packed form."""
    return weight.data_ptr() in _BY_PLACE


def _can_pack(module: nn.Linear) -> bool:
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    weight = module.weight
    plain = type(weight) is nn.Parameter and not weight.is_inference() and weight.is_contiguous()
    plain = plain and (module.bias is None or (module.bias.dtype == weight.dtype and module.bias.is_contiguous()))
    return plain and weight.device.type == "cpu" and _packs(weight.dtype)


def _packs(dtype: torch.dtype) -> bool:
    return few_rows(dtype) is not None or (dtype == torch.bfloat16 and _packs_bfloat16())


@functools.cache
def _packs_bfloat16() -> bool:
    """Whether this PyTorch and processor do, with the operators that are used here."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _matches_unpacked()
    except (AttributeError, RuntimeError):
        return False


def _matches_unpacked() -> bool:
    weight = torch.arange(64 * 32).reshape(64, 32).to(torch.bfloat16)
    rows = torch.eye(32, dtype=torch.bfloat16)[:3]
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    return torch.equal(torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], ""), rows @ weight.T)


def _as_function(own: Forward) -> Forward:
    found: Any = own.__self__._parameters  # type: ignore[attr-defined]
    return lambda rows: own(rows) if rows.requires_grad else _linear(rows, found["weight"], found["bias"])


def _as_operator(own: Forward) -> Forward:
    linear: Any = own.__self__  # type: ignore[attr-defined]
    run = _operator()
    return lambda rows: own(rows) if rows.requires_grad else run(rows, linear.weight, linear.bias)


@functools.cache
def _operator() -> Any:
    """`slipstream::packed_linear(rows, weight, bias)`, which compilers leave as it is."""
    torch.library.define(_NAME, "(Tensor rows, Tensor weight, Tensor? bias) -> Tensor")
    torch.library.impl(_NAME, "cpu", _linear)
    torch.library.register_fake(_NAME, _shape_of_linear)
    return torch.ops.slipstream.packed_linear.default


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    known = _BY_PLACE.get(weight.data_ptr())
    if known is None or rows.dtype is not weight.dtype or not rows.is_cpu or rows.shape[-1] != weight.shape[1]:
        return nn.functional.linear(rows, weight, bias)
    library, packed = few_rows(weight.dtype), known.of(weight)
    if library is None:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
        return output
    is_many = rows.numel() > MOST_ROWS * rows.shape[-1]
    if (is_many and weight.dtype not in library.many) or rows.numel() == 0:
        return nn.functional.linear(rows, weight, bias)
    return library.linear(rows, packed, bias, weight.shape[0])


def _shape_of_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return rows.new_empty(*rows.shape[:-1], weight.shape[0])
