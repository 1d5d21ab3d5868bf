"""Dialogues in batches: which are held out, which make a step, and how they are laid out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from slipstream.errors import InputError
from slipstream.training.data.dialogues import Dialogue


class Plan:
    """Which dialogues make each step: it follows from seed and epoch alone.

    So any step can be taken up again, the length of a run is known before it begins, and steps are the same for any
    number of processes that share them (`share`).
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int | None,
        tokens_per_step: int,
        seed: int = 0,
    ) -> None:
        """lengths: tokens of each dialogue. batch_size: dialogues of a step; None: as many as come to
        `tokens_per_step` tokens at most, at least one.

        Raises InputError where a step cannot be filled.
        """
        self._lengths, self._seed = lengths, seed
        self._batch_size, self._tokens = batch_size, tokens_per_step
        self.epoch = lru_cache(maxsize=2)(self._epoch)
        if batch_size is not None and len(lengths) < batch_size:
            raise InputError(
                f"{len(lengths)} dialogues are fewer than a batch of {batch_size}; give more data or a smaller batch"
            )

    def num_steps(self, epochs: float) -> int:
        """Steps of so many passes over the data, at least one."""
        whole = int(epochs)
        steps = sum(len(self.epoch(number)) for number in range(whole))
        return max(1, steps + round((epochs - whole) * len(self.epoch(whole))))

    def after(self, step: int) -> Iterator[tuple[int, ...]]:
        """The dialogues, step by step without end, from `step` on (0, 1, ..)."""
        number = 0
        while step >= len(self.epoch(number)):
            step -= len(self.epoch(number))
            number += 1
        while True:
            yield from self.epoch(number)[step:]
            step, number = 0, number + 1

    def _epoch(self, number: int) -> list[tuple[int, ...]]:
        """All steps of an epoch; what does not come to a whole step is left out."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        return self._by_tokens(order) if self._batch_size is None else self._by_number(order, self._batch_size)

    def _by_number(self, order: list[int], size: int) -> list[tuple[int, ...]]:
        return [tuple(order[first : first + size]) for first in range(0, len(order) - size + 1, size)]

    def _by_tokens(self, order: list[int]) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        batch: list[int] = []
        tokens = 0
        for index in order:
            if batch and tokens + self._lengths[index] > self._tokens:
                found.append(tuple(batch))
                batch, tokens = [], 0
            batch.append(index)
            tokens += self._lengths[index]
        if batch and (not found or 2 * tokens >= self._tokens):  # a small rest would weigh as much as a whole step
            found.append(tuple(batch))
        return found


def share(num_dialogues: int, rank: int, num_processes: int) -> range:
    """Places of a step's dialogues that a process takes; none where the step has fewer dialogues than processes."""
    return range(rank, num_dialogues, num_processes)


def laid_out(dialogues: Sequence[Dialogue]) -> tuple[Tensor, Tensor]:
    """Ids [n] and answer [n] bool of dialogues one after another."""
    ids = [token for one in dialogues for token in one.token_ids]
    answer = [mark for one in dialogues for mark in one.answer]
    return torch.tensor(ids), torch.tensor(answer, dtype=torch.bool)


def split(dialogues: Sequence[Dialogue], held_out: int) -> tuple[list[Dialogue], list[Dialogue]]:
    """Held-out dialogues, evenly spread over the data, and the rest."""
    count = min(held_out, len(dialogues) // 10)
    kept_back = {index * len(dialogues) // count for index in range(count)} if count else set()
    rest = [dialogue for index, dialogue in enumerate(dialogues) if index not in kept_back]
    return [dialogues[index] for index in sorted(kept_back)], rest
