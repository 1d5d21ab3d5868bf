"""Dialogues in batches: which are held out, in which order the others come, and how they are padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from slipstream.training.data.dialogues import Dialogue


class Order(torch.utils.data.Sampler[int]):
    """A random order of the dialogues that depends on seed and epoch alone, so that any epoch can be taken up again."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.count, generator=generator).tolist())


def collate(items: Sequence[tuple[int, Dialogue]]) -> tuple[list[int], Tensor, Tensor]:
    """Numbers, ids [b, n] padded on the right with 0, and answer [b, n] bool, false in the padding."""
    longest = max(len(dialogue.token_ids) for _, dialogue in items)
    ids = torch.zeros(len(items), longest, dtype=torch.int64)
    answer = torch.zeros(len(items), longest, dtype=torch.bool)
    for row, (_, dialogue) in enumerate(items):
        ids[row, : len(dialogue.token_ids)] = torch.tensor(dialogue.token_ids)
        answer[row, : len(dialogue.answer)] = torch.tensor(dialogue.answer)
    return [index for index, _ in items], ids, answer


def split(dialogues: Sequence[Dialogue], held_out: int) -> tuple[list[Dialogue], list[Dialogue]]:
    """Held-out dialogues, evenly spread over the data, and the rest."""
    count = min(held_out, len(dialogues) // 10)
    kept_back = {index * len(dialogues) // count for index in range(count)} if count else set()
    rest = [dialogue for index, dialogue in enumerate(dialogues) if index not in kept_back]
    return [dialogues[index] for index in sorted(kept_back)], rest
