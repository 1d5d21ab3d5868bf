"""Tensor parallelism: a target whose weights are shared out among processes, as transformers does it.

Every process runs the same program, holds a part of each weight as a DTensor and a part of the keys, and has whole
hidden states and logits. So drafts, heads and choices are made in every process alike; what could differ, the clock
and the last bits of a choice, is the first process's for all (`from_first`).
"""

from __future__ import annotations

import math
import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slipstream.errors import InputError, UnsupportedTargetError

Value = TypeVar("Value")

_PATIENCE = timedelta(hours=2)  # processes read their parts of a large model at different speeds
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_host_group: Any = None
"""Of all processes that share a target, for values of the host; None: there are none."""


def begin(tp_size: int, device: str | torch.device | None) -> torch.device:
    """Have this process meet the others; the device that it takes.

    Raises InputError where they are not `tp_size`, or another device was asked for.
    """
    if isinstance(tp_size, bool) or not isinstance(tp_size, int) or tp_size < 2:
        raise InputError(f"tp_size is {tp_size!r}; it must be a whole number of at least 2, or be left out")
    place = torch.accelerator.current_accelerator() or torch.device("cpu")
    if device is not None and str(device) != place.type:
        raise InputError(f"device={str(device)!r} was asked for, but with tp_size every process takes its {place.type}")
    if not dist.is_initialized():
        _initialize(tp_size, place)
    if dist.get_world_size() != tp_size:
        raise InputError(f"tp_size is {tp_size}, but {dist.get_world_size()} processes were started; {_how(tp_size)}")
    return place


def _initialize(tp_size: int, place: torch.device) -> None:
    missing = [name for name in _LAUNCHED if name not in os.environ]
    if missing:
        raise InputError(f"tp_size is {tp_size}, but this process was started alone; {_how(tp_size)}")
    if place.type == "cpu":
        dist.init_process_group("gloo", timeout=_PATIENCE)
        return
    torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(timeout=_PATIENCE)


def _how(tp_size: int) -> str:
    return f"start as many: torchrun --nproc_per_node {tp_size} SCRIPT, or -m slipstream COMMAND --tp-size {tp_size}"


def check_heads(config: Any, tp_size: int, name: str) -> None:
    """Raise UnsupportedTargetError for a model whose attention heads do not share out evenly."""
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    key_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    if heads % tp_size or key_heads % tp_size:
        common = math.gcd(heads, key_heads)
        fitting = [str(size) for size in range(2, common + 1) if common % size == 0]
        remedy = f"use tp_size {' or '.join(fitting)}" if fitting else "load it without tp_size"
        raise UnsupportedTargetError(
            f"{name} has {heads} query and {key_heads} key heads, which {tp_size} processes cannot share evenly; "
            f"{remedy}"
        )


def arguments(tp_size: int) -> dict[str, Any]:
    """What transformers' `from_pretrained` takes for it."""
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=tp_size)}


def is_sharded(model: nn.Module) -> bool:
    """Whether some weight is a part of one."""
    return any(map(is_part, model.parameters()))


def is_part(weight: Tensor) -> bool:
    """Whether other processes hold other parts of it: a DTensor."""
    return hasattr(weight, "full_tensor")


def whole(weight: Tensor) -> Tensor:
    """All of a weight, gathered from all processes where it is a part. They all have to ask for it."""
    found: Tensor = weight.detach().full_tensor() if is_part(weight) else weight.detach()  # type: ignore[attr-defined]
    return found


def share() -> None:
    """From here on, this process and all others of its group go by the first one's values."""
    global _host_group
    if _host_group is None:
        _host_group = dist.new_group(backend="gloo", timeout=_PATIENCE)


def num_sharing() -> int:
    """Processes that share a target; 1: there is this one alone."""
    return 1 if _host_group is None else dist.get_world_size()


def from_first(value: Value) -> Value:
    """The value of the first process that shares a target: a tensor of the same shape everywhere, or any object."""
    if _host_group is None:
        return value
    if isinstance(value, Tensor):
        held = value.clone()
        dist.broadcast(held, src=0)
        return held  # type: ignore[return-value]
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_host_group)
    return values[0]
