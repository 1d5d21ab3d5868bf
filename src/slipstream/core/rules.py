"""Decoding rules: how the target chooses its next token, and how a drafter proposes to meet that choice.

One rule object serves one generation. The engine calls `choose` on the target's processed logits; drafters call
`children` (the k best candidates of a node) or `draw` (one drafted token of a chain) on their own logits. Both sides
of a coupled rule read the same noise: that is what makes a drafter agree with a *sampled* target.

A drafter's vocabulary may be a part of the target's. Its logits then have a column for each of its tokens, `ids` says
which token of the target a column is ([columns] int64), and tokens and distributions are returned by column.

Positions: the cycle's root stands at absolute position `length`; the next token chosen at depth d takes position
length + d + 1, so children of depth d take position length + d.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from slipstream.core.confidence import ConfidenceScale, log_confidence
from slipstream.core.largest import argmax, topk
from slipstream.core.logits import ProcessingSettings, warp
from slipstream.core.sampling import GumbelNoise, NoiseRows, SamplingSettings, gumbel_rows
from slipstream.core.tree import DraftTree
from slipstream.core.verify import choose_chain, choose_coupled, choose_greedy, choose_one_hot, draw, or_no_token

_UNCALIBRATED = ConfidenceScale()


class Candidates(NamedTuple):
    """Proposed children of several nodes, best first."""

    tokens: Tensor  # [rows, k] int64
    log_confidence: Tensor  # [rows, k] float32: log of the estimated probability that the target takes the token


class Drawn(NamedTuple):
    """One drafted token for a chain."""

    token: Tensor  # [1] int64
    log_confidence: Tensor  # [1] float32
    q: Tensor | None  # [1, columns] the distribution it was sampled from; None: not sampled


class DecodingRule(ABC):
    """How tokens are chosen in one generation."""

    temperature: float = 0.0
    """Of the sampling; 0: greedy."""

    key: Hashable = None
    """Rules of one key choose alike from the same logits and the same `inputs`; None: they hang on more."""

    def begin(self, length: int) -> None:
        """A cycle starts whose root stands at absolute position `length`."""
        self.length = length

    def inputs(self, depth: int) -> tuple[Tensor, ...]:
        """Tensors that choices down to `depth` levels below the root hang on in this cycle, beside the logits."""
        return ()

    @contextmanager
    def reading(self, inputs: Sequence[Tensor]) -> Iterator[None]:
        """Choices go by these tensors, which `inputs` gave or whose numbers it gave."""
        yield

    @abstractmethod
    def choose(self, logits: Tensor, tree: DraftTree) -> Tensor:
        """The target's next token at the root and every node. logits: [n + 1, vocab], processed. Returns [n + 1].

        NO_TOKEN where a row has no token left.
        """

    @abstractmethod
    def scores(self, logits: Tensor, depth: int, ids: Tensor | None = None) -> Tensor:
        """[rows, columns]: what candidates to stand at `depth` (1, 2, ...) are ordered by."""

    @abstractmethod
    def children(self, logits: Tensor, depth: int, k: int, ids: Tensor | None = None) -> Candidates:
        """The k best to stand at `depth` (1, 2, ...), after each row of a drafter's logits [rows, columns]."""

    def draw(self, logits: Tensor, depth: int, ids: Tensor | None = None) -> Drawn:
        """One token for a chain, at `depth`. logits: [1, columns]."""
        best = self.children(logits, depth, 1, ids)
        return Drawn(best.tokens[0], best.log_confidence[0], None)

    def guess(self, logits: Tensor, depth: int) -> Tensor:
        """The likeliest next token of each row of logits [rows, vocab]; row i's is to stand at `depth` + i. [rows]."""
        return argmax(logits)


class GreedyRule(DecodingRule):
    """The most probable token."""

    def __init__(self, confidence: ConfidenceScale = _UNCALIBRATED) -> None:
        """confidence: how far a drafter's probabilities may be believed."""
        self._scale = confidence.greedy
        self.key = ("greedy", self._scale)

    def choose(self, logits: Tensor, tree: DraftTree) -> Tensor:
        return or_no_token(choose_greedy(logits), logits)

    def scores(self, logits: Tensor, depth: int, ids: Tensor | None = None) -> Tensor:
        return logits.float()

    def children(self, logits: Tensor, depth: int, k: int, ids: Tensor | None = None) -> Candidates:
        return surest(self.scores(logits, depth, ids), self._scale, k)


