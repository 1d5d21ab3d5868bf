"""The loss of an EAGLE head (EAGLE, arXiv 2401.15077, section 3.2), for one step or for several steps ahead.

Row t of a sequence is fed the feature of token t and the embedding of token t + 1, predicts the feature of t + 1 and
through the LM head the distribution of token t + 2. Rows whose token t + 2 is part of an answer count.

While drafting, the head sees features of its own making from the second level on. With steps_ahead > 1 it is trained
so (HASS, arXiv 2408.15766; EAGLE-3's training-time test): in step j the row of t is fed what step j - 1 predicted for t
and attends, as at the j-th level of a draft chain, to true rows up to t - j, to the rows of the steps between along its
own path, and to itself (steps are counted from 0 here). The tensors of the head stay the published ones.

Rows of a batch are cut behind their last answer, and those of similar length share a pass of the head.

Shapes: b batch, n tokens, h hidden size, r = n - 1 rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from slipstream.drafting.parts import in_parts, passes
from slipstream.methods.eagle.head import EagleHead
from slipstream.target.target import Target


@dataclass(frozen=True, slots=True)
class Losses:
    """Losses of a batch; one entry a step ahead, the first being the paper's."""

    feature: Tensor  # [steps] SmoothL1 between predicted and true features
    token: Tensor  # [steps] cross-entropy between the target's distribution and the head's, nats
    num_correct: Tensor  # [steps] rows whose most probable token is the target's
    num_rows: Tensor  # [steps] rows counted


class RolloutLoss(nn.Module):
    """The head with its loss: one module, so that data-parallel training sees one forward pass a step."""

    def __init__(self, head: EagleHead, target: Target) -> None:
        super().__init__()
        self.head = head
        self._target = target  # not a module: its weights are neither trained nor saved with the head

    def forward(
        self, ids: Tensor, features: Tensor, answer: Tensor, steps: int = 1, noise: Tensor | None = None
    ) -> Losses:
        """Losses of `steps` steps ahead.

        ids: [b, n]; features: [b, n, h] the target's; answer: [b, n] bool; noise: [b, n, h] added to the features that
        are fed in the first step.
        """
        sums: tuple[Tensor, ...] | None = None
        ends = _ends(answer)
        for rows in passes(ends):
            part = slice(ends[rows[0]])
            fed = None if noise is None else noise[rows, part]
            found = self._rollout(ids[rows, part], features[rows, part], answer[rows, part], steps, fed)
            sums = found if sums is None else tuple(a + b for a, b in zip(sums, found, strict=True))
        assert sums is not None
        feature, token, num_correct, num_rows = sums
        at_least_one = num_rows.clamp(min=1)
        return Losses(feature / (at_least_one * features.shape[-1]), token / at_least_one, num_correct, num_rows)

    def _rollout(
        self, ids: Tensor, features: Tensor, answer: Tensor, steps: int, noise: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Summed losses, right first choices, and rows counted, each [steps]."""
        with torch.no_grad():
            embeddings = self._target.model.get_input_embeddings()(ids[:, 1:]).to(self.head.dtype)  # [b, r, e]
        features = features.to(self.head.dtype)
        true = features[:, 1:]  # [b, r, h]
        fed = features[:, :-1]
        if noise is not None:
            fed = fed + noise[:, :-1]
        counted = torch.nn.functional.pad(answer[:, 2:], (0, 1))  # [b, r]; what follows the last token is unknown
        positions = torch.arange(true.shape[1], device=ids.device)  # [r]
        cache = DynamicCache()
        parts = []
        for step in range(steps):
            mask = rollout_mask(true.shape[1], step, ids.device)[None, None]  # [1, 1, r, (step + 1) * r]
            predicted = self.head(embeddings, fed, positions[None].expand(ids.shape[0], -1), mask, cache)
            parts.append(self._sums(predicted, true, counted & (positions >= step)))
            fed = torch.cat((fed[:, :1], predicted[:, :-1]), dim=1)
        return tuple(torch.stack(values) for values in zip(*parts, strict=True))

    def _sums(self, predicted: Tensor, true: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        predicted, true = predicted[counted], true[counted]  # [m, h]
        feature = torch.nn.functional.smooth_l1_loss(predicted.float(), true.float(), reduction="sum")
        token, num_correct = in_parts(self._token_terms, (predicted, true), self._target.vocab_size)
        return feature, token, num_correct, counted.sum()

    def _token_terms(self, predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy of rows [m, h], and the number of those whose first choice is right."""
        dtype = self._target.dtype
        with torch.no_grad():
            p = self._target.head(true[None].to(dtype))[0].float().softmax(dim=-1)  # [m, vocab]
        log_q = self._target.head(predicted[None].to(dtype))[0].float().log_softmax(dim=-1)
        return -(p * log_q).sum(), (p.argmax(dim=-1) == log_q.argmax(dim=-1)).sum()


def _ends(answer: Tensor) -> list[int]:
    """How many tokens of each row [b, n] matter, at least two: what follows the last answer teaches nothing."""
    places = torch.arange(1, answer.shape[1] + 1, device=answer.device)
    ends: list[int] = (answer * places).amax(dim=1).clamp(min=2).tolist()
    return ends


def rollout_mask(num_rows: int, step: int, device: torch.device) -> Tensor:
    """[r, (step + 1) * r] bool: which rows of steps 0 .. step each row of `step` sees.

    Of step 0 (true features) rows up to t - step; of step i > 0 row t - (step - i) only, the own path.
    """
    t = torch.arange(num_rows, device=device)
    distance = t[:, None] - t[None, :]  # [r, r], how far back a row lies
    return torch.cat([distance >= step, *(distance == step - i for i in range(1, step + 1))], dim=1)
