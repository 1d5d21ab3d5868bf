"""How often a skipping draft says what the target said: one teacher-forced pass over the target's own answers.

While drafting, the row of token x_{t+j} attends in the kept layers to the target's exact KV of x_0 .. x_{t-1} and to
the draft's own KV of x_t .. x_{t+j}, where x_t is the root (Draft & Verify, arXiv 2309.08168, section 3.2). So the
answers' exact KV is computed once and kept; a trial runs, in slots behind it, blocks of rows t, t+1, ..., t+depth-1,
each row seeing the exact KV before t and its own block so far. Along the target's own text every such row is exactly
what drafting from root t would compute.

Blocks start at every `stride`-th token of an answer. With a stride of 1 each possible cycle has a block of its own; a
larger stride is cheaper, and a root without a block borrows rows of the nearest one: the same tokens at the same
positions, with the border between exact and drafted KV a few tokens off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.core.rules import DecodingRule, GreedyRule
from slipstream.skipping.plan import SkipPlan
from slipstream.target.cache import KVCache
from slipstream.target.target import Target

_PACK_SLOTS = {"cpu": 1}
_DEVICE_PACK_SLOTS = 4096
"""Exact tokens that share a pass. On a CPU a pass for each answer is faster: no row attends to slots of another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An answer of the target, to be agreed with."""

    token_ids: tuple[int, ...]
    """Prompt and answer."""
    prompt_length: int
    """Tokens of the prompt, at least 1; at least one token of an answer follows."""
    seed: int = 0
    """Seed that the answer was sampled with; 0 when it was decoded greedily."""

    @property
    def num_starts(self) -> int:
        """Cycles that could be: one for every answered token."""
        return len(self.token_ids) - self.prompt_length


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the draft would say at each depth below each possible root, along the target's own text.

    Roots of all samples one after the other, in order; a depth beyond the end of its answer counts as missed.
    """

    rank: Tensor  # [roots, depth] int64, place of the target's token among the draft's k best; k: not among them
    log_confidence: Tensor  # [roots, depth, k] float32 of the draft's k best, best first
    room: Tensor  # [roots] int64 answered tokens from the root on, at least 1


