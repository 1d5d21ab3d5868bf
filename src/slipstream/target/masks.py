"""Attention masks of the target, in the form that its modelling code expects.

Masks are additive, 4-D, in the model's dtype: 0 where a row may attend, the dtype's lowest number elsewhere. Windows
and chunks compare text positions, never cache slots, since the nodes of a tree share positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slipstream.errors import UnsupportedTargetError
from slipstream.target.cache import KVCache
from slipstream.target.families import refuse_layers

_FULL = "full_attention"


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back a layer looks: everything, a sliding window, or the own chunk."""

    window: int | None = None  # a row at position p sees positions p - window + 1 .. p
    chunk: int | None = None  # a row sees positions of its own chunk of this size

    def restrict(self, allowed: Tensor, positions: Tensor, slot_positions: Tensor) -> Tensor:
        """`allowed` [b, n, slots] without what is out of reach. positions: [b, n]; slot_positions: [b, slots]."""
        rows, slots = positions[:, :, None], slot_positions[:, None, :]
        if self.window is not None:
            return allowed & (rows - slots < self.window)
        if self.chunk is not None:
            return allowed & (rows // self.chunk == slots // self.chunk)
        return allowed


@dataclass(frozen=True, slots=True)
class MaskPlan:
    """Which masks a model needs: one, or one per layer type."""

    reaches: dict[str, Reach]
    as_dict: bool
    dtype: torch.dtype

    @classmethod
    def find(cls, config: Any, dtype: torch.dtype, takes_dict: Callable[[dict[str, Tensor]], bool]) -> MaskPlan:
        """Read the plan off a text config. takes_dict: tries a dict of masks for one token on the model."""
        reaches = layer_reaches(config)
        one_token = {kind: torch.zeros(1, 1, 1, 1, dtype=dtype) for kind in reaches}
        as_dict = getattr(config, "layer_types", None) is not None and takes_dict(one_token)
        if not as_dict and len(set(reaches.values())) > 1:
            kinds = ", ".join(reaches)
            raise UnsupportedTargetError(
                f"{config._name_or_path or config.model_type} mixes attention types ({kinds}) but takes only one mask"
            )
        return cls(reaches, as_dict, dtype)

    def build(self, visible: Tensor, positions: Tensor, cache: KVCache) -> Tensor | dict[str, Tensor]:
        """Masks for the pass announced to `cache`.

        visible: [b, n, w] bool, over the w slots from each sequence's length on; earlier slots are all seen, later ones
        are not. positions: [b, n]. Each mask: [b, 1, n, cache.context].
        """
        allowed = allowed_slots(visible, cache.lengths, cache.context)
        slot_positions = cache.positions[:, : cache.context]
        masks = {
            reach: additive(reach.restrict(allowed, positions, slot_positions), self.dtype)
            for reach in set(self.reaches.values())
        }
        if self.as_dict:
            return {kind: masks[reach] for kind, reach in self.reaches.items()}
        return next(iter(masks.values()))


def allowed_slots(visible: Tensor, lengths: Tensor, context: int) -> Tensor:
    """[b, n, context] bool: the slots below each sequence's length, and what `visible` [b, n, w] says of the next w."""
    behind = torch.arange(context, device=lengths.device) - lengths[:, None]  # [b, context] slots from the length on
    width = visible.shape[2]
    seen = visible.gather(2, behind.clamp(0, width - 1)[:, None].expand(-1, visible.shape[1], -1))
    return torch.where((behind < width)[:, None], seen | (behind < 0)[:, None], False)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a row may attend, the lowest number elsewhere. allowed: [b, n, slots] bool. Returns [b, 1, n, slots]."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def layer_reaches(config: Any) -> dict[str, Reach]:
    """The reach of each attention layer type that a text config names; one entry where all layers are alike."""
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return {_FULL: Reach(window=window)}
    known = {
        _FULL: Reach(),
        "sliding_attention": Reach(window=window),
        "chunked_attention": Reach(chunk=getattr(config, "attention_chunk_size", None)),
    }
    refuse_layers(config, config._name_or_path or config.model_type)
    return {kind: known[kind] for kind in dict.fromkeys(kinds)}
