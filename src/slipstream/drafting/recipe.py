"""What a method brings to a training run (`run.py`): the weights with their loss, how they are optimised and saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from slipstream.drafting.packing import padded
from slipstream.target.features import Features


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One training sequence."""

    token_ids: tuple[int, ...]
    answer: tuple[bool, ...]
    """Whether each token is (part of) an answer; the loss is taken on these only."""


def at_least_one(count: Tensor) -> Tensor:
    """What to divide by: `count`, and where there is nothing to count, 1."""
    return torch.where(count > 0, count, torch.ones_like(count))


@dataclass(frozen=True, slots=True)
class Batch:
    """A process's share of the dialogues of one step, one after another, on the target's device."""

    ids: Tensor  # [n] int64
    answer: Tensor  # [n] bool, whether a token belongs to an answer
    lengths: tuple[int, ...]
    """Tokens of each dialogue."""
    features: Tensor | None  # [n, width] of the target, as the recipe's `features` asks; None where it needs none
    seed: int
    """Of the step: what is drawn from it is the same in all processes, and in a run that was interrupted."""
    text_seeds: tuple[int, ...]
    """Of each dialogue in this step: what is drawn from them is the same whichever process has the dialogue. The global
    generators are seeded with the first of them, for dropout."""
    step_answers: Tensor  # [m] tokens that the answers of the whole step hold
    divisor: Callable[[Tensor], Tensor] = at_least_one
    """Rows that count in this share, or their weight, as what sums over them are divided by: gradients, averaged over
    processes, are then those of the mean over the whole step. To be called equally often in all processes."""
    idle: bool = False
    """Whether the step has no dialogue for this process: it has one of another's then, and what it finds counts for
    nothing."""

    def padded(self) -> PaddedBatch:
        """The same, a dialogue a row."""
        features = None if self.features is None else padded(self.features, self.lengths)
        return PaddedBatch(padded(self.ids, self.lengths), padded(self.answer, self.lengths), features)


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Dialogues padded on the right, with zeros."""

    ids: Tensor  # [b, n] int64
    answer: Tensor  # [b, n] bool, false in the padding
    features: Tensor | None  # [b, n, width]


@dataclass(frozen=True, slots=True)
class Score:
    """First choices compared with what was to be predicted, by depth."""

    num_correct: Tensor  # [depths]
    num_rows: Tensor  # [depths]
    paths: Paths | None = None
    """Of a recipe whose depths follow each other on one path."""


@dataclass(frozen=True, slots=True)
class Paths:
    """How far paths of drafted tokens are right from their first token on, by depth."""

    tops: tuple[int, ...]
    """Children a node has: 1 is a chain."""
    num_starts: Tensor  # [depths] paths that reach a depth
    num_right: Tensor  # [tops, depths] those where the target's choice is among the children at every depth

    def shares(self) -> dict[int, tuple[float, ...]]:
        """By children a node has: the share of paths that are right down to each depth."""
        shares = self.num_right / self.num_starts.clamp(min=1)  # [tops, depths]
        return dict(zip(self.tops, map(tuple, shares.tolist()), strict=True))

    def tau(self) -> dict[str, float]:
        """Estimates of tau under greedy decoding, for chains and full trees as deep as was measured.

        1 + the sum over depths of the share of right paths. The path is the text's: where the target did not write the
        text greedily, its choices are those after the text's tokens. A tree of `top 4` has four children at every node
        down to the last level, so it is far larger than trees that are drafted, and its tau an upper bound for trees of
        no more children.
        """
        depth = self.num_right.shape[1]
        names = (f"chain of {depth}" if top == 1 else f"top {top} to depth {depth}" for top in self.tops)
        return dict(zip(names, (1 + sum(shares) for shares in self.shares().values()), strict=True))


@dataclass(frozen=True, slots=True)
class StepLosses:
    """What a batch cost."""

    total: Tensor  # [] what is minimised
    parts: Mapping[str, Tensor]  # [] each: for reports, by name, such as token_loss
    score: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """The optimizer's betas and decay, its schedule and the clipping of gradients."""

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    schedule: Literal["linear", "cosine"] = "linear"
    """How the rate falls after the warm-up."""
    final_share: float = 0.0
    """What it falls to, as a share of the peak (cosine)."""
    clip_value: float | None = None
    """Gradients are clipped to this absolute value, element by element."""
    clip_norm: float | None = None
    """Gradients are scaled down to this norm, all together."""

    def rate(self, step: int, num_steps: int, warmup: int) -> float:
        """Share of the peak learning rate in `step` (0, 1, ..) of `num_steps`."""
        up = (step + 1) / max(1, warmup)
        down = (num_steps - step) / max(1, num_steps - warmup)
        if self.schedule == "cosine" and down < 1:
            down = self.final_share + (1 - self.final_share) * (1 - math.cos(math.pi * down)) / 2
        return min(1.0, up, down)


class Recipe(Protocol):
    """How one kind of drafter is trained on a target's dialogues."""

    module: nn.Module
    """The trained weights with their loss: data-parallel training sees one forward pass of it a step. It must not hold
    the target as a sub-module, whose weights would be trained and saved."""
    optimisation: Optimisation
    features: Features
    """What it reads of the target's passes over the training text; nothing where it asks for nothing."""
    identity: Mapping[str, Any]
    """JSON values, besides the settings, that must be equal for a run to be continued."""

    def losses(self, module: nn.Module, batch: Batch) -> StepLosses:
        """The losses of a batch. module: `self.module` in training mode, perhaps wrapped for several devices."""

    def measure(self, module: nn.Module, batch: Batch) -> Score:
        """First choices on held-out dialogues, by depth. module: `self.module` in evaluation mode; no gradients."""

    def save(self, out: Path, steps: int) -> None:
        """Write the artefact, as published ones are laid out. steps: optimizer steps that went into it."""


@dataclass(frozen=True, slots=True)
class Report:
    """Progress after one optimizer step."""

    step: int
    num_steps: int
    elapsed_s: float
    """Training time so far, over all resumed parts."""
    learning_rate: float
    loss: float
    """Weighted sum of all losses."""
    parts: Mapping[str, float]
    """Losses by name, each ending in _loss."""
    accuracy: tuple[float, ...]
    """Of this batch: share of rows whose first choice is right, by depth."""
    held_out: tuple[float, ...] = ()
    """The same on the held-out dialogues, when measured."""
    tau: Mapping[str, float] = field(default_factory=dict)
    """Estimates of tau on the held-out dialogues, by the draft they are for, when measured."""
    right: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    """What they rest on (`Paths.shares`)."""
    num_tokens: int = 0
    """Tokens of all dialogues trained on so far, counted anew in every epoch, prompts included."""
    tokens_per_s: float = 0.0
    """Of late, measurements left out."""

    @property
    def left_s(self) -> float:
        """Estimate of the time that is left."""
        return self.elapsed_s / self.step * (self.num_steps - self.step)

    def entry(self) -> dict[str, Any]:
        """The report as it stands in the run's log."""
        return {
            "step": self.step,
            "num_steps": self.num_steps,
            "num_tokens": self.num_tokens,
            "elapsed_s": round(self.elapsed_s, 1),
            "tokens_per_s": round(self.tokens_per_s, 1),
            "learning_rate": self.learning_rate,
            "loss": self.loss,
            **self.parts,
            "accuracy": self.accuracy,
            "held_out": self.held_out,
            "tau_estimates": dict(self.tau),
        }
