"""Plain decoding, one new token a pass, in passes of any shape. It shares no loop, tree or commit with the engine.

In the shape of a tree's pass, the rows that emitted hold the text, at the same places and in the same cache slots; all
other rows are dummies of arbitrary content. A dummy sees the committed text and itself, and no row of the text sees a
dummy, so exact arithmetic gives what a pass of one row gives. The kernels, however, get the very shapes that they got
for the tree: a row rounds as the tree's node did. After the last token of a shape its rows of keys and values are kept,
because the engine's were computed in that shape too. Row 0 alone would not do: the sum over the keys of a deeper node
is associated by the number of slots and by the places of its ancestors among them.

    for k in 0, 1, ...:                      one new token a pass, all passes of a cycle in one shape
        rows   root  .  t1  .  .  t2  .      rows of the text so far at the tree's places, dummies between them
        next   argmax of the scores at t_k's row

Whether dummies do leave the rows alone is measured, not believed: `Reference.floor` runs a pass again with other ones.

What is shared with the engine is `Target.forward` and the processing of logits. A fault in these is for the reference
by transformers to find.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.certify.distances import distance
from slipstream.certify.recording import PassShape
from slipstream.core.logits import LogitsPipeline
from slipstream.core.sampling import gumbel_rows
from slipstream.engine.sequence import FinishReason, Request
from slipstream.records.certificate import Floor
from slipstream.runtime.decisions import agree
from slipstream.target.features import Features
from slipstream.target.target import Target, TargetOutput

_HIDDEN = Features(last_hidden=True)
_VARIANTS = 2  # other contents of the dummies that a floor is measured with


@dataclass(frozen=True, slots=True)
class Picked:
    """One token of a reference."""

    token: int
    scores: Tensor  # [vocab] what it is the argmax of: processed logits, for a seeded answer plus the noise
    logits: Tensor  # [vocab] the target's own, unprocessed
    hidden: Tensor  # [hidden] the last hidden state
    finish_reason: FinishReason | None
    """Why the answer ends with this token; None: it goes on."""

    @property
    def margin(self) -> float:
        """By how much the token's score exceeds the next best."""
        best = self.scores.topk(2).values
        return float(best[0] - best[1])

    def shortfall(self, token: int) -> float:
        """By how much another token's score falls short."""
        return float(self.scores[self.token] - self.scores[token])


