"""The target's own law of its next few tokens, cut into cells that counts can be compared with.

A probable text is a cell of its own; all other texts with the same beginning share a cell, if that is expected often
enough, and else fall to the cell of a shorter beginning. So nothing is left out, and cells follow the text: a rule that
is wrong after one certain token shows in the cells behind it. The probabilities come from passes of the model alone
over the whole text: no cache, mask or loop of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slipstream.certify.chi_square import LEAST_EXPECTED
from slipstream.core.logits import LogitsPipeline
from slipstream.engine.sequence import Request
from slipstream.runtime.decisions import agree
from slipstream.target.target import Target

NUM_TOKENS = 3
"""Tokens of the joint law: two drafted ones and the one that follows."""

Text = tuple[int, ...]
NextLaw = Callable[[Text], Tensor]
"""The probabilities [vocab] of what follows a text; float64."""


@dataclass(slots=True)
class Cells:
    """A partition of all texts of `NUM_TOKENS` tokens (fewer where one ends the answer)."""

    index: dict[Text, int] = field(default_factory=dict)
    """A text, or the beginning of those that share a cell -> its cell."""
    probabilities: list[float] = field(default_factory=list)

    def add_text(self, beginning: Text, probability: float) -> None:
        """One more cell."""
        self.index[beginning] = len(self.probabilities)
        self.probabilities.append(probability)

    def count(self, texts: Sequence[Text]) -> list[int]:
        """How many of the texts are in each cell."""
        counts = [0] * len(self.probabilities)
        for text in texts:
            counts[self.cell(text)] += 1
        return counts

    def cell(self, text: Text) -> int:
        """The cell of a text: that of its longest beginning that has one."""
        return next(self.index[text[:n]] for n in range(len(text), -1, -1) if text[:n] in self.index)


def cells_of(law: NextLaw, ends: frozenset[int], least: float) -> Cells:
    """Cells of at least this probability, by following every text that is as probable. ends: tokens that end a text."""
    cells = Cells()
    left = _split((), 1.0, law, ends, least, cells)
    if () not in cells.index and cells.probabilities:  # too little for a cell: it joins the least probable one
        smallest = min(range(len(cells.probabilities)), key=cells.probabilities.__getitem__)
        cells.index[()] = smallest
        cells.probabilities[smallest] += left
    return cells


def _split(text: Text, probability: float, law: NextLaw, ends: frozenset[int], least: float, cells: Cells) -> float:
    """Make the cells of all texts that begin with this one. Returns the probability that none of them holds."""
    if probability < least:
        return probability
    if len(text) == NUM_TOKENS or (text and text[-1] in ends):
        cells.add_text(text, probability)
        return 0.0
    joint = probability * law(text)
    probable = (joint >= least).nonzero().squeeze(1)
    own: list[float] = joint[probable].tolist()
    left = probability - sum(own)
    for token, mass in zip(probable.tolist(), own, strict=True):
        left += _split((*text, token), mass, law, ends, least, cells)
    if left < least:
        return left
    cells.add_text(text, left)
    return 0.0


@torch.inference_mode()
def target_cells(target: Target, request: Request, num_samples: int) -> Cells:
    """The cells of what the target says after a prompt, each expected `LEAST_EXPECTED` times among the samples."""
    processing = request.processing

    def law(text: Text) -> Tensor:
        ids = [*request.prompt_ids, *text]
        logits = target.model(input_ids=torch.tensor([ids], device=target.device), use_cache=False).logits[0, -1:]
        pipeline = LogitsPipeline(processing, vocab_size=target.vocab_size, device=target.device)
        pipeline.start(ids)
        return agree(pipeline.process(target.upcast(logits))[0].double().softmax(dim=-1)).cpu()

    return cells_of(law, frozenset(processing.eos_token_ids), LEAST_EXPECTED / num_samples)
