"""The parts of logits processing that depend on the text, or on its length, at each node of a draft tree.

The frequent ones are tensor operations over all rows, without waiting for the device; the rare ones call transformers'
own processors on the rows of each depth, so they are equal by construction. Shapes: n nodes, rows = n + 1 (row 0 the
root, row i + 1 node i).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from slipstream.core.logits.settings import ProcessingSettings

_FILTERED = -float("inf")

Processor: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # transformers': (input_ids, scores) -> scores


class Rows:
    """The root and the nodes of one tree on top of the committed text."""

    def __init__(self, committed: Tensor, tree_tokens: Tensor, ancestors: Tensor) -> None:
        self.committed = committed  # [length] int64, on the pipeline's device
        self.tree_tokens = tree_tokens  # [n] int64
        self.path = ancestors[:, 1:]  # [rows, n] bool: node j is on the path to the row
        self.num_nodes = tree_tokens.shape[0]

    @cached_property
    def lengths(self) -> Tensor:
        """[rows] int64: tokens of the text that each row continues."""
        return self.path.sum(dim=1) + self.committed.shape[0]

    @cached_property
    def by_depth(self) -> list[tuple[Tensor, Tensor]]:
        """For each depth its rows, [m] int64, and the texts that they continue, [m, length + depth] int64."""
        depths = self.path.sum(dim=1).tolist()  # waits for the device: only rare processors come here
        return [self._texts(depth, [i for i, d in enumerate(depths) if d == depth]) for depth in sorted(set(depths))]

    def _texts(self, depth: int, rows: list[int]) -> tuple[Tensor, Tensor]:
        index = torch.tensor(rows, device=self.path.device)
        on_path = self.path[index].nonzero()[:, 1].view(len(rows), depth)  # ascending: parents before children
        return index, torch.cat((self.committed.expand(len(rows), -1), self.tree_tokens[on_path]), dim=1)


class LogitsStep(ABC):
    """One part of the processing."""

    needs_path = True

    @abstractmethod
    def __call__(self, scores: Tensor, rows: Rows) -> Tensor:
        """scores: [rows, vocab]; returned, not changed."""


class EveryRow(LogitsStep):
    """Something that looks at each row's logits only."""

    needs_path = False

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self._change = change

    def __call__(self, scores: Tensor, rows: Rows) -> Tensor:
        return self._change(scores)


class EveryDepth(LogitsStep):
    """transformers' own processor, on the texts of each depth: they have one length, as a batch of `generate` has."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor

    def __call__(self, scores: Tensor, rows: Rows) -> Tensor:
        processed = torch.empty_like(scores)
        for index, texts in rows.by_depth:
            processed[index] = self._processor(texts, scores[index])
        return processed


class BannedTokens(LogitsStep):
    """Removes tokens where `first <= length < end`, length being that of the text a row continues."""

    def __init__(self, banned: Tensor, first: int, end: float) -> None:
        self._banned, self._first, self._end = banned, first, end  # [vocab] bool

    def __call__(self, scores: Tensor, rows: Rows) -> Tensor:
        shortest = rows.committed.shape[0]
        if shortest >= self._end or shortest + rows.num_nodes < self._first:
            return scores
        here = (rows.lengths >= self._first) & (rows.lengths < self._end)  # [rows]
        return scores.masked_fill(here[:, None] & self._banned, _FILTERED)


class ForcedTokens(LogitsStep):
    """Leaves only the forced tokens, all with logit 0, where the text has exactly `length` tokens."""

    def __init__(self, forced: Tensor, length: int) -> None:
        self._forced, self._length = forced, length  # [vocab] bool

    def __call__(self, scores: Tensor, rows: Rows) -> Tensor:
        shortest = rows.committed.shape[0]
        if not shortest <= self._length <= shortest + rows.num_nodes:
            return scores
        forced = torch.zeros_like(scores[0]).masked_fill(~self._forced, _FILTERED)  # [vocab]
        return torch.where((rows.lengths == self._length)[:, None], forced, scores)


class CountPenalties(LogitsStep):
    """Repetition penalty (prompt and answer), then presence and frequency penalties (answer only).

    Only columns of tokens that occur are touched: the committed text's, padded to a power of two by repeating one so
    that shapes seldom change, and the tree's. A column that is named twice gets the same value twice.
    """

    def __init__(self, settings: ProcessingSettings, vocab_size: int, device: torch.device) -> None:
        self._settings, self._vocab_size, self._device = settings, vocab_size, device
        self.start([])

    def start(self, prompt_ids: Sequence[int]) -> None:
        self._in_text = torch.zeros(self._vocab_size, device=self._device)  # occurrences, as float for matmul
        self._in_answer = torch.zeros(self._vocab_size, device=self._device)
        self._distinct: dict[int, None] = {}  # an ordered set
        self._columns = torch.zeros(0, dtype=torch.int64, device=self._device)
        self._count(self._in_text, prompt_ids)

    def commit(self, token_ids: Sequence[int]) -> None:
        self._count(self._in_text, token_ids)
        self._count(self._in_answer, token_ids)

    def _count(self, counts: Tensor, token_ids: Sequence[int]) -> None:
        known = [token for token in token_ids if token < self._vocab_size]  # prompts of some models hold placeholders
        if known:
            ids = torch.tensor(known, device=self._device)
            counts.index_add_(0, ids, torch.ones_like(ids, dtype=counts.dtype))
            self._distinct.update(dict.fromkeys(known))
            distinct = list(self._distinct)
            padding = (1 << (len(distinct) - 1).bit_length()) - len(distinct)
            self._columns = torch.tensor(distinct + distinct[:1] * padding, device=self._device)

    def __call__(self, scores: Tensor, rows: Rows) -> Tensor:
        columns = torch.cat((self._columns, rows.tree_tokens))  # [columns]
        carries = rows.tree_tokens[:, None] == columns[None, :]  # [n, columns] bool
        on_path = rows.path.to(self._in_text.dtype) @ carries.to(self._in_text.dtype)  # [rows, columns] occurrences
        in_text, in_answer = self._in_text[columns] + on_path, self._in_answer[columns] + on_path
        penalised = self._penalise(scores[:, columns], in_text, in_answer)
        return scores.scatter(1, columns.expand(scores.shape[0], -1), penalised)

    def _penalise(self, scores: Tensor, in_text: Tensor, in_answer: Tensor) -> Tensor:
        """All [rows, columns]: logits and how often each token occurs."""
        s = self._settings
        if s.repetition_penalty != 1.0:
            weaker = torch.where(scores < 0, scores * s.repetition_penalty, scores / s.repetition_penalty)
            scores = torch.where(in_text > 0, weaker, scores)
        if s.presence_penalty:
            scores = scores - s.presence_penalty * (in_answer > 0).to(scores.dtype)
        if s.frequency_penalty:
            scores = scores - s.frequency_penalty * in_answer.to(scores.dtype)
        return scores