class Reference:
    """Plain decoding of one request. Greedy, or the Gumbel-max sample of its seed; never by rejection."""

    def __init__(self, target: Target, request: Request, *, prefill_chunk: int) -> None:
        self._target, self._request, self._chunk = target, request, prefill_chunk
        self._tokens = list(request.prompt_ids)
        self._pipeline = LogitsPipeline(request.processing, vocab_size=target.vocab_size, device=target.device)
        self._pipeline.start(self._tokens)
        self._cache = target.new_cache(extra_slots=0)
        self._cache.limit = None  # as many slots as the shapes need
        self._last: tuple[PassShape, int] | None = None

    @torch.inference_mode()
    def decode(self, shapes: Iterable[PassShape]) -> Iterator[Picked]:
        """Yield token after token, as many from each shape as it has rows of text, until the answer ends."""
        self._prefill()
        for shape in shapes:
            if self._target.family.must_reprefill(self._cache.length, len(self._tokens)):
                self._cache.rollback(0)
                self._prefill()
            for index in range(len(shape.rows)):
                self._last = shape, index
                picked = self._pick(self._run(shape, index, variant=0), shape.rows[index])
                self._tokens.append(picked.token)
                self._pipeline.commit([picked.token])
                yield picked
                if picked.finish_reason is not None:
                    return
            self._keep(shape.rows)

    @torch.inference_mode()
    def floor(self) -> Floor:
        """Measured on the pass that the last token came from: dummies with other content, then the same pass again."""
        assert self._last is not None
        shape, index = self._last
        token = self._tokens.pop()  # so that the text is what it was
        outputs = [self._run(shape, index, variant) for variant in (0, *range(1, _VARIANTS + 1), 0)]
        self._tokens.append(token)
        logits, hidden = zip(*(_at(output, shape.rows[index]) for output in outputs), strict=True)
        return Floor(_spread(logits), _spread(hidden), len(outputs) - 1)

    def _prefill(self) -> None:
        """Cache all of the text but its last token, in the chunks that the engine uses."""
        target, count = self._target, len(self._tokens)
        for first, end in target.family.prefill_chunks(count, self._chunk):
            tokens = torch.tensor(self._tokens[first:end], device=target.device)
            positions = torch.arange(first, end, device=target.device)
            visible = target.causal(end - first)
            target.forward(tokens, positions, visible, self._cache, features=_HIDDEN, last_logits_only=True)
            self._cache.commit(None, min(end, count - 1) - first)

    def _run(self, shape: PassShape, index: int, variant: int) -> TargetOutput:
        """A pass of this shape that holds the text up to its `index`-th row. variant: which content dummies have."""
        length, device = self._cache.length, self._target.device
        rows = list(shape.rows[: index + 1])
        text = self._tokens[length : length + index + 1]  # the root, and what was picked after it in this shape
        generator = torch.Generator().manual_seed(variant)
        tokens = torch.randint(self._target.vocab_size, (shape.num_rows,), generator=generator)
        depth = torch.zeros(shape.num_rows, dtype=torch.int64)
        visible = torch.eye(shape.num_rows, dtype=torch.bool)
        if variant:  # dummies that stand elsewhere and see all rows before them
            depth = torch.randint(index + 1, depth.shape, generator=generator)
            visible = visible.logical_or(torch.ones_like(visible).tril())
        for place, row in enumerate(rows):
            tokens[row], depth[row] = text[place], place
            visible[row] = False
            visible[row, rows[: place + 1]] = True
        return self._target.forward(
            tokens.to(device), length + depth.to(device), visible.to(device), self._cache, features=_HIDDEN
        )

    def _pick(self, output: TargetOutput, row: int) -> Picked:
        logits, hidden = _at(output, row)
        scores = self._pipeline.process(logits[None])[0]
        processing, sampling = self._request.processing, self._request.sampling
        if not processing.is_greedy:
            position = torch.tensor([len(self._tokens)], device=scores.device)  # of the token to be picked
            scores = scores.double() + gumbel_rows(sampling.seed, sampling.stream, position, scores.shape[-1])[0]
        token = agree(int(scores.argmax()))
        return Picked(token, scores, logits, hidden, self._finish_reason(token))

    def _finish_reason(self, token: int) -> FinishReason | None:
        processing, context = self._request.processing, self._target.context_length
        length = len(self._tokens) + 1  # of the text with the token
        if token in processing.eos_token_ids:
            return "eos"
        if length == processing.max_length:
            return "length"
        return "context" if length == context else None

    def _keep(self, rows: tuple[int, ...]) -> None:
        """Keep the keys and values of these rows of the last pass, one after another."""
        first = self._cache.length
        for place, row in enumerate(rows):  # ascending, so that no row is overwritten before it is copied
            for layer in self._cache.layers:
                assert layer.keys is not None
                assert layer.values is not None
                for states in (layer.keys, layer.values):
                    states[:, :, first + place] = states[:, :, first + row].clone()
            self._cache.positions[:, first + place] = first + place
        self._cache.commit(None, len(rows))


def _at(output: TargetOutput, row: int) -> tuple[Tensor, Tensor]:
    """Logits [vocab] and last hidden state [hidden] of a row."""
    assert output.features is not None
    return output.logits[0, row], output.features[0, row]


def _spread(versions: Iterable[Tensor]) -> float:
    """The largest distance of an entry from its first version."""
    first, *others = versions
    return max(distance(first, other) for other in others)
