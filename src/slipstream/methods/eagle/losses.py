"""The loss of an EAGLE head (EAGLE, arXiv 2401.15077, section 3.2), for one step or for several steps ahead.

Row t of a text is fed the feature of token t and the embedding of token t + 1, predicts the feature of t + 1 and
through the LM head the distribution of token t + 2. Rows whose token t + 2 is part of an answer count.

While drafting, the head sees features of its own making from the second level on. With steps_ahead > 1 it is trained
so (HASS, arXiv 2408.15766; EAGLE-3's training-time test): in step j the row of t is fed what step j - 1 predicted for t
and attends, as at the j-th level of a draft chain, to true rows up to t - j, to the rows of the steps between along its
own path, and to itself (steps are counted from 0 here). The tensors of the head stay the published ones.

Texts are laid one after another, cut behind their last answer (`packing.py`).

Shapes: n tokens of all texts, h hidden size, r rows of all texts, m rows that count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from slipstream.drafting.packing import attention_within, positions_within
from slipstream.drafting.recipe import at_least_one
from slipstream.drafting.token_loss import Logits, all_logits, token_terms
from slipstream.methods.eagle.head import EagleHead
from slipstream.target.target import Target


@dataclass(frozen=True, slots=True)
class Losses:
    """Losses of a batch; one entry a step ahead, the first being the paper's."""

    feature: Tensor  # [steps] SmoothL1 between predicted and true features
    token: Tensor  # [steps] cross-entropy between the target's distribution and the head's, nats
    num_rows: Tensor  # [steps] rows counted
    num_hits: Tensor  # [tops, steps] rows whose first choice by the target is among the head's `tops[i]` best
    num_starts: Tensor  # [steps] rows of a step whose path counts from its first token on
    num_paths: Tensor  # [tops, steps] those among them where every token of the path is a hit

    @property
    def num_correct(self) -> Tensor:
        """[steps] rows whose most probable token is the target's."""
        return self.num_hits[0]


class RolloutLoss(nn.Module):
    """The head with its loss: one module, so that data-parallel training sees one forward pass a step."""

    def __init__(self, head: EagleHead, target: Target) -> None:
        super().__init__()
        self.head = head
        self._target = target  # not a module: its weights are neither trained nor saved with the head

    def forward(
        self,
        ids: Tensor,  # [n]
        features: Tensor,  # [n, h] the target's
        answer: Tensor,  # [n] bool
        lengths: Sequence[int],  # of the texts
        steps: int = 1,
        noise: Tensor | None = None,  # [n, h], added to the features that are fed in the first step
        logits: Logits | None = None,
        tops: Sequence[int] = (1,),
        divisor: Callable[[Tensor], Tensor] = at_least_one,
    ) -> Losses:
        """Losses of `steps` steps ahead. logits: of which tokens, None for all. tops: see `token_terms`. divisor: the
        batch's.
        """
        rows = Rows.of(answer, lengths, steps)
        predicted = self._rollout(ids, features, rows, steps, noise)  # [steps, tail, h]
        places, positions = rows.places[rows.tail], rows.positions[rows.tail]  # [tail]
        chosen = answer[places + 2].nonzero()[:, 0]  # [m]
        counted = positions[chosen] >= torch.arange(steps, device=ids.device)[:, None]  # [steps, m]
        true = features[places[chosen] + 1]  # [m, h]
        found = predicted[:, chosen]  # [steps, m, h]
        exact = torch.promote_types(found.dtype, torch.float32)
        away = nn.functional.smooth_l1_loss(found.to(exact), true.to(exact).expand_as(found), reduction="none")
        feature = (away.mean(dim=-1) * counted).sum(dim=-1)  # [steps]
        terms = token_terms(found, true, counted, logits or all_logits(self._target), tops)
        num_rows = counted.sum(dim=1)
        hit, start = (by_row(one, chosen, len(places)) for one in (terms.hits, counted[None]))
        divided_by = divisor(num_rows)
        return Losses(
            feature / divided_by,
            terms.loss / divided_by,
            num_rows,
            terms.hits.sum(dim=-1),
            along_paths(start).sum(dim=-1)[0],
            along_paths(hit).sum(dim=-1),
        )

    def _rollout(self, ids: Tensor, features: Tensor, rows: Rows, steps: int, noise: Tensor | None) -> Tensor:
        """Predicted features of the rows of the tail, [steps, tail, h]."""
        dtype = self.head.dtype
        with torch.no_grad():
            embeddings = self._target.model.get_input_embeddings()(ids[None, rows.places + 1]).to(dtype)
        true = features[None, rows.places].to(dtype)  # [1, r, h]
        fed = true if noise is None else true + noise[None, rows.places]
        positions = rows.positions[None]
        cache = DynamicCache()
        outputs: list[Tensor] = []
        with attention_within(self.head.config, rows.lengths, rows.tails):
            for step in range(steps):
                predicted = self.head(embeddings, fed, positions, None, cache)  # [1, r or tail, h]
                if step == 0:
                    predicted, fed = predicted[:, rows.tail], fed[:, rows.tail]
                    embeddings, positions = embeddings[:, rows.tail], positions[:, rows.tail]
                outputs.append(predicted[0])
                fed = torch.where(rows.opens[None, :, None], fed, predicted.roll(1, dims=1).to(fed.dtype))
        return torch.stack(outputs)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of all texts one after another, and those among them that later steps need.

    Row t predicts token t + 2; what follows the last answer teaches nothing. Of the first step all rows before matter,
    which later ones attend to; of the others only those near rows that count, the tail of each text.
    """

    places: Tensor  # [r] in the batch
    positions: Tensor  # [r] in the text
    lengths: list[int]  # of the texts
    tail: Tensor  # [tail] which of the rows
    tails: list[int]  # of the texts
    opens: Tensor  # [tail] bool: the first of its text; what is fed to it does not matter but at position 0

    @classmethod
    def of(cls, answer: Tensor, lengths: Sequence[int], steps: int) -> Rows:
        marks: list[bool] = answer.tolist()
        places: list[int] = []
        tail: list[int] = []
        counts: list[int] = []
        tails: list[int] = []
        first = 0
        for length in lengths:
            answered = [place for place in range(2, length) if marks[first + place]]
            count = answered[-1] - 1 if answered else 0
            start = max(0, answered[0] - 2 - (steps - 1)) if answered else 0
            tail += range(len(places) + start, len(places) + count)
            places += range(first, first + count)
            counts.append(count)
            tails.append(count - start)
            first += length
        device = answer.device
        chosen = torch.tensor(tail, dtype=torch.int64, device=device)
        return cls(
            torch.tensor(places, dtype=torch.int64, device=device),
            positions_within(counts, device),
            counts,
            chosen,
            tails,
            positions_within(tails, device) == 0,
        )


def by_row(values: Tensor, chosen: Tensor, num_rows: int) -> Tensor:
    """[.., m] bool of chosen rows as [.., r], false elsewhere."""
    spread = values.new_zeros(*values.shape[:-1], num_rows)
    spread[..., chosen] = values
    return spread


def along_paths(hits: Tensor) -> Tensor:
    """[tops, steps, r]: whether the path that ends in a row of a step was hit at all its steps. hits: the same shape.

    The row before t in step j - 1 stands at t - 1. Where a text begins, or its tail, no path of more steps ends.
    """
    alive = [hits[:, 0]]
    for step in range(1, hits.shape[1]):
        alive.append(alive[-1].roll(1, dims=-1) & hits[:, step])
    return torch.stack(alive, dim=1)
