"""The language-modelling loss of packed rows: shared by training and by the held-out measurement."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from slipstream.training.data.corpus import PROMPT_BIT, Tokens


def split_rows(rows: Tokens, prompt_weight: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels (int64) and loss weights (float32), each [rows, length], of packed rows [rows, length + 1].

    A label the user wrote weighs `prompt_weight`, every other label 1.
    """
    ids = torch.from_numpy((rows & (PROMPT_BIT - 1)).astype(np.int64)).to(device)
    weights = torch.from_numpy(np.where(rows[:, 1:] & PROMPT_BIT, prompt_weight, 1.0).astype(np.float32)).to(device)
    return ids[:, :-1], ids[:, 1:], weights


def token_losses(model: Any, inputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats of every label under a causal LM. Returns [rows, length] float32."""
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state  # [rows, length, hidden]
    logits = model.lm_head(hidden).float()  # [rows, length, vocab]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