class Answers:
    """The target's answers with their exact KV, ready to be agreed with by any skip set."""

    def __init__(
        self,
        target: Target,
        samples: Sequence[Sample],
        make_rule: Callable[[Sample], DecodingRule],
        *,
        depth: int,
        stride: int = 1,
    ) -> None:
        """depth: tokens drafted at most; stride: 1 .. depth. make_rule: how a sample's tokens were chosen."""
        assert samples
        assert 1 <= stride <= depth
        self.target, self.samples, self.depth = target, tuple(samples), depth
        self.segments = [sample.num_starts for sample in samples]
        """Roots of each sample."""
        self._packs = [_Pack(target, pack, make_rule, depth, stride) for pack in _packed(target, samples)]
        firsts = torch.tensor([0, *(pack.num_rows for pack in self._packs)]).cumsum(0).tolist()
        self.num_rows: int = firsts.pop()
        """Rows of a trial."""
        index = [pack.index + first for pack, first in zip(self._packs, firsts, strict=True)]
        self._index = torch.cat(index)  # [roots, depth]
        self._room = torch.cat([torch.arange(count, 0, -1) for count in self.segments])  # [roots]
        self._within = torch.arange(depth) < self._room[:, None]  # [roots, depth]

    def agreement(self, plan: SkipPlan, k: int) -> Agreement:
        """One trial: `plan` against the answers, by the draft's `k` best tokens a row. Tensors on the CPU."""
        found = [pack.run(plan, k) for pack in self._packs]
        rank = torch.cat([one[0] for one in found])[self._index]  # [roots, depth]
        log_confidence = torch.cat([one[1] for one in found])[self._index]  # [roots, depth, k]
        return Agreement(rank.masked_fill(~self._within, k), log_confidence, self._room)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The rows of one sample: blocks of up to `depth` rows below every `stride`-th root."""

    positions: list[int]  # of each row's token
    roots: list[int]  # position of each row's root
    index: list[list[int]]  # [roots][depth] the row that stands for each root and depth

    @classmethod
    def of(cls, sample: Sample, depth: int, stride: int) -> _Blocks:
        first, end = sample.prompt_length - 1, len(sample.token_ids) - 1  # rows exist for positions first .. end - 1
        places: dict[tuple[int, int], int] = {}
        for root in range(first, end, stride):
            for position in range(root, min(root + depth, end)):
                places[root, position] = len(places)
        index = []
        for root in range(first, end):
            wanted = [min(root + j, end - 1) for j in range(depth)]
            index.append([places[_nearest(root, position, first, depth, stride), position] for position in wanted])
        return cls([position for _, position in places], [root for root, _ in places], index)


def _nearest(root: int, position: int, first: int, depth: int, stride: int) -> int:
    """Of the roots that have a block, the nearest to `root` whose block holds `position`."""
    below = root - (root - first) % stride
    holding = [one for one in (below, below + stride) if one <= position < one + depth]
    return min(holding, key=lambda one: abs(one - root))


class _Pack:
    """Samples that share one pass."""

    def __init__(
        self,
        target: Target,
        samples: Sequence[Sample],
        make_rule: Callable[[Sample], DecodingRule],
        depth: int,
        stride: int,
    ) -> None:
        blocks = [_Blocks.of(sample, depth, stride) for sample in samples]
        counts = [len(block.positions) for block in blocks]
        self.num_rows = sum(counts)
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        self.index = torch.cat([torch.tensor(b.index) + row for b, row in zip(blocks, firsts, strict=True)])
        self._rules = [(make_rule(sample), count) for sample, count in zip(samples, counts, strict=True)]
        self._target = target
        self._cache, offsets = _exact(target, samples)
        device = target.device
        self._start = sum(len(sample.token_ids) - 1 for sample in samples)
        self._positions = torch.tensor([p for block in blocks for p in block.positions], device=device)  # [rows]
        self._tokens, self._wanted = (
            torch.tensor(
                [s.token_ids[p + ahead] for s, b in zip(samples, blocks, strict=True) for p in b.positions],
                device=device,
            )
            for ahead in (0, 1)
        )
        roots = torch.tensor([root for block in blocks for root in block.roots], device=device)  # [rows]
        offset = torch.tensor(offsets, device=device).repeat_interleave(torch.tensor(counts, device=device))  # [rows]
        slots = torch.arange(self._start, device=device)
        exact = (slots >= offset[:, None]) & (slots < (offset + roots)[:, None])  # [rows, start]
        same_block = (offset[:, None] == offset) & (roots[:, None] == roots)
        own = same_block & (self._positions <= self._positions[:, None])  # [rows, rows]
        self._visible = torch.cat((exact, own), dim=1)

    def run(self, plan: SkipPlan, k: int) -> tuple[Tensor, Tensor]:
        """(rank [rows], log-confidence [rows, k]) of the skipping target."""
        output = self._target.forward(
            self._tokens, self._positions, self._visible, self._cache, start=self._start, instead=plan.model
        )
        tokens, log_confidence = _best(output.logits[0], self._positions, self._rules, k)
        same = tokens == self._wanted[:, None]  # [rows, k]
        rank = torch.where(same.any(dim=1), same.int().argmax(dim=1), k)
        return rank.cpu(), log_confidence.cpu()


def _best(
    logits: Tensor, positions: Tensor, rules: Sequence[tuple[DecodingRule, int]], k: int
) -> tuple[Tensor, Tensor]:
    """The k best tokens after every row [rows, vocab] and their log-confidence, each sample by its own rule."""
    if all(isinstance(rule, GreedyRule) for rule, _ in rules):
        return rules[0][0].children(logits, 1, k)
    found = []
    row_rules = [rule for rule, count in rules for _ in range(count)]
    for row, (rule, position) in enumerate(zip(row_rules, positions.tolist(), strict=True)):
        rule.begin(position)  # the noise of a token hangs on its position
        found.append(rule.children(logits[row : row + 1], 1, k))
    return torch.cat([one.tokens for one in found]), torch.cat([one.log_confidence for one in found])


def _packed(target: Target, samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Samples by passes: as many as fit together; alone where a model looks at slots or at the longest position."""
    limit = 1 if not target.family.may_pack_texts else _PACK_SLOTS.get(target.device.type, _DEVICE_PACK_SLOTS)
    pack: list[Sample] = []
    for sample in samples:
        if pack and sum(len(one.token_ids) for one in [*pack, sample]) > limit:
            yield pack
            pack = []
        pack.append(sample)
    yield pack


def _exact(target: Target, samples: Sequence[Sample]) -> tuple[KVCache, list[int]]:
    """A cache with the exact KV of all tokens but the last of every sample, and each sample's first slot.

    Its length is 0, so that what a row sees of it is the row's own choice.
    """
    cache = target.new_cache(extra_slots=0)
    offsets: list[int] = []
    for sample in samples:
        tokens = torch.tensor(sample.token_ids[:-1], device=target.device)
        n, start = len(tokens), sum(len(one.token_ids) - 1 for one in samples[: len(offsets)])
        visible = torch.cat((target.causal(n).new_zeros(n, start), target.causal(n)), dim=1)  # [n, start + n]
        positions = torch.arange(n, device=target.device)
        target.forward(tokens, positions, visible, cache, start=start, last_logits_only=True)
        offsets.append(start)
    return cache, offsets
