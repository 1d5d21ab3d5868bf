"""Lookahead decoding (Fu et al. 2024, arXiv 2402.02057): the target drafts for itself by Jacobi iteration.

Beside the draft, each pass of the target runs a window of guessed tokens further on in the text and replaces them by
what the target says there (section 3.1). The trajectories that the window leaves behind are n-grams the target is
likely to say again; a pool keeps them under their first token (section 3.2), and those under the root are the draft.
No weights and no training; the price is the window's rows in every pass.

N = level, W = window, G = guesses. The window is a grid of N - 1 levels of W columns: column 0 of level 0 is the root,
the token at (level l, column c) stands l + c places behind it, and it was said by the target after (l - 1, c) of the
pass before. It sees level 0 up to its own column, then levels 1 .. l of that column: a tree, whose trunk is level 0.
As in the released code the window moves on by one column a pass, however many tokens were accepted, and is
filled level by level in the first N - 2 passes. Departures: drafting starts before the window is full, guesses that
share a beginning share rows, the newest guess comes first, and the window of a sampled text is sampled too.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slipstream.core.tree import DraftTree
from slipstream.drafting.base import Drafter, Drafting, Observed, Run, Scouts
from slipstream.errors import InputError
from slipstream.methods.method import Method, pick
from slipstream.methods.prompt_lookup import Trie
from slipstream.target.target import Target

LIMITS = {"window": (1, 256), "level": (3, 64), "guesses": (1, 256)}
"""Smallest and largest sizes. With fewer than 3 levels there would be no row to iterate on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookaheadSettings:
    """Settings of lookahead decoding. The sizes are those of the published runs."""

    window: int = 7
    """Columns of the window: places in the text that are guessed at once (W)."""
    level: int = 5
    """Tokens of an n-gram (N): one that is looked up and N - 1 to draft. The window has N - 1 rows."""
    guesses: int = 7
    """N-grams kept for each first token, the latest used; also the most that are drafted at once (G)."""
    pool_from_prompt: bool = True
    """Keep the n-grams of the text too, prompt and answer. Off in the released code; on here: it costs no pass, and
    most of what prompt lookup would find is among the guesses then."""

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= most:
                raise InputError(f"lookahead {name} is {value!r}; it must be a whole number from {least} to {most}")
        if not isinstance(self.pool_from_prompt, bool):
            raise InputError(f"lookahead pool_from_prompt is {self.pool_from_prompt!r}; it must be true or false")


class LookaheadDrafter(Drafter):
    """Drafts n-grams that the target said while it guessed ahead."""

    name = "lookahead"

    def __init__(self, settings: LookaheadSettings | None = None) -> None:
        self.settings = settings or LookaheadSettings()

    def start(self, run: Run) -> Drafting:
        return _Lookahead(run, self.settings)

    @property
    def draft_slots(self) -> int:
        window, level = self.settings.window, self.settings.level
        # While the window fills it is wider than W: with l levels each has W + N - 1 - l columns.
        cells = max(levels * (window + level - 1 - levels) for levels in range(1, level))  # the root's among them
        return cells + self.settings.guesses * (level - 1)


