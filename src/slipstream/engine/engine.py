"""The engine: any number of sequences over one target and one drafter, each advanced pass by pass.

Two ways to drive it. `generate` is an iterator over one request, and whoever iterates advances that request and no
other. `add` and `step` serve many requests at once: `step` gives each of them one pass. The two do not touch each
other's sequences.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

from slipstream.drafting.base import Drafter
from slipstream.engine.cycle import Decoding
from slipstream.engine.kept import KeptTexts, weights_stamp
from slipstream.engine.sequence import Request, Step, TokenSequence
from slipstream.errors import InputError
from slipstream.target.target import Target


class Engine:
    """Drives one target and one drafter. Several generations may be in progress at once, in one thread or in several;
    each has its own state.

    The texts of the last generations are kept with their keys and values, and a prompt that begins with the same tokens
    has the rest of it prefilled alone.
    """

    def __init__(self, target: Target, drafter: Drafter, *, prefill_chunk: int = 512, keep: int = 1) -> None:
        """prefill_chunk: prompt tokens run through the target at once. keep: texts that are kept, each with a cache of
        its own; 0: none.
        """
        if prefill_chunk < 1:
            raise InputError(f"prefill_chunk is {prefill_chunk}; it must be at least 1")
        self.target, self.drafter, self.prefill_chunk = target, drafter, prefill_chunk
        self.kept = KeptTexts(keep)
        self._numbers = itertools.count()
        self._sequences: dict[int, TokenSequence] = {}  # added and not over, in the order of adding
        self._decodings: dict[int, Decoding] = {}  # those of them that have begun
        self._steps: dict[int, Step] = {}  # made and not handed out yet
        self._turn = threading.RLock()  # held for a pass of one sequence

    def generate(self, request: Request) -> Iterator[Step]:
        """Yield a Step per cycle until the request is done. Closing the iterator early is safe.

        Raises InputError for an empty prompt or budget, ContextLengthError for a prompt that fills the context.
        """
        sequence = TokenSequence(request, self.target)
        decoding = self._begin(sequence)
        try:
            while sequence.finish_reason is None:
                step = decoding.advance()
                if step is not None:
                    yield step
        finally:
            self._end(decoding)

    def add(self, request: Request) -> int:
        """Take a request in, to be advanced by `step`; returns its number. Costs nothing yet. From any thread.

        Raises InputError for an empty prompt or budget, ContextLengthError for a prompt that fills the context.
        """
        number = next(self._numbers)
        self._sequences[number] = TokenSequence(request, self.target)
        return number

    def step(self) -> dict[int, Step]:
        """One pass of every sequence, in the order they were added; the steps that came of it, by number.

        A pass is a cycle, or a chunk of the prompt, which gives no step. Chunks of one call are `prefill_chunk` tokens
        in all, so that new prompts hold up the sequences under way by no more than that; the first in order go first.
        A sequence leaves the engine with its last step, that with a `finish_reason`.

        An error ends the sequence that it happened in, whose last step holds it, and no other. KeyboardInterrupt and
        the like are raised; they end the sequence under way, if any, in the same manner, and the steps of the others
        come with the next call. One thread is to call this; a second one finds other sequences to advance or waits.
        """
        budget = self.prefill_chunk
        for number in list(self._sequences):
            with self._turn:
                budget -= self._advance(number, budget)
        with self._turn:
            steps, self._steps = self._steps, {}
        return steps

    def remove(self, number: int) -> bool:
        """Cancel a sequence; waits for its pass under way. False: it was over already. From any thread."""
        with self._turn:
            self._steps.pop(number, None)
            return self._leave(number)

    def forget(self) -> None:
        """Let go of all kept texts and their memory.

        Needed where the target was changed in a way that torch does not count (`kept.weights_stamp`).
        """
        self.kept.forget()

    def _advance(self, number: int, budget: int) -> int:
        """A pass of one sequence, unless it has to wait. budget: tokens of prompts that may still be run in this step.

        Returns how many were run.
        """
        sequence = self._sequences.get(number)
        if sequence is None or number in self._steps:
            return 0  # removed meanwhile, or a step was interrupted and this one's is still to be handed out
        try:
            return self._pass(number, sequence, budget)
        except BaseException as error:
            self._steps[number] = Step.failed(error)
            self._leave(number)
            if not isinstance(error, Exception):
                raise
            return 0

    def _pass(self, number: int, sequence: TokenSequence, budget: int) -> int:
        decoding = self._begun(number, sequence)
        rows = decoding.next_chunk
        if rows > 0 and budget < min(rows, self.prefill_chunk):
            return 0
        step = decoding.advance()
        if step is not None and number in self._sequences:
            self._steps[number] = step
        if sequence.finish_reason is not None:
            self._leave(number)
        return rows

    def _begun(self, number: int, sequence: TokenSequence) -> Decoding:
        if number not in self._decodings:
            self._decodings[number] = self._begin(sequence)
        return self._decodings[number]

    def _begin(self, sequence: TokenSequence) -> Decoding:
        weights = weights_stamp(self.target.model)
        self.target.executor.stamp(weights)
        return Decoding(
            sequence,
            self.target,
            self.drafter,
            self.kept.take(sequence.tokens, weights),
            weights=weights,
            prefill_chunk=self.prefill_chunk,
            to_keep=self.kept.most > 0,
        )

    def _leave(self, number: int) -> bool:
        decoding = self._decodings.pop(number, None)
        if decoding is not None:
            self._end(decoding)
        return self._sequences.pop(number, None) is not None

    def _end(self, decoding: Decoding) -> None:
        text = decoding.text_to_keep()
        if text is not None:
            self.kept.put(text)
