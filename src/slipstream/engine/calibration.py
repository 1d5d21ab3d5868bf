"""Calibration of a drafter's confidence: which scale explains the target's choices best, greedy and sampled.

Chains are drafted along generations. At every node of a chain, kept or not, the target's own choice after that node is
known, so each gives a pair: the drafter's scores (its logits, or log q + g where noise is known) and what the target
took. Choices outside of a drafter's vocabulary have no score, whatever the scale, and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slipstream.core.confidence import ConfidenceScale, negative_log_likelihood
from slipstream.core.logits import ProcessingSettings
from slipstream.core.rules import Candidates, DecodingRule
from slipstream.core.sampling import SamplingSettings
from slipstream.core.tree import DraftTree
from slipstream.drafting.base import Drafter, Drafting, ForwardingDrafting, Generation, Observed
from slipstream.engine.engine import Engine
from slipstream.engine.sequence import Request
from slipstream.errors import InputError
from slipstream.target.target import Target

TEMPERATURES = (0.0, 0.5, 0.75, 1.0, 1.5)
SCALES = torch.logspace(-1.5, 1.0, 61, dtype=torch.float64)
"""The scales that are tried, from 0.03 to 10."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was found."""

    scale: ConfidenceScale
    best: dict[float, float]
    """The scale of least surprise by temperature."""
    surprise: dict[float, tuple[float, float]]
    """Nats per choice by temperature: under the fitted scale, and under the default one."""
    num_choices: int
    """Choices of the target that were looked at, all temperatures together."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what the artefact records of its calibration."""
        return {
            "num_choices": self.num_choices,
            "best_scale": {f"{t:g}": round(s, 4) for t, s in self.best.items()},
            "nats_per_choice": {f"{t:g}": [round(x, 4) for x in pair] for t, pair in self.surprise.items()},
        }


def calibrate(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    temperatures: Sequence[float] = TEMPERATURES,
    seed: int = 0,
) -> Calibration:
    """Fit the confidence scale of a drafter that drafts chains through `rule.children` (a dynamic tree of width 1).

    prompts: token ids. Raises InputError if nothing was drafted.
    """
    watched = _Watched(drafter)
    engine = Engine(target, watched, keep=0)
    totals: dict[float, Tensor] = {}  # [scales] mean surprise in nats
    num_choices = 0
    for temperature in temperatures:
        watched.begin()
        for number, prompt in enumerate(prompts):
            sampling = SamplingSettings(seed=seed + number)
            request = Request(
                prompt_ids=prompt,
                processing=_processing(target, len(prompt), max_new_tokens, temperature),
                sampling=sampling,
            )
            for _ in engine.generate(request):
                pass
        if watched.count == 0:
            raise InputError(f"nothing was drafted on {len(prompts)} prompts; give longer answers or other prompts")
        totals[temperature] = watched.total / watched.count
        num_choices += watched.count
    best = {t: float(SCALES[total.argmin()]) for t, total in totals.items()}
    scale = fit(totals)
    surprise = {t: (_near(total, scale.at(t)), _near(total, ConfidenceScale().at(t))) for t, total in totals.items()}
    return Calibration(scale=scale, best=best, surprise=surprise, num_choices=num_choices)


def fit(totals: Mapping[float, Tensor]) -> ConfidenceScale:
    """The scales of least surprise, the default where nothing surprises less.

    totals: by temperature, mean nats per choice under each of `SCALES`. The curve of the sampled temperatures is the
    one with the smallest sum over them, of all whose floor and slope are among `SCALES`.
    """
    default = ConfidenceScale()
    greedy = totals.get(0.0)
    ours = default.greedy if greedy is None else float(SCALES[greedy.argmin()])
    if greedy is not None and _near(greedy, default.greedy) <= _near(greedy, ours):
        ours = default.greedy
    sampled = {t: total for t, total in totals.items() if t > 0}
    floor, slope = SCALES[:, None], SCALES[None, :]
    nats = sum((total[_place(torch.hypot(floor, slope / t))] for t, total in sampled.items()), torch.zeros(()))
    if not sampled or float(nats.min()) >= sum(_near(total, default.at(t)) for t, total in sampled.items()):
        return ConfidenceScale(greedy=ours)
    row, column = divmod(int(nats.argmin()), len(SCALES))
    return ConfidenceScale(floor=float(SCALES[row]), slope=float(SCALES[column]), greedy=ours)


