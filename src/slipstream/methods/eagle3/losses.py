"""The training-time test: the loss of an EAGLE-3 head (EAGLE-3, arXiv 2503.01840, section 3.2).

Row t of a text is fed the fused hidden states of token t and the embedding of token t + 1, and is asked for token
t + 2. In step j > 0 it is fed what step j - 1 made of the row before, and attends, as at the j-th level of a draft
chain, to true rows up to t - j, to the rows of the steps between along its own path, and to itself. So every row is
drafted for as deep as there are steps, all in parallel; tokens are the text's own. (The paper's figures name the
columns after the first row of a path; here a row is named after what it is asked for, as in `eagle/losses.py`.)

The loss of a step is the cross-entropy between the target's distribution over the draft vocabulary and the head's.
Rows whose first choice by the target is not in the draft vocabulary teach nothing, and count as wrong.

Shapes: n tokens of all texts, t and h widths of the target's hidden states and of the head, m rows that count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from slipstream.drafting.draft_vocabulary import PartialHead
from slipstream.drafting.packing import attention_within
from slipstream.drafting.recipe import at_least_one
from slipstream.drafting.token_loss import Logits, token_terms
from slipstream.methods.eagle.losses import Rows, along_paths, by_row
from slipstream.methods.eagle3.head import Eagle3Head
from slipstream.target.target import Target

_LOGITS_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Losses:
    """Losses of a batch; one entry a step ahead."""

    token: Tensor  # [steps] cross-entropy between the target's distribution and the head's, nats
    num_rows: Tensor  # [steps] rows counted
    num_hits: Tensor  # [tops, steps] rows whose first choice by the target is among the head's `tops[i]` best
    num_starts: Tensor  # [steps] rows of a step whose path counts from its first token on
    num_paths: Tensor  # [tops, steps] those among them where every token of the path is a hit


class TrainingTimeTest(nn.Module):
    """The head with its loss: one module, so that data-parallel training sees one forward pass a step."""

    def __init__(self, head: Eagle3Head, target: Target) -> None:
        super().__init__()
        self.head = head
        self._target = target  # not a module: its weights are neither trained nor saved with the head
        score = targets = head.scorer(target)
        if head.lm_head is not None:
            targets = target.head if head.ids is None else PartialHead(target, head.ids).score
        self._logits: Logits = lambda hidden: score(hidden[None])[0]
        self._true_logits: Logits = lambda hidden: targets(hidden[None].to(target.dtype))[0]

    def forward(
        self,
        ids: Tensor,  # [n]
        features: Tensor,  # [n, t + t x states], the target's last hidden states, then those that the head reads
        answer: Tensor,  # [n] bool
        lengths: Sequence[int],  # of the texts
        steps: int,
        tops: Sequence[int] = (1,),
        divisor: Callable[[Tensor], Tensor] = at_least_one,
    ) -> Losses:
        """Losses of `steps` steps ahead. tops: see `token_terms`. divisor: the batch's."""
        width = self.head.sizes.target_size
        last, states = features[:, :width], features[:, width:]
        rows = Rows.of(answer, lengths, steps)
        outputs = self._rollout(ids, states, rows, steps)  # [steps, tail, h]
        places, positions = rows.places[rows.tail], rows.positions[rows.tail]  # [tail]
        chosen = answer[places + 2].nonzero()[:, 0]  # [m]
        counted = positions[chosen] >= torch.arange(steps, device=ids.device)[:, None]  # [steps, m]
        true = last[places[chosen] + 1]  # [m, t]
        taught = counted & self._is_drafted(true)
        predicted = self.head.before_lm_head(outputs[:, chosen])  # [steps, m, h]
        terms = token_terms(predicted, true, taught, self._logits, tops, self._true_logits)
        hit, start = (by_row(one, chosen, len(places)) for one in (terms.hits, counted[None]))
        return Losses(
            terms.loss / divisor(taught.sum(dim=1)),
            counted.sum(dim=1),
            terms.hits.sum(dim=-1),
            along_paths(start).sum(dim=-1)[0],
            along_paths(hit).sum(dim=-1),
        )

    def _rollout(self, ids: Tensor, states: Tensor, rows: Rows, steps: int) -> Tensor:
        """What the head makes of the rows of the tail, [steps, tail, h]."""
        head, dtype = self.head, self.head.dtype
        with torch.no_grad():
            embeddings = head.embedder(self._target)(ids[None, rows.places + 1]).to(dtype)
        fed = head.fuse(states[None, rows.places].to(dtype))  # [1, r, h]
        positions = rows.positions[None]
        cache = DynamicCache()
        outputs: list[Tensor] = []
        with attention_within(head.config, rows.lengths, rows.tails):
            for step in range(steps):
                output = head(embeddings, fed, positions, None, cache)  # [1, r or tail, h]
                if step == 0:
                    output, fed = output[:, rows.tail], fed[:, rows.tail]
                    embeddings, positions = embeddings[:, rows.tail], positions[:, rows.tail]
                outputs.append(output[0])
                fed = torch.where(rows.opens[None, :, None], fed, output.roll(1, dims=1).to(fed.dtype))
        return torch.stack(outputs)

    @torch.no_grad()
    def _is_drafted(self, true: Tensor) -> Tensor:
        """[m] bool: whether the target's first choice is in the draft vocabulary. true: [m, t]."""
        ids, total = self.head.ids, self._target.vocab_size
        if ids is None:
            return torch.ones(len(true), dtype=torch.bool, device=true.device)
        drafted = torch.zeros(total, dtype=torch.bool, device=true.device)
        drafted[ids] = True
        parts = torch.split(true.to(self._target.dtype), max(1, _LOGITS_AT_ONCE // total))
        return torch.cat([drafted[self._target.head(part[None])[0].max(dim=-1).indices] for part in parts])