class CoupledRule(DecodingRule):
    """Gumbel-max with noise fixed by seed and position: the tokens of plain sampling, whatever is drafted."""

    def __init__(
        self,
        processing: ProcessingSettings,
        sampling: SamplingSettings,
        vocab_size: int,
        device: torch.device,
        confidence: ConfidenceScale = _UNCALIBRATED,
        noise: NoiseRows = gumbel_rows,
    ) -> None:
        """confidence: how sure the drafter may be under known noise. noise: computes it."""
        self._processing, self.temperature = processing, processing.temperature
        self._noise = GumbelNoise(sampling.seed, sampling.stream, vocab_size, device, make=noise)
        self._scale = confidence.at(processing.temperature)
        self.key = ("coupled", self._scale, replace(processing, prompt_length=0, max_length=0))
        self._given: Tensor | None = None  # the noise that is gone by instead

    def inputs(self, depth: int) -> tuple[Tensor, ...]:
        return (self._rows(depth + 1),)

    @contextmanager
    def reading(self, inputs: Sequence[Tensor]) -> Iterator[None]:
        (self._given,) = inputs
        try:
            yield
        finally:
            self._given = None

    def _rows(self, count: int) -> Tensor:
        """The noise of the positions after the root's, [count, vocab]."""
        return self._noise.rows(self.length + 1, count) if self._given is None else self._given[:count]

    def choose(self, logits: Tensor, tree: DraftTree) -> Tensor:
        noise = self._rows(tree.max_depth + 1)  # [max_depth + 1, vocab]
        rows = torch.cat((tree.depth.new_zeros(1), tree.depth)) if tree.num_nodes > 0 else None  # [n + 1]
        return or_no_token(choose_coupled(logits, noise, rows), logits)

    def children(self, logits: Tensor, depth: int, k: int, ids: Tensor | None = None) -> Candidates:
        """Gumbel-top-k: the tokens with the largest log q + g, q under the target's temperature and truncation.

        Under known noise the target takes the largest log p + g. How sure the drafter may be of its own order is
        softmax((log q + g) / s), where s grows with the distance between log p and log q, that is with 1 / temperature.
        """
        return surest(self.scores(logits, depth, ids), self._scale, k)

    def scores(self, logits: Tensor, depth: int, ids: Tensor | None = None) -> Tensor:
        """The perturbed log q + g but for a constant of each row, which changes neither order nor confidence.

        A drafter needs no more than float32 for it, unless the models are in float64.
        """
        q = warp_for(self._processing, logits)
        noise = self._rows(depth)[depth - 1]  # [vocab]
        return q + (noise if ids is None else noise[ids]).to(q.dtype)

    def guess(self, logits: Tensor, depth: int) -> Tensor:
        noise = self._rows(depth - 1 + logits.shape[0])[depth - 1 :]  # [rows, vocab]
        return choose_coupled(warp_for(self._processing, logits), noise)


class RejectionRule(DecodingRule):
    """The published rules: Leviathan et al. for sampled chains, EAGLE-2's one-hot rule for deterministic children."""

    def __init__(self, processing: ProcessingSettings, sampling: SamplingSettings, device: torch.device) -> None:
        self._processing, self._device = processing, device
        self.temperature = processing.temperature
        self._random = torch.Generator().manual_seed((sampling.seed + sampling.stream * 0x9E3779B97F4A7C15) % 2**64)

    def choose(self, logits: Tensor, tree: DraftTree) -> Tensor:
        p = logits.double().softmax(dim=-1)
        u_accept, u_next = self._uniform(tree.num_nodes), self._uniform(tree.num_nodes + 1)
        if tree.q is not None:
            choice = choose_chain(tree.tokens, tree.q, p, u_accept, u_next)
        else:
            choice = choose_one_hot(tree, p, u_accept, u_next)
        return or_no_token(choice, logits)

    def scores(self, logits: Tensor, depth: int, ids: Tensor | None = None) -> Tensor:
        return logits.float()

    def children(self, logits: Tensor, depth: int, k: int, ids: Tensor | None = None) -> Candidates:
        """The top-k of the drafter's own distribution, as EAGLE-2 does at every temperature."""
        return surest(self.scores(logits, depth, ids), 1.0, k)

    def draw(self, logits: Tensor, depth: int, ids: Tensor | None = None) -> Drawn:
        q = warp_for(self._processing, logits).double().softmax(dim=-1)  # [1, vocab]
        token = draw(q, self._uniform(1))  # [1]
        return Drawn(token, q.gather(1, token[:, None]).squeeze(1).log().float(), q)

    def _uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self._random, dtype=torch.float64).to(self._device)


def surest(scores: Tensor, scale: float, k: int) -> Candidates:
    """The k best of each row by scores [rows, columns], and how sure the drafter is of them at this scale."""
    best, tokens = topk(scores, k)
    return Candidates(tokens, log_confidence(scores, scale, best).float())


def warp_for(processing: ProcessingSettings, logits: Tensor) -> Tensor:
    """A drafter's logits under the target's temperature and truncation. Penalties of the text so far are left out."""
    return warp(
        logits.to(torch.promote_types(logits.dtype, torch.float32)),
        temperature=processing.temperature,
        top_k=processing.top_k,
        top_p=processing.top_p,
        min_p=processing.min_p,
    )


def make_rule(
    processing: ProcessingSettings,
    sampling: SamplingSettings,
    vocab_size: int,
    device: torch.device,
    confidence: ConfidenceScale = _UNCALIBRATED,
    noise: NoiseRows = gumbel_rows,
) -> DecodingRule:
    """The rule that a generation's settings ask for. confidence: the drafter's. noise: makes a coupled rule's."""
    if processing.is_greedy:
        return GreedyRule(confidence)
    if sampling.verification == "rejection":
        return RejectionRule(processing, sampling, device)
    return CoupledRule(processing, sampling, vocab_size, device, confidence, noise)
