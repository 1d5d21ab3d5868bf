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
share a beginning share rows, the newest guess comes first, and the window of a sampled text is sampled too. Unless
sizes are given, the window runs only where it pays by measured cost, and only guesses that pay are verified.
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
from slipstream.drafting.base import Drafter, Drafting, Generation, Observed, Scouts
from slipstream.drafting.host_sizes import Guesses, HostSizes, Total
from slipstream.errors import InputError
from slipstream.methods.method import Method, option_names, pick
from slipstream.methods.prompt_lookup import match_length
from slipstream.target.target import Target

LIMITS = {"window": (1, 256), "level": (3, 64), "guesses": (1, 256)}
"""Smallest and largest sizes. With fewer than 3 levels there would be no row to iterate on."""
PUBLISHED = {"window": 7, "level": 5, "guesses": 7}
_SAID = 1  # source of guesses that the target said in the window; those of the text are of source 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LookaheadSettings:
    """Settings of lookahead decoding. All follows measured cost unless a total, or one of the sizes, is given."""

    window: int | None = None
    """Columns of the window: places in the text that are guessed at once (W); by default 7, as in the published runs.
    Where size follows cost, the window runs only where it pays."""
    level: int | None = None
    """Tokens of an n-gram (N): one that is looked up and N - 1 to draft. The window has N - 1 rows. By default 5."""
    guesses: int | None = None
    """N-grams kept for each first token, the latest used; also the most that are drafted at once (G). By default 7."""
    total: Total = None
    """Drafted tokens verified at once: a number, for the likeliest ones, or "auto", for as many as pay by measured
    cost, down to none, and a window only where it pays. By default "auto"; where one of the sizes is given, all guesses
    and the window in every pass."""
    pool_from_prompt: bool = True
    """Keep the n-grams of the text too, prompt and answer. Off in the released code; on here: it costs no pass, and
    most of what prompt lookup would find is among the guesses then."""

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or not least <= value <= most):
                raise InputError(f"lookahead {name} is {value!r}; it must be a whole number from {least} to {most}")
        if not isinstance(self.pool_from_prompt, bool):
            raise InputError(f"lookahead pool_from_prompt is {self.pool_from_prompt!r}; it must be true or false")


class LookaheadDrafter(Drafter):
    """Drafts n-grams that the target said while it guessed ahead."""

    name = "lookahead"

    def __init__(self, settings: LookaheadSettings | None = None) -> None:
        self.settings = given = settings or LookaheadSettings()
        self.window, self.level, self.guesses = (getattr(given, name) or size for name, size in PUBLISHED.items())
        no_sizes = given.total is given.window is given.level is given.guesses is None
        self.sizes = HostSizes("auto" if no_sizes else given.total, self.guesses * (self.level - 1))
        # While the window fills it is wider than W: with l levels each has W + N - 1 - l columns.
        self.cells = max(levels * (self.window + self.level - 1 - levels) for levels in range(1, self.level))

    def start(self, generation: Generation) -> Drafting:
        return _Lookahead(generation, self)

    @property
    def varies(self) -> bool:
        return self.sizes.varies

    @property
    def draft_slots(self) -> int:
        return self.cells + self.sizes.most  # the root's among the cells