def _place(scale: Tensor) -> Tensor:
    """Index of the tried scale that is nearest."""
    step = math.log(SCALES[-1] / SCALES[0]) / (len(SCALES) - 1)
    return ((scale / SCALES[0]).log() / step).round().long().clamp(0, len(SCALES) - 1)


def _near(total: Tensor, scale: float) -> float:
    """Nats under the tried scale that is nearest."""
    return float(total[_place(torch.tensor(scale, dtype=torch.float64))])


def _processing(target: Target, prompt_length: int, max_new_tokens: int, temperature: float) -> ProcessingSettings:
    return ProcessingSettings(
        prompt_length=prompt_length,
        max_length=prompt_length + max_new_tokens,
        eos_token_ids=target.eos_token_ids,
        temperature=temperature,
    )


class _Watched(Drafter):
    """A drafter whose chains are compared with the target's choices."""

    name = "watched"

    def __init__(self, inner: Drafter) -> None:
        self.inner, self.features, self.confidence = inner, inner.features, inner.confidence
        self.begin()

    def begin(self) -> None:
        """Forget what was seen."""
        self.total = torch.zeros(len(SCALES), dtype=torch.float64)  # [scales] nats
        self.count = 0

    def count_choices(self, scores: Tensor, choice: Tensor) -> None:
        """Take in choices of the target: scores [n, columns], choice [n], the column that was taken."""
        self.total += negative_log_likelihood(scores.double(), choice, SCALES).sum(dim=0).cpu()
        self.count += choice.shape[0]

    def start(self, generation: Generation) -> Drafting:
        generation.rule = recorder = _Recorder(generation.rule)
        return _WatchedDrafting(self, self.inner.start(generation), recorder)

    @property
    def draft_slots(self) -> int:
        return self.inner.draft_slots


class _Recorder(DecodingRule):
    """The drafter's side of a rule, with what it was asked kept. The engine holds the rule itself."""

    def __init__(self, inner: DecodingRule) -> None:
        self.inner, self.temperature = inner, inner.temperature
        self.asked: list[Tensor] = []  # scores [1, columns] of each depth
        self.ids: Tensor | None = None  # [columns], the target's id of each; None: all

    def choose(self, logits: Tensor, tree: DraftTree) -> Tensor:
        return self.inner.choose(logits, tree)

    def children(self, logits: Tensor, depth: int, k: int, ids: Tensor | None = None) -> Candidates:
        if logits.shape[0] != 1 or k != 1:
            raise InputError(f"calibration wants chains, but {logits.shape[0]} nodes ask for {k} children each")
        self.asked.append(self.scores(logits, depth, ids))
        self.ids = ids
        return self.inner.children(logits, depth, k, ids)

    def scores(self, logits: Tensor, depth: int, ids: Tensor | None = None) -> Tensor:
        return self.inner.scores(logits, depth, ids)

    def pairs(self, choice: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [m, columns] of the nodes after which a column was chosen, and which [m]. choice: [n], from the root.

        No pair is made beyond where a tree was cut.
        """
        n = min(len(self.asked), choice.shape[0])
        scores, choice = torch.cat(self.asked)[:n], choice[:n]
        if self.ids is None:
            return scores, choice
        row, column = (choice[:, None] == self.ids).nonzero(as_tuple=True)
        return scores[row], column


class _WatchedDrafting(ForwardingDrafting):
    def __init__(self, watched: _Watched, inner: Drafting, recorder: _Recorder) -> None:
        super().__init__(inner)
        self._watched, self._recorder = watched, recorder

    def propose(self) -> DraftTree:
        self._recorder.asked.clear()
        return super().propose()

    def observe(self, observed: Observed) -> None:
        if observed.choice is not None and self._recorder.asked:
            self._watched.count_choices(*self._recorder.pairs(observed.choice))
        super().observe(observed)
