"""How far apart two tensors are, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference between entries of two tensors of one shape, on any devices.

    Equal infinities do not differ; a nan is infinitely far from everything. 0 only if no entry differs in value.
    """
    b = b.to(a.device)
    difference = torch.where(a == b, torch.zeros_like(a, dtype=torch.float64), (a.double() - b.double()).abs())
    return float(difference.nan_to_num(nan=float("inf"), posinf=float("inf")).max())
