"""What moves the weights of a head or a draft model: AdamW as published, or Muon for its matrices."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from slipstream.drafting.recipe import Optimisation


def build_optimizers(
    name: str, parameters: Iterable[nn.Parameter], how: Optimisation, rate: float, vocab_size: int
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run: "adamw", or "muon" (arXiv 2502.16982, its updates as large as AdamW's) beside it.

    Muon moves matrices; vectors, embeddings and LM heads, whose rows are tokens, stay with AdamW.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for one in parameters:
        inner = name == "muon" and one.ndim == 2 and vocab_size not in one.shape
        (matrices if inner else others).append(one)
    found: list[torch.optim.Optimizer] = []
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=rate, weight_decay=how.weight_decay, adjust_lr_fn="match_rms_adamw"))
    if others:
        found.append(torch.optim.AdamW(others, lr=rate, betas=how.betas, weight_decay=how.weight_decay))
    return found
