"""Training of a small draft model for any target, by distillation (as DistillSpec, arXiv 2310.08461, with forward KL).

The draft model is a Llama with the target's vocabulary. It learns the target's distribution of every next token, on
answers and with less weight on prompts: cross-entropy against it is its KL divergence plus a constant. The run itself
is `run.py`'s; its folder is a model folder that `AutoModelForCausalLM` loads too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from slipstream.drafting.recipe import Batch, Optimisation, Score, StepLosses, at_least_one
from slipstream.methods.draft_model.checkpoint import own_tokenizer, save_draft
from slipstream.methods.draft_model.settings import DraftSettings
from slipstream.target.features import Features
from slipstream.target.target import Target

_MAX_LOGITS = 1 << 26  # logits held at once: larger batches are taken in parts and recomputed in the backward pass
_SPREAD = 0.02  # standard deviation of fresh weights and of embeddings


class DraftRecipe:
    """A `Recipe`: distillation on the target's distributions."""

    features = Features(last_hidden=True)
    identity: Mapping[str, Any] = {"method": "draft"}

    def __init__(self, target: Target, settings: DraftSettings, tokenizer: Any = None) -> None:
        self.target, self.settings = target, settings
        self.tokenizer = own_tokenizer(target) if tokenizer is None else tokenizer
        self.model: Any = build_draft(target, settings)
        self.module: nn.Module = DistillationLoss(self.model, target, settings.prompt_weight)
        self.optimisation = Optimisation(betas=(0.9, 0.95), weight_decay=0.05, schedule="cosine", clip_norm=1.0)

    def losses(self, module: nn.Module, batch: Batch) -> StepLosses:
        rows = batch.padded()
        loss, score = module(rows.ids, rows.features, rows.answer, batch.divisor)
        return StepLosses(loss, {"token_loss": loss}, score)

    def measure(self, module: nn.Module, batch: Batch) -> Score:
        """One depth: a draft model reads tokens only, so on a right path it is as accurate at every depth."""
        rows = batch.padded()
        score: Score = module(rows.ids, rows.features, rows.answer)[1]
        return score

    def save(self, out: Path, steps: int) -> None:
        names = ("learning_rate", "optimizer", "prompt_weight", "embeddings", "seed")
        made = {"steps": steps, **{name: getattr(self.settings, name) for name in names}}
        save_draft(self.model, out, self.target, self.tokenizer, made)


# -- the model -------------------------------------------------------------------------------------------------------


def build_draft(target: Target, settings: DraftSettings) -> Any:
    """A fresh LlamaForCausalLM in float32, with the target's vocabulary, context and RoPE base, on its device."""
    torch.manual_seed(settings.seed)
    rope = getattr(target.config, "rope_parameters", None) or {}
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    config = LlamaConfig(
        vocab_size=target.vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_kv_heads,
        head_dim=settings.hidden_size // settings.num_heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=target.context_length or 1 << 20,
        rope_parameters={"rope_type": "default", "rope_theta": rope.get("rope_theta", 10000.0)},
        tie_word_embeddings=True,
        initializer_range=_SPREAD,
        **{name: getattr(target.config, name, None) for name in special},
    )
    model: Any = LlamaForCausalLM(config).float()
    if settings.embeddings == "projected":
        _copy_projected(target.model.get_input_embeddings().weight, model.get_input_embeddings().weight)
    return model.to(target.device)


@torch.no_grad()
def _copy_projected(source: Tensor, into: Tensor) -> None:
    """Set `into` [vocab, width] to `source` [rows, hidden] along its principal directions, spread as fresh weights.

    Rows and columns that `source` cannot fill keep their random values.
    """
    rows = source[: into.shape[0]].detach().to("cpu", torch.float64)
    centred = rows - rows.mean(dim=0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, : into.shape[1]]  # largest first
    projected = centred @ directions
    into[: projected.shape[0], : projected.shape[1]] = (projected * (_SPREAD / projected.std())).to(into)


# -- the loss --------------------------------------------------------------------------------------------------------


class DistillationLoss(nn.Module):
    """The draft model with its loss: one module, so that data-parallel training sees one forward pass a step."""

    def __init__(self, model: Any, target: Target, prompt_weight: float) -> None:
        super().__init__()
        self.body = model.model  # without the LM head, whose weight is the embeddings': a state holds it once
        self.prompt_weight = prompt_weight
        self._target = target  # not a module: its weights are neither trained nor saved

    def forward(
        self, ids: Tensor, features: Tensor, answer: Tensor, divisor: Callable[[Tensor], Tensor] = at_least_one
    ) -> tuple[Tensor, Score]:
        """Weighted mean cross-entropy in nats, and the score of answers (one depth).

        ids: [b, n]; features: [b, n, h] the target's last hidden states; answer: [b, n] bool; divisor: the batch's.
        Row t predicts token t + 1; rows after the last answer token, padding among them, do not count.
        """
        hidden = self.body(input_ids=ids, use_cache=False)[0][:, :-1]  # [b, n - 1, width]
        answered = answer[:, 1:]  # [b, n - 1], what each row predicts
        before_end = answered.flip(1).cumsum(dim=1).flip(1) > 0
        weight = torch.where(answered, 1.0, before_end * self.prompt_weight)  # [b, n - 1]
        counted = weight > 0
        rows = hidden[counted], features[:, :-1][counted], weight[counted], answered[counted]
        loss, num_correct = self._sums(*rows)
        score = Score(num_correct[None], answered.sum()[None])
        return loss / divisor(weight.sum()), score

    def _sums(self, hidden: Tensor, features: Tensor, weight: Tensor, answered: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum of the cross-entropies of rows [m], and the number of right first choices in answers."""
        per_part = max(1, _MAX_LOGITS // self._target.vocab_size)
        loss, num_correct = hidden.new_zeros(()).float(), answered.new_zeros((), dtype=torch.int64)
        for first in range(0, hidden.shape[0], per_part):
            part = [rows[first : first + per_part] for rows in (hidden, features, weight, answered)]
            whole = hidden.shape[0] <= per_part
            one, correct = self._terms(*part) if whole else checkpoint(self._terms, *part, use_reentrant=False)
            loss, num_correct = loss + one, num_correct + correct
        return loss, num_correct

    def _terms(self, hidden: Tensor, features: Tensor, weight: Tensor, answered: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            p = self._target.head(features[None].to(self._target.dtype))[0].float().softmax(dim=-1)  # [m, vocab]
        logits = nn.functional.linear(hidden, self.body.embed_tokens.weight)
        log_q = logits.float().log_softmax(dim=-1)  # [m, vocab]
        right = (p.argmax(dim=-1) == log_q.argmax(dim=-1)) & answered
        return -((p * log_q).sum(dim=-1) * weight).sum(), right.sum()
