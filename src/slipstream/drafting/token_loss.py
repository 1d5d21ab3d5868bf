"""The cross-entropy between the target's distributions and a head's, both through the target's LM head.

The LM head is most of the work of training on a large vocabulary. So logits are made for a few rows at a time, while
they stay in the processor's cache, the gradient is made from them at once, and none are kept or made twice; the
target's are made once for all steps ahead. Logits of the whole vocabulary are computed in the target's dtype, those of
a part in float32 where that is as fast, and everything after in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slipstream.drafting.recipe import Dialogue
from slipstream.errors import InputError
from slipstream.target.dtypes import multiplies_faster_in_bfloat16
from slipstream.target.target import Target

_LOGITS_AT_ONCE = 1 << 22

Logits = Callable[[Tensor], Tensor]
"""Logits [n, tokens], at least float32, of hidden states [n, h]; differentiable."""


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """What rows cost and whether they are right, by step ahead."""

    loss: Tensor  # [steps] summed cross-entropy, nats
    hits: Tensor  # [tops, steps, m] bool: whether the target's first choice is among the head's `tops[i]` best


def token_terms(
    predicted: Tensor,
    true: Tensor,
    counted: Tensor,
    logits: Logits,
    tops: Sequence[int],
    true_logits: Logits | None = None,
) -> TokenTerms:
    """Cross-entropy of predicted features [steps, m, h] against true ones [m, t], summed over `counted` [steps, m].

    tops: numbers of first choices, the first of them 1. true_logits: of the true features, where other ones than
    `logits`; of the same tokens.
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = _TokenLoss.apply
    loss, hits = apply(predicted, true, counted, logits, true_logits or logits, tuple(tops))
    return TokenTerms(loss, hits)


class _TokenLoss(torch.autograd.Function):
    """The gradient of the features is made in the forward pass, from logits that are then forgotten."""

    @staticmethod
    def forward(
        ctx: Any,
        predicted: Tensor,
        true: Tensor,
        counted: Tensor,
        logits: Logits,
        true_logits: Logits,
        tops: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        steps, num_rows, _ = predicted.shape
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(predicted) if wanted else None
        losses: list[Tensor] = []
        hits = counted.new_zeros(len(tops), steps, num_rows)
        with torch.no_grad():
            width = true_logits(true[:1]).shape[-1] if num_rows else 1
        at_once = max(1, _LOGITS_AT_ONCE // width)
        for first in range(0, num_rows, at_once):
            rows = slice(first, first + at_once)
            with torch.no_grad():
                p = true_logits(true[rows]).softmax(dim=-1)  # [n, tokens]
                best = p.max(dim=-1).indices[:, None]
            each = []
            for step in range(steps):
                fed = predicted[step, rows].detach().requires_grad_(wanted)
                with torch.set_grad_enabled(wanted):
                    z = logits(fed)  # [n, tokens]
                weight = counted[step, rows, None]
                log_q = z.detach().log_softmax(dim=-1)
                each.append(-(p * log_q).mul_(weight).sum())  # autocast would make a dot product in bfloat16
                hits[:, step, rows] = _hits(log_q, best, tops) & counted[step, rows]
                if gradient is not None:
                    towards = z.detach().softmax(dim=-1).sub_(p).mul_(weight)
                    gradient[step, rows] = torch.autograd.grad(z, fed, towards)[0].to(gradient.dtype)
            losses.append(torch.stack(each))
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(hits)
        loss = torch.stack(losses).sum(dim=0) if losses else predicted.new_zeros(steps)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0][:, None, None].to(gradient.dtype), None, None, None, None, None


def _hits(log_q: Tensor, best: Tensor, tops: Sequence[int]) -> Tensor:
    """[tops, n] bool. log_q: [n, tokens]; best: [n, 1]."""
    first = log_q.max(dim=-1).indices == best[:, 0]
    if tuple(tops) == (1,):
        return first[None]
    better = (log_q > log_q.gather(1, best)).sum(dim=-1)  # [n]
    return torch.stack([first if top == 1 else first | (better < top) for top in tops])


# --- which tokens ---------------------------------------------------------------------------------------------------


def all_logits(target: Target) -> Logits:
    """The target's own logits of all tokens."""
    return lambda hidden: target.head(hidden[None].to(target.dtype))[0]


class LossVocabulary:
    """Part of a large vocabulary that stands for all of it, drawn anew each step.

    Always in it: the most frequent tokens of the answers, and the answers' tokens of the step at hand, which hold the
    target's first choice wherever the target wrote them greedily. The rest is a uniform sample of all other tokens,
    whose logits are raised by -log of the share that was drawn, the target's as well as the head's. Sums of
    exp(logits) over the whole vocabulary are so estimated without bias. Their logarithms and ratios, the loss and its
    gradient, are not free of it: the bias is of the order of the variance of the sample's share of the probability,
    and vanishes with what the target and the head give to tokens that are not always in it.
    """

    def __init__(self, target: Target, dialogues: Sequence[Dialogue], size: int) -> None:
        """size: tokens of a step, besides those that only its answers bring in; a quarter of them is drawn.

        Raises InputError for a target whose logits are not a plain linear layer's output.
        """
        layer: Any = target.model.get_output_embeddings()
        weight = getattr(layer, "weight", None)
        if not target.bare_head or weight is None or weight.ndim != 2 or not weight.is_floating_point():
            raise InputError(
                f"loss_vocabulary cannot be used with {target.name}, whose logits are more than a linear layer's; "
                "leave it away to take the loss over all tokens"
            )
        self._target, self._layer = target, layer
        faster = multiplies_faster_in_bfloat16(target.device)
        self._dtype = weight.dtype if faster else torch.promote_types(weight.dtype, torch.float32)
        self._num_drawn = size // 4
        self._frequent = _most_frequent(dialogues, target.vocab_size, size - self._num_drawn).to(target.device)

    def drawn(self, answers: Tensor, seed: int) -> Logits:
        """Logits of the tokens for one step. answers: [m] the tokens that its answers hold."""
        total = self._target.vocab_size
        always = torch.zeros(total, dtype=torch.bool, device=answers.device)
        always[self._frequent] = True
        always[answers] = True
        kept, others = always.nonzero()[:, 0], (~always).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(seed)
        picks = torch.randperm(others.shape[0], generator=generator)[: self._num_drawn].to(answers.device)
        tokens = torch.cat((kept, others[picks]))
        raised = torch.zeros(tokens.shape[0], device=answers.device)
        if len(picks):
            raised[kept.shape[0] :] = torch.tensor(others.shape[0] / len(picks)).log()
        weight, bias = self._layer.weight.detach()[tokens].to(self._dtype), getattr(self._layer, "bias", None)
        own_bias = None if bias is None else bias.detach()[tokens].to(self._dtype)

        def logits(hidden: Tensor) -> Tensor:
            found = torch.nn.functional.linear(hidden.to(weight.dtype), weight, own_bias)
            return self._target.upcast(found) + raised

        return logits


def _most_frequent(dialogues: Sequence[Dialogue], num_tokens: int, count: int) -> Tensor:
    """The `count` tokens that answers hold most often; those that none holds follow in the tokenizer's order."""
    seen = torch.zeros(num_tokens, dtype=torch.int64)
    for one in dialogues:
        ids = torch.tensor(one.token_ids)[torch.tensor(one.answer, dtype=torch.bool)]
        seen += torch.bincount(ids, minlength=num_tokens)
    return seen.sort(descending=True, stable=True).indices[:count]
