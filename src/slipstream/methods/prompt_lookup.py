"""Prompt lookup (PLD, Saxena 2023): the draft is what followed the last few tokens when they occurred before.

As published: the longest n-gram (3 tokens, then 2, then 1) that ends the text and occurs earlier; its continuation,
up to 10 tokens, is the draft. Beyond that: matches close to the end count too, and run on through the draft itself
(periodic text is continued as such); the continuations of several matches become one tree, merged where they agree;
and as much of it is verified as pays, since every row of a pass has its price.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from slipstream.core.tree import DraftTree, empty_tree
from slipstream.drafting.base import Drafter, Drafting, Generation
from slipstream.drafting.host_sizes import Guesses, HostSizes, Total
from slipstream.errors import InputError
from slipstream.methods.method import Method, option_names, pick
from slipstream.target.target import Target

_FIXED = {"length": 10, "branches": 4}
_LIMITS = {"length": 24, "branches": 4}  # where size follows cost
_LONGEST_MATCH = 12  # tokens compared to tell how good a match is


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLookupSettings:
    """Settings of prompt lookup. Drafts are sized by measured cost unless a total, length or branches are given."""

    max_ngram: int = 3
    """Longest n-gram looked up; shorter ones follow down to 1."""
    length: int | None = None
    """Tokens drafted from each match, at most. By default 10, and 24 where drafts are sized by cost."""
    branches: int | None = None
    """Matches drafted from at once, at most, by default 4; with 1 the draft is a chain, as published."""
    total: Total = None
    """Drafted tokens verified at once: a number, for the likeliest ones, or "auto", for as many as pay by measured
    cost, down to none. By default "auto"; all of them where a length or branches are given."""

    def __post_init__(self) -> None:
        for name in ("max_ngram", "length", "branches"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"prompt-lookup {name} is {value!r}; it must be at least 1, a whole number")


class PromptLookupDrafter(Drafter):
    """Drafts from the text itself; needs no model and no memory to speak of."""

    name = "prompt-lookup"

    def __init__(self, settings: PromptLookupSettings | None = None) -> None:
        self.settings = given = settings or PromptLookupSettings()
        total = "auto" if given.total is given.length is given.branches is None else given.total
        sizes = _LIMITS if total == "auto" else _FIXED
        self.length = given.length or sizes["length"]
        self.branches = given.branches or sizes["branches"]
        self.sizes = HostSizes(total, self.length * self.branches)

    def start(self, generation: Generation) -> Lookup:
        return Lookup(generation, self)

    @property
    def varies(self) -> bool:
        return self.sizes.varies

    @property
    def draft_slots(self) -> int:
        return 1 + self.sizes.most


class Lookup(Drafting):
    """Prompt lookup at work on one generation."""

    def __init__(self, generation: Generation, drafter: PromptLookupDrafter) -> None:
        self._generation, self._drafter = generation, drafter
        self._index = NgramIndex(drafter.settings.max_ngram)
        self._sizing = drafter.sizes.start(generation.target, generation.rule, generation.prompt_length)
        self._nothing = empty_tree(generation.target.device)
        self._guesses: Guesses
        self._kept: list[int] = []

    def propose(self) -> DraftTree:
        self.look_up()
        return self.draft()

    def look_up(self) -> None:
        """Learn from what came of the last cycle, and find what could be drafted in this one."""
        text = self._generation.tokens
        self._sizing.catch_up(text)
        self._index.extend(text)
        guesses = self._guesses = self._sizing.guesses()
        length = min(self._drafter.length, self._generation.max_depth)
        for end in islice(self._index.matches(text), self._drafter.branches):
            guesses.add(continuation(text, end, length), match_length(text, end))
        self._kept = self._sizing.choose(guesses)

    @property
    def worth(self) -> float:
        """Of what was found: the tokens that it is expected to bring beyond what its time would bring otherwise."""
        return self._sizing.worth

    @property
    def pace(self) -> float:
        """Tokens of late in the time of a plain cycle."""
        return self._sizing.habits.pace

    def draft(self) -> DraftTree:
        """What was found, as the tree of this cycle."""
        self._sizing.run(self._guesses, self._generation.tokens, 1 + len(self._kept))
        return self._guesses.tree(self._kept, self._generation.target.device) if self._kept else self._nothing

    def leave_to(self, price: float) -> None:
        """Another drafts this cycle, which takes so many plain ones; the guesses are still compared with what comes."""
        self._sizing.run(self._guesses, self._generation.tokens, 1, price)


class NgramIndex:
    """Where every n-gram of a growing text ends, for n = 1 .. max_ngram."""

    def __init__(self, max_ngram: int) -> None:
        self._max_ngram = max_ngram
        self._ends: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        self._indexed = 0

    def extend(self, text: list[int]) -> None:
        """Index `text` up to, but without, its last token: that one is what is being looked up."""
        for end in range(self._indexed + 1, len(text)):
            for n in range(1, min(self._max_ngram, end) + 1):
                self._ends[tuple(text[end - n : end])].append(end)
        self._indexed = max(self._indexed, len(text) - 1)

    def matches(self, text: list[int]) -> Iterator[int]:
        """Positions that follow earlier occurrences of the text's last tokens: longest n-gram first, then latest."""
        seen: set[int] = set()
        for n in range(min(self._max_ngram, len(text)), 0, -1):
            for end in reversed(self._ends.get(tuple(text[-n:]), ())):
                if end not in seen:
                    seen.add(end)
                    yield end


def match_length(text: Sequence[int], end: int) -> int:
    """Tokens before `end` that are those at the end of the text, as many as are compared."""
    length = 0
    while length < min(end, _LONGEST_MATCH) and text[end - 1 - length] == text[-1 - length]:
        length += 1
    return length


def continuation(text: Sequence[int], start: int, length: int) -> Iterator[int]:
    """`length` tokens from `start` on; past the end of the text it reads on in what it has itself produced."""
    period = len(text) - start
    return (text[start + offset % period] for offset in range(length))


def _build(target: Target, options: Mapping[str, Any]) -> Drafter:
    return PromptLookupDrafter(PromptLookupSettings(**pick(PromptLookupSettings, options)))


METHOD = Method(
    name="prompt-lookup",
    summary="drafts what followed the last tokens earlier in the text (PLD)",
    needs="nothing",
    paper="github.com/apoorvumang/prompt-lookup-decoding",
    options=option_names(PromptLookupSettings),
    build=_build,
)