class _Lookahead(Drafting):
    """Window and pool of one generation.

    Both live on the host, where the pool has to be: what the pass says after the window arrives with the engine's one
    copy, and the next window goes to the device as the draft does, so nothing waits.
    """

    def __init__(self, generation: Generation, drafter: LookaheadDrafter) -> None:
        self._generation, self._drafter = generation, drafter
        self._sizing = drafter.sizes.start(generation.target, generation.rule, generation.prompt_length)
        self._pool, self._text = NgramPool(drafter.guesses), NgramPool(drafter.guesses)  # of all, of the text alone
        self._pooled = 0  # n-grams of the text that are in the pools
        self._window = None if drafter.sizes.by_cost else self._new_window()
        self._length = len(generation.tokens)  # of the text when the last pass was run
        self._bare: tuple[Guesses, list[int]] | None = None  # what would have been drafted in it without the window

    def propose(self) -> DraftTree:
        text, sizing = self._generation.tokens, self._sizing
        sizing.catch_up(text)
        if self._drafter.settings.pool_from_prompt:
            self._pool_text()
        if self._drafter.sizes.by_cost:
            self._choose_window()
        beside = 0 if self._window is None else self._window.num_rows
        guesses = self._look_up(self._pool)
        kept = sizing.choose(guesses, beside)
        sizing.run(guesses, text, 1 + len(kept) + beside)
        return guesses.tree(kept, self._generation.target.device)

    def scouts(self) -> Scouts | None:
        if self._window is None:
            return None
        self._window.set_root(self._generation.tokens[-1])
        tokens, parents, depth = torch.tensor(self._window.rows(), device=self._generation.target.device).unbind()
        return Scouts(tokens, parents, depth, self._read)

    def observe(self, observed: Observed) -> None:
        if observed.scouted and self._window is not None:
            for ngram in self._window.advance(observed.scouted):
                self._pool.add(ngram)

    def _new_window(self) -> Window:
        return Window(self._drafter.window, self._drafter.level, self._generation.tokens)

    def _choose_window(self) -> None:
        """Run the window in this pass or do not, by what became of the last one and of those before it."""
        text, scouting, prices = self._generation.tokens, self._sizing.habits.scouting, self._sizing.prices
        assert prices is not None
        to_fill = self._drafter.level - 2
        if self._bare is not None:
            guesses, kept = self._bare
            emitted = text[self._length :]
            bare = 1 + guesses.num_right(emitted, kept), prices.of(1 + len(kept))
            if not scouting.note(to_fill, len(emitted), self._sizing.price, *bare):
                self._window = None
        elif len(text) > self._length:
            scouting.save(self._sizing.price)
        if self._window is None and scouting.begins(
            prices.of(self._drafter.cells) - 1, to_fill, self._generation.max_depth
        ):
            self._window = self._new_window()
        self._length, self._bare = len(text), None
        if self._window is not None:
            guesses = self._look_up(self._text)
            self._bare = guesses, self._sizing.choose(guesses)

    def _look_up(self, pool: NgramPool) -> Guesses:
        """What may follow the root; where it is sized, n-grams that match more of the text come first."""
        text, found = self._generation.tokens, self._sizing.guesses()
        ngrams = [(1 if end < 0 else match_length(text, end), end, rest) for rest, end in pool.guesses(text[-1])]
        if self._drafter.sizes.by_cost:
            ngrams.sort(key=lambda ngram: -ngram[0])
        for match, end, rest in ngrams:
            found.add(rest[: self._generation.max_depth], match, _SAID if end < 0 else 0)
        return found

    def _read(self, logits: Tensor) -> Tensor:
        """The target's next token after each column of the window's last level. logits: [scouts, vocab]."""
        assert self._window is not None
        columns, depth = self._window.frontier
        return self._generation.rule.guess(logits[-columns:], depth)

    def _pool_text(self) -> None:
        text, level = self._generation.tokens, self._drafter.level
        for first in range(self._pooled, len(text) - level + 1):
            for pool in (self._pool, self._text):
                pool.add(text[first : first + level], first + 1)
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
    def num_rows(self) -> int:
        """Rows of all but the root."""
        return len(self._levels[0]) * len(self._levels) - 1

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
        self._by_first: defaultdict[int, dict[tuple[int, ...], int]] = defaultdict(dict)  # in order of use

    def add(self, ngram: Sequence[int], end: int = -1) -> None:
        """end: where in the text its first token ends; -1: it is not of the text."""
        known = self._by_first[ngram[0]]
        rest = tuple(ngram[1:])
        known.pop(rest, None)
        known[rest] = end
        if len(known) > self._capacity:
            del known[next(iter(known))]

    def guesses(self, first: int) -> Iterator[tuple[tuple[int, ...], int]]:
        """What followed `first`, the latest seen first, and its `end`."""
        return reversed(self._by_first.get(first, {}).items())


def _build(target: Target, options: Mapping[str, Any]) -> Drafter:
    return LookaheadDrafter(LookaheadSettings(**pick(LookaheadSettings, options)))


METHOD = Method(
    name="lookahead",
    summary="the target guesses further ahead in the same pass; what it says there becomes n-grams (Lookahead)",
    needs="nothing",
    paper="arXiv 2402.02057",
    options=option_names(LookaheadSettings),
    build=_build,
)
