"""Training of Medusa heads for any target: Medusa-1 of arXiv 2401.10774, section 2.2.1, and the released recipe.

The target is frozen. From the feature of token t head i = 0, 1, ... learns token t + 2 + i where that is part of an
answer: the cross-entropy, averaged over such tokens, weighs 0.8^i. Labels are the tokens of the text, as published, or
the target's distributions of them. AdamW without weight decay, a cosine from the peak rate to zero, gradients scaled to
norm 1. Heads start out saying what the target says of the next token.

The run itself is `run.py`'s; its folder holds the heads in the published layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.drafting.parts import in_parts
from slipstream.drafting.recipe import Batch, Optimisation, Score, StepLosses, at_least_one
from slipstream.methods.medusa.checkpoint import save_heads
from slipstream.methods.medusa.head import MedusaHeads
from slipstream.methods.medusa.settings import MedusaSettings
from slipstream.target.features import Features
from slipstream.target.target import Target


class MedusaRecipe:
    """A `Recipe`: weighted cross-entropy of all heads."""

    features = Features(last_hidden=True)
    identity: Mapping[str, Any] = {"method": "medusa"}

    def __init__(self, target: Target, settings: MedusaSettings) -> None:
        self.target, self.settings = target, settings
        self.heads = MedusaHeads.like(
            target,
            num_heads=settings.num_heads,
            num_layers=settings.num_layers,
            own_lm_heads=settings.own_lm_heads,
        )
        self.module: nn.Module = MedusaLoss(self.heads, target)
        self.optimisation = Optimisation(weight_decay=0.0, schedule="cosine", clip_norm=1.0)

    def losses(self, module: nn.Module, batch: Batch) -> StepLosses:
        rows = batch.padded()
        each, score = module(rows.ids, rows.features, rows.answer, self.settings.labels, batch.divisor)  # [heads]
        weights = self.settings.head_decay ** torch.arange(each.shape[0], device=each.device)
        return StepLosses((each * weights).sum(), {f"head_{i}_loss": one for i, one in enumerate(each)}, score)

    def measure(self, module: nn.Module, batch: Batch) -> Score:
        """By head, against the target's first choice even where labels are text: a node's accuracy on a right path."""
        rows = batch.padded()
        score: Score = module(rows.ids, rows.features, rows.answer, "target")[1]
        return score

    def save(self, out: Path, steps: int) -> None:
        names = ("learning_rate", "optimizer", "labels", "head_decay", "seed")
        how = {"steps": steps, **{name: getattr(self.settings, name) for name in names}}
        save_heads(self.heads, out, self.target, how)


class MedusaLoss(nn.Module):
    """The heads with their loss: one module, so that data-parallel training sees one forward pass a step."""

    def __init__(self, heads: MedusaHeads, target: Target) -> None:
        super().__init__()
        self.heads = heads
        self._target = target  # not a module: its weights are neither trained nor saved with the heads

    def forward(
        self,
        ids: Tensor,
        features: Tensor,
        answer: Tensor,
        labels: str,
        divisor: Callable[[Tensor], Tensor] = at_least_one,
    ) -> tuple[Tensor, Score]:
        """Cross-entropy [heads] in nats, and the first choices compared with the labels'.

        ids: [b, n]; features: [b, n, h] the target's; answer: [b, n] bool; labels: one of `LABELS`; divisor: the
        batch's.
        """
        hidden = self.heads.hidden(features.to(self.heads.weight.dtype))  # [i, b, n, h]
        row, place = answer[:, 1:].nonzero(as_tuple=True)  # [m] the token at place + 1 is to be predicted
        terms = partial(self._terms, hidden, ids, features, labels)
        width = self._target.vocab_size * (1 + self.heads.sizes.num_heads)
        loss, num_correct, num_rows = in_parts(terms, (row, place), width)  # [i] each
        return loss / divisor(num_rows), Score(num_correct, num_rows)

    def _terms(
        self, hidden: Tensor, ids: Tensor, features: Tensor, labels: str, row: Tensor, place: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Summed cross-entropy, rows whose first choice is right, and rows, of each head [i]. row, place: [m]."""
        label = ids[row, place + 1] if labels == "text" else self._distribution(features[row, place])
        per_head = []
        for index in range(self.heads.sizes.num_heads):
            start = place - 1 - index  # [m] where the head stands that predicts place + 1
            known = start >= 0
            states = hidden[index, row[known], start[known]]
            log_q = self.heads.logits(index, states, self._target).float().log_softmax(dim=-1)
            per_head.append(_compare(log_q, label[known]))
        loss, num_correct, num_rows = (torch.stack(values) for values in zip(*per_head, strict=True))
        return loss, num_correct, num_rows

    @torch.no_grad()
    def _distribution(self, features: Tensor) -> Tensor:
        """The target's distribution of the next token after each row, [m, vocab]."""
        return self._target.head(features[None].to(self._target.dtype))[0].float().softmax(dim=-1)


def _compare(log_q: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Summed cross-entropy, rows whose first choice is the label's, and rows. label: [m] tokens or [m, vocab] p."""
    if label.ndim == 1:
        loss = nn.functional.nll_loss(log_q, label, reduction="sum")
        best = label
    else:
        loss = -(label * log_q).sum()
        best = label.argmax(dim=-1)
    right = log_q.argmax(dim=-1) == best
    return loss, right.sum(), right.new_full((), right.shape[0], dtype=torch.int64)
