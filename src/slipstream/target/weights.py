"""What names a model's weights: read as they are stored, quantised ones too, and never changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.target.sharding import is_part, whole

_READ = 256
"""Elements of a tensor that are read."""
_ROWS = 32
"""Rows of a 4-bit matrix that are read: bitsandbytes reorders values within as many, once a pass has run on a CPU."""


def weights_hash(model: nn.Module) -> str:
    """16 hexadecimal digits that are the same whatever dtype or device the weights are loaded in.

    Covers every tensor's name, shape and first 256 elements rounded to bfloat16. Of quantised weights that is what is
    stored: packed values and scales.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters(), key=_name) + sorted(_quantised_buffers(model), key=_name):
        if tensor.device.type == "meta":  # offloaded weights are not at hand; the others tell models apart
            continue
        for inner, shape, head in _readable(name, whole(tensor) if is_part(tensor) else tensor):
            digest.update(f"{inner}{shape}".encode())
            digest.update(head.to("cpu", torch.float32).to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _name(named: tuple[str, Tensor]) -> str:
    return named[0]


def _quantised_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that a checkpoint of a quantised model holds: some kinds keep their weights there."""
    if getattr(model, "hf_quantizer", None) is None:
        return
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


def _readable(name: str, tensor: Tensor) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
    """(name, shape, elements) of a tensor, or of the tensors inside one that is quantised."""
    flatten = getattr(tensor, "__tensor_flatten__", None)  # torchao's
    state: Any = getattr(tensor, "quant_state", None)  # bitsandbytes', of 4 bits
    if flatten is not None:
        for inner in flatten()[0]:
            yield from _readable(f"{name}.{inner}", getattr(tensor, inner))
    elif state is not None:
        yield name, tuple(state.shape), _counted_nibbles(tensor, state.shape[-1])
    else:
        yield name, tuple(tensor.shape), tensor.detach().flatten()[:_READ]


def _counted_nibbles(packed: Tensor, columns: int) -> Tensor:
    """How often each value of 4 bits occurs in the first rows, whatever their order."""
    read = packed.detach().flatten().view(torch.uint8)[: _ROWS * columns // 2]
    return (read & 15).bincount(minlength=16) + (read >> 4).bincount(minlength=16)


def stored_tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and persistent buffers. `state_dict` would hold the same, but unpacks some quantised weights."""
    buffers = (
        buffer
        for one in module.modules()
        for name, buffer in one.named_buffers(recurse=False)
        if name not in one._non_persistent_buffers_set
    )
    return [*module.parameters(), *buffers]
