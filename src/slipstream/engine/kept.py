"""Texts whose keys and values are kept, for prompts that begin with the same tokens.

A kept text goes to one generation only, and comes back when that is over. What it holds is exact: a cache is kept only
from a generation that ended between two passes, never from one that was interrupted within a pass. Nothing here waits
for a lock: a generation that is garbage may come back at any moment, in any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile

from torch import Tensor, nn

from slipstream.errors import InputError
from slipstream.target.cache import KVCache


def weights_stamp(model: nn.Module) -> int:
    """A number that is another once weights were replaced, or changed in place as by an optimiser or `load_state_dict`.

    What is written past torch's own count of changes (through `.data`, or by switching adapters) does not show.
    """
    return hash(tuple((id(one), 0 if one.is_inference() else one._version) for one in model.parameters()))


@dataclass(frozen=True, slots=True, eq=False)
class KeptText:
    """A cache, and the text whose keys and values lie in its first slots."""

    cache: KVCache
    tokens: Sequence[int]
    features: Sequence[Tensor]
    """Those of all tokens, [n, features] each, as the drafter asked for; none where it asked for nothing."""
    weights: int
    """`weights_stamp` of the target that they come from."""

    def num_shared(self, prompt: Sequence[int]) -> int:
        """Tokens at the beginning of a prompt that need not be run. Its last one must: a cycle starts from it."""
        pairs = zip(self.tokens, prompt[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class KeptTexts:
    """The texts of the last generations."""

    def __init__(self, most: int) -> None:
        """most: texts that are kept. With 0, one cache is kept all the same, as memory for the next text."""
        if isinstance(most, bool) or not isinstance(most, int) or most < 0:
            raise InputError(f"keep is {most!r}; it must be a whole number of at least 0")
        self.most = most
        self._texts: list[KeptText] = []  # the oldest first; changed by atomic operations alone

    def __len__(self) -> int:
        return len(self._texts)

    def take(self, prompt: Sequence[int], weights: int) -> KeptText | None:
        """The text to go on from: the one that shares most with the prompt, if that is half of either.

        Otherwise None while there is room for one more, and then the oldest, of which the prompt may share a little.
        weights: stamp of the target's. The text of others is empty.
        """
        shared = {one: one.num_shared(prompt) if one.weights == weights else 0 for one in self._texts[:]}
        useful = [one for one, count in shared.items() if 0 < min(len(prompt), len(one.tokens)) <= 2 * count]
        useful.sort(key=lambda one: -shared[one])
        oldest = [one for one in shared if one not in useful] if len(shared) >= max(1, self.most) else []
        for one in (*useful, *oldest):
            with suppress(ValueError):  # another generation was faster
                self._texts.remove(one)
                return one if one.weights == weights else KeptText(one.cache, (), (), weights)
        return None

    def put(self, text: KeptText) -> None:
        """Keep a text; the oldest makes room."""
        self._texts.append(text if self.most else KeptText(text.cache, (), (), text.weights))
        while len(self._texts) > max(1, self.most):
            with suppress(IndexError):
                self._texts.pop(0)

    def forget(self) -> None:
        """Let go of all, memory included."""
        self._texts.clear()
