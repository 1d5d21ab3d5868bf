"""One answer beside three kinds of plain decoding: where it first differs from each, and how near they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import repeat

import torch
from torch import Tensor

from slipstream.certify.distances import distance
from slipstream.certify.recording import ONE_ROW, RecordedAnswer, record
from slipstream.certify.reference import Picked, Reference
from slipstream.certify.transformers_reference import TransformersAnswer, transformers_answer
from slipstream.drafting.base import Drafter
from slipstream.engine.sequence import Request
from slipstream.records.certificate import Floor
from slipstream.runtime.decisions import agree
from slipstream.target.target import Target

FLOOR_INTERVAL = 16
"""Tokens from one measurement of the rounding floor to the next; one is made at every difference too."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first place at which an answer differs from a reference's."""

    index: int
    """Of the generated token."""
    token: int | None
    """Ours; None: our answer has ended."""
    reference_token: int | None
    """None: the reference's answer has ended, or ends here for another reason."""
    margin: float
    """By how much the reference's best score exceeds its second: logits, for a seeded answer log p + noise."""
    shortfall: float
    """By how much our token's score falls short of the reference's best; infinite where an answer has ended."""


@dataclass(slots=True)
class Against:
    """What was found beside one reference."""

    divergence: Divergence | None = None
    num_compared: int = 0
    """Tokens compared, that of the divergence included."""
    logit_distance: float = 0.0
    """The largest distance of its logits from those of the same-shape reference, as far as the texts agree."""


@dataclass(slots=True, kw_only=True)
class Comparison:
    """One answer, compared."""

    answer: RecordedAnswer
    same_shape: Against = field(default_factory=Against)
    row_by_row: Against = field(default_factory=Against)
    transformers: Against | None = None
    """None: the answer is seeded."""
    num_states_differing: int = 0
    """Tokens whose last hidden state is not, bit for bit, that of the same-shape reference."""
    state_distance: float = 0.0
    """The largest difference between those states."""
    floor: Floor = field(default_factory=Floor)
    yardstick: float = 0.0
    """Rounding between transformers' own passes; 0 where the answer is seeded."""

    @property
    def references(self) -> dict[str, Against]:
        """All that there are, by name."""
        found = {"same shape": self.same_shape, "row by row": self.row_by_row}
        return found if self.transformers is None else found | {"transformers": self.transformers}

    @property
    def has_same_tokens(self) -> bool:
        """As every reference."""
        return all(against.divergence is None for against in self.references.values())


def compare(target: Target, drafter: Drafter, request: Request, *, prefill_chunk: int) -> Comparison:
    """Let a drafter answer, and follow its answer by every reference."""
    answer = record(target, drafter, request, prefill_chunk=prefill_chunk)
    found = Comparison(answer=answer)
    by_transformers = transformers_answer(target, request) if request.processing.is_greedy else None
    if by_transformers is not None:
        found.transformers, found.yardstick = Against(), by_transformers.yardstick
    same_shape, row_by_row = (Reference(target, request, prefill_chunk=prefill_chunk) for _ in range(2))
    same = _Follower(found.same_shape, answer, same_shape.decode(one.shape for one in answer.passes))
    row = _Follower(found.row_by_row, answer, row_by_row.decode(repeat(ONE_ROW)))
    hidden = torch.cat([one.hidden for one in answer.passes])  # [tokens, hidden]
    for index in range(len(answer.token_ids)):
        picked = same.follow(index)
        if picked is not None:
            _note_state(found, picked.hidden, hidden[index])
            if index % FLOOR_INTERVAL == 0 or same.over or agree(not torch.equal(picked.hidden, hidden[index])):
                found.floor |= same_shape.floor()
        other = row.follow(index)
        if picked is not None and other is not None:
            _note_distance(found.row_by_row, picked, other.logits)
        if found.transformers is not None and by_transformers is not None:
            _follow_transformers(found.transformers, answer, by_transformers, index, picked)
    return _agreed(found)


def _agreed(found: Comparison) -> Comparison:
    """With the numbers that all processes go by, so that those that share a target judge alike."""
    numbers = {one.name: getattr(found, one.name) for one in fields(found) if one.name != "answer"}
    return Comparison(answer=found.answer, **agree(numbers))


class _Follower:
    """Follows an answer by a reference up to the first difference."""

    def __init__(self, against: Against, answer: RecordedAnswer, tokens: Iterator[Picked]) -> None:
        self._against, self._answer, self._tokens = against, answer, tokens
        self.over = False
        """The reference has parted from the answer, or both have ended."""

    def follow(self, index: int) -> Picked | None:
        """The reference's token at this place, the texts before it being the same; None where they are not."""
        if self.over:
            return None
        answer, against = self._answer, self._against
        picked = next(self._tokens)
        token, last = answer.token_ids[index], index + 1 == len(answer.token_ids)
        against.num_compared += 1
        if picked.token != token:
            against.divergence = Divergence(index, token, picked.token, picked.margin, picked.shortfall(token))
        elif picked.finish_reason != (answer.finish_reason if last else None):
            ours = None if last else answer.token_ids[index + 1]
            against.divergence = Divergence(index + 1, ours, None, picked.margin, float("inf"))
        self.over = last or against.divergence is not None
        return picked


def _follow_transformers(
    against: Against, answer: RecordedAnswer, reference: TransformersAnswer, index: int, same: Picked | None
) -> None:
    """One token beside transformers' answer. same: the same-shape reference's, if it has followed up to here."""
    if against.divergence is not None:
        return
    token, ends = answer.token_ids[index], index + 1 == len(answer.token_ids)
    scores = reference.scores[index]
    best = scores.topk(2).values
    against.num_compared += 1
    if same is not None:
        _note_distance(against, same, reference.logits[index])
    theirs = reference.token_ids[index]
    if theirs != token:
        shortfall = float(best[0] - scores[token])
        against.divergence = Divergence(index, token, theirs, float(best[0] - best[1]), shortfall)
    elif ends != (index + 1 == len(reference.token_ids)):
        longer = (reference if ends else answer).token_ids[index + 1]
        ours, others = (None, longer) if ends else (longer, None)
        against.divergence = Divergence(index + 1, ours, others, float(best[0] - best[1]), float("inf"))


def _note_distance(against: Against, same: Picked, logits: Tensor) -> None:
    against.logit_distance = max(against.logit_distance, distance(same.logits, logits))


def _note_state(found: Comparison, reference: Tensor, ours: Tensor) -> None:
    gap = distance(reference, ours)
    if gap > 0:
        found.num_states_differing += 1
        found.state_distance = max(found.state_distance, gap)
