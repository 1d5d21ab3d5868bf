"""Which part of the work a process does, where several are started together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from slipstream.errors import InputError

One = TypeVar("One")


@dataclass(frozen=True, slots=True)
class Share:
    """Process `rank` of `world_size`."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> Share:
        """As torchrun and `accelerate launch` say it. Raises InputError for what they would not say."""
        names = ("RANK", "WORLD_SIZE")
        try:
            rank, size = (int(os.environ.get(name, default)) for name, default in zip(names, (0, 1), strict=True))
        except ValueError:
            raise InputError(
                f"RANK and WORLD_SIZE are {[os.environ.get(one) for one in names]}; give numbers"
            ) from None
        if not 0 <= rank < size:
            raise InputError(f"RANK is {rank} and WORLD_SIZE {size}; the rank must lie from 0 to {size - 1}")
        return cls(rank, size)

    def of(self, items: Sequence[One]) -> Sequence[One]:
        """Its items: every `world_size`-th."""
        return items[self.rank :: self.world_size]

    def own_gpu(self) -> str | None:
        """The GPU of this process among several, where there are any."""
        from torch import cuda

        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if self.world_size > 1 and cuda.is_available() else None


ALONE = Share()
"""All of the work."""