class _Lookahead(Drafting):
    """Window and pool of one generation.

    Both live on the host, where the pool has to be: what the pass says after the window arrives with the engine's one
    copy, and the next window goes to the device as the draft does, so nothing waits.
    """

    def __init__(self, run: Run, settings: LookaheadSettings) -> None:
        self._run, self._settings = run, settings
        self._pool = NgramPool(settings.guesses)
        self._window = Window(settings.window, settings.level, run.tokens)
        self._pooled = 0  # n-grams of the text that are in the pool

    def propose(self) -> DraftTree:
        if self._settings.pool_from_prompt:
            self._pool_text()
        trie = Trie()
        for guess in self._pool.guesses(self._run.tokens[-1]):
            trie.add(list(guess[: self._run.max_depth]))
        return trie.tree(self._run.target.device)

    def scouts(self) -> Scouts:
        self._window.set_root(self._run.tokens[-1])
        tokens, parents, depth = torch.tensor(self._window.rows(), device=self._run.target.device).unbind()
        return Scouts(tokens, parents, depth, self._read)

    def observe(self, observed: Observed) -> None:
        if observed.scouted:
            for ngram in self._window.advance(observed.scouted):
                self._pool.add(ngram)

    def _read(self, logits: Tensor) -> Tensor:
        """The target's next token after each column of the window's last level. logits: [scouts, vocab]."""
        columns, depth = self._window.frontier
        return self._run.rule.guess(logits[-columns:], depth)

    def _pool_text(self) -> None:
        text, level = self._run.tokens, self._settings.level
        for first in range(self._pooled, len(text) - level + 1):
            self._pool.add(text[first : first + level])
        self._pooled = max(self._pooled, len(text) - level + 1)


class Window:
    """The guessed tokens, level by level, and their Jacobi iteration."""

    def __init__(self, window: int, level: int, text: Sequence[int]) -> None:
        """Level 0 starts as tokens of the text, drawn at random (the same ones for the same text)."""
        self._full = level - 1
        drawn = random.Random(0).choices(text, k=window + level - 2)
        self._levels = [drawn]  # all of one length; the first token of level 0 is the root

    def set_root(self, token: int) -> None:
        """The window begins at this token now."""
        self._levels[0][0] = token

    def rows(self) -> tuple[list[int], list[int], list[int]]:
        """Tokens, parents and depths of all but the root, level by level, as `Scouts` has them."""
        columns = len(self._levels[0])
        cells = range(1, columns * len(self._levels))
        tokens = [token for level in self._levels for token in level][1:]
        parents = [cell - 2 if cell < columns else cell - 1 - columns for cell in cells]
        return tokens, parents, [cell // columns + cell % columns for cell in cells]

    @property
    def frontier(self) -> tuple[int, int]:
        """How many rows of the last level the window advances by, and at what depth the first one's next token is."""
        levels, columns = len(self._levels), len(self._levels[0])
        return (columns, levels) if levels > 1 else (columns - 1, 2)  # what follows the root is not guessed

    def advance(self, said: Sequence[int]) -> list[tuple[int, ...]]:
        """Take what the target said after the last level and move on by one place. Returns the n-grams completed."""
        if len(self._levels) < self._full:  # a new level; the column that the text has reached is left out
            kept = len(self._levels[0]) - 1
            self._levels = [*(level[1:] for level in self._levels), list(said)[-kept:]]
            return []
        ngrams = list(zip(*self._levels, said, strict=True))
        self._levels = [*self._levels[1:], list(said)]
        return ngrams


class NgramPool:
    """The n-grams seen last, by their first token."""

    def __init__(self, capacity: int) -> None:
        """capacity: n-grams kept for each first token; the one not seen for longest makes room."""
        self._capacity = capacity
        self._by_first: defaultdict[int, dict[tuple[int, ...], None]] = defaultdict(dict)  # in order of use

    def add(self, ngram: Sequence[int]) -> None:
        known = self._by_first[ngram[0]]
        rest = tuple(ngram[1:])
        known.pop(rest, None)
        known[rest] = None
        if len(known) > self._capacity:
            del known[next(iter(known))]

    def guesses(self, first: int) -> Iterator[tuple[int, ...]]:
        """What followed `first`, the latest seen first."""
        return reversed(self._by_first.get(first, {}))


def _build(target: Target, options: Mapping[str, Any]) -> Drafter:
    return LookaheadDrafter(LookaheadSettings(**pick(LookaheadSettings, options)))


METHOD = Method(
    name="lookahead",
    summary="the target guesses further ahead in the same pass; what it says there becomes n-grams (Lookahead)",
    needs="nothing",
    paper="arXiv 2402.02057",
    options=("window", "level", "guesses", "pool_from_prompt"),
    build=_build,
)
