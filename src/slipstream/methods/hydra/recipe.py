"""Training of Hydra heads for any target (Hydra, arXiv 2402.05109, sections 3 and 4, and the released code).

Row t of a text gives head i the feature of token t (behind the prefix layer, where there is one) and the text's own
tokens t + 1 ... t + 1 + i, and asks for token t + 2 + i. As Hydra++ is trained: the loss is the cross-entropy between
the target's distribution of that token and the head's ("teacher loss"), averaged over the tokens of answers and summed
over heads; AdamW with weight decay, a cosine from the peak rate to a third of it, dropout, gradients scaled to norm 1.
Plain Hydra is trained the same way here; its paper took the data's tokens for labels.

The run itself is `run.py`'s; its folder holds the heads in the published layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slipstream.drafting.own_lm_heads import lm_head_to_copy
from slipstream.drafting.recipe import Batch, Optimisation, Score, StepLosses, at_least_one
from slipstream.methods.hydra.checkpoint import save_heads
from slipstream.methods.hydra.head import HydraHeads, HydraSizes, PrefixSizes
from slipstream.methods.hydra.settings import HydraSettings
from slipstream.target.features import Features
from slipstream.target.target import Target

_MAX_LOGITS = 1 << 26  # logits held at once: larger batches are taken in parts and recomputed in the backward pass
_FINAL_SHARE = 0.33  # of the peak learning rate
_CLIP_NORM = 1.0  # what the released script's trainer does unless told otherwise


class HydraRecipe:
    """A `Recipe`: teacher loss on teacher-forced tokens."""

    features = Features(last_hidden=True)
    identity: Mapping[str, Any] = {"method": "hydra"}

    def __init__(self, target: Target, settings: HydraSettings) -> None:
        torch.manual_seed(settings.seed)
        self.target, self.settings = target, settings
        self.heads = new_heads(target, settings)
        self.module: nn.Module = TeacherLoss(self.heads, target)
        self.optimisation = Optimisation(
            weight_decay=settings.weight_decay, schedule="cosine", final_share=_FINAL_SHARE, clip_norm=_CLIP_NORM
        )

    def losses(self, module: nn.Module, batch: Batch) -> StepLosses:
        rows = batch.padded()
        each, score = module(rows.ids, rows.features, rows.answer, batch.divisor)  # [heads]
        parts = {f"head_{index}_loss": loss for index, loss in enumerate(each)}
        return StepLosses(each.sum(), parts, score)

    def measure(self, module: nn.Module, batch: Batch) -> Score:
        """By head, the tokens before being the text's own: the accuracy of a node whose path is right."""
        rows = batch.padded()
        score: Score = module(rows.ids, rows.features, rows.answer)[1]
        return score

    def save(self, out: Path, steps: int) -> None:
        names = ("learning_rate", "optimizer", "dropout", "weight_decay", "seed")
        how = {"steps": steps, **{name: getattr(self.settings, name) for name in names}}
        dtype = torch.bfloat16 if self.settings.storage == "bf16" else None
        save_heads(self.heads, out, self.target, how, dtype)


def new_heads(target: Target, settings: HydraSettings) -> HydraHeads:
    """Fresh heads on the target's device, in float32; LM heads of their own start as copies of the target's.

    Raises InputError where the LM head cannot be copied because it is quantised.
    """
    sizes = HydraSizes(
        hidden_size=int(target.config.hidden_size),
        embedding_size=int(target.model.get_input_embeddings().weight.shape[1]),
        num_heads=settings.num_heads,
        num_layers=settings.num_layers,
        prefix=PrefixSizes.like(target, settings.prefix_size) if settings.prefix else None,
        vocab_size=target.vocab_size if settings.own_lm_heads else None,
    )
    heads = HydraHeads(sizes, settings.dropout)
    if heads.lm_heads is not None:
        weight, bias = lm_head_to_copy(target)
        own: Any
        with torch.no_grad():
            for own in heads.lm_heads:
                own.weight.copy_(weight)
                own.bias.zero_() if bias is None else own.bias.copy_(bias)
    return heads.to(target.device)


class TeacherLoss(nn.Module):
    """The heads with their loss: one module, so that data-parallel training sees one forward pass a step."""

    def __init__(self, heads: HydraHeads, target: Target) -> None:
        super().__init__()
        self.heads = heads
        self._target = target  # not a module: its weights are neither trained nor saved with the heads

    def forward(
        self, ids: Tensor, features: Tensor, answer: Tensor, divisor: Callable[[Tensor], Tensor] = at_least_one
    ) -> tuple[Tensor, Score]:
        """Cross-entropy [heads] in nats, and the first choices compared with the target's.

        ids: [b, n]; features: [b, n, h] the target's; answer: [b, n] bool; divisor: the batch's.
        """
        features = features.to(self.heads.dtype)
        with torch.no_grad():
            embeddings = self._target.model.get_input_embeddings()(ids).to(self.heads.dtype)  # [b, n, e]
        start = self._start(features)
        parts = []
        for index in range(self.heads.sizes.num_heads):
            ahead = index + 2  # from the feature's token to the one that is asked for
            counted = answer[:, ahead:]  # [b, n - ahead]
            rows = max(0, ids.shape[1] - ahead)
            seen = [start[:, :rows], *(embeddings[:, j : j + rows] for j in range(1, ahead))]
            inputs = torch.cat([part[counted] for part in seen], dim=-1)  # [m, h + (index + 1) * e]
            parts.append(self._losses(index, inputs, features[:, ahead - 1 : ahead - 1 + rows][counted]))
        each, correct, count = (torch.stack(values) for values in zip(*parts, strict=True))
        return each / divisor(count), Score(correct, count)

    def _start(self, features: Tensor) -> Tensor:
        """What the heads start from at every token, [b, n, h]."""
        prefix = self.heads.prefix
        if prefix is None:
            return features
        n = features.shape[1]
        positions = torch.arange(n, device=features.device)[None].expand(features.shape[0], -1)
        mask = torch.ones(n, n, dtype=torch.bool, device=features.device).tril()[None, None]
        start: Tensor = prefix(features, positions, mask)
        return start

    def _losses(self, index: int, inputs: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Summed cross-entropy of rows [m, ...], how many first choices are the target's, and m."""
        num_rows = inputs.shape[0]
        per_part = max(1, _MAX_LOGITS // self._target.vocab_size)
        if num_rows <= per_part:
            loss, correct = self._terms(index, inputs, teacher)
        else:
            loss, correct = inputs.new_zeros(()), inputs.new_zeros((), dtype=torch.int64)
            for part in zip(torch.split(inputs, per_part), torch.split(teacher, per_part), strict=True):
                more = checkpoint(self._terms, index, *part, use_reentrant=False)
                loss, correct = loss + more[0], correct + more[1]
        return loss, correct, torch.full_like(correct, num_rows)

    def _terms(self, index: int, inputs: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy, and the number of first choices that are the target's. teacher: [m, h] features."""
        with torch.no_grad():
            p = self._target.head(teacher[None].to(self._target.dtype))[0].float().softmax(dim=-1)  # [m, vocab]
        log_q = self.heads.logits(index, inputs[None], self._target)[0].float().log_softmax(dim=-1)
        return -(p * log_q).sum(), (p.argmax(dim=-1) == log_q.argmax(dim=-1)).sum()
