"""Prompt lookup (PLD, Saxena 2023): the draft is what followed the last few tokens when they occurred before.

As published: the longest n-gram (3 tokens, then 2, then 1) that ends the text and occurs earlier; its continuation,
up to 10 tokens, is the draft. Beyond that: matches close to the end count too, and run on through the draft itself
(periodic text is continued as such); and the continuations of several matches become one tree, merged where they agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from slipstream.core.tree import DraftTree
from slipstream.drafting.base import Drafter, Drafting, Run
from slipstream.errors import InputError
from slipstream.methods.method import Method, pick
from slipstream.target.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLookupSettings:
    """Settings of prompt lookup."""

    max_ngram: int = 3
    """Longest n-gram looked up; shorter ones follow down to 1."""
    length: int = 10
    """Tokens drafted from each match."""
    branches: int = 4
    """Matches drafted from at once; 1 drafts a chain, as published."""

    def __post_init__(self) -> None:
        for name in ("max_ngram", "length", "branches"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"prompt-lookup {name} is {value!r}; it must be at least 1, a whole number")


class PromptLookupDrafter(Drafter):
    """Drafts from the text itself; needs no model and no memory to speak of."""

    name = "prompt-lookup"

    def __init__(self, settings: PromptLookupSettings | None = None) -> None:
        self.settings = settings or PromptLookupSettings()

    def start(self, run: Run) -> Drafting:
        return _Lookup(run, self.settings)

    @property
    def draft_slots(self) -> int:
        return 1 + self.settings.length * self.settings.branches


class _Lookup(Drafting):
    def __init__(self, run: Run, settings: PromptLookupSettings) -> None:
        self._run, self._settings = run, settings
        self._index = NgramIndex(settings.max_ngram)

    def propose(self) -> DraftTree:
        text = self._run.tokens
        self._index.extend(text)
        length = min(self._settings.length, self._run.max_depth)
        trie = Trie()
        for branch, end in enumerate(self._index.matches(text)):
            if branch == self._settings.branches:
                break
            trie.add(continuation(text, end, length))
        return trie.tree(self._run.target.device)


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


def continuation(text: list[int], start: int, length: int) -> list[int]:
    """`length` tokens from `start` on; past the end of the text it reads on in what it has itself produced."""
    period = len(text) - start
    return [text[start + offset % period] for offset in range(length)]


class Trie:
    """Chains merged where they share a beginning."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._depth: list[int] = []
        self._child: dict[tuple[int, int], int] = {}

    def add(self, chain: list[int]) -> None:
        parent = -1
        for depth, token in enumerate(chain, start=1):
            node = self._child.get((parent, token))
            if node is None:
                node = self._child[parent, token] = len(self._tokens)
                self._tokens.append(token)
                self._parents.append(parent)
                self._depth.append(depth)
            parent = node

    def tree(self, device: torch.device) -> DraftTree:
        """All chains as one tree; lookup has no confidences, so every log-value is 0."""
        tokens, parents, depth = torch.tensor([self._tokens, self._parents, self._depth], device=device).long()
        values = torch.zeros(len(self._tokens), device=device)
        return DraftTree(tokens, parents, depth, values, max(self._depth, default=0))


def _build(target: Target, options: Mapping[str, Any]) -> Drafter:
    return PromptLookupDrafter(PromptLookupSettings(**pick(PromptLookupSettings, options)))


METHOD = Method(
    name="prompt-lookup",
    summary="drafts what followed the last tokens earlier in the text (PLD)",
    needs="nothing",
    paper="github.com/apoorvumang/prompt-lookup-decoding",
    options=("max_ngram", "length", "branches"),
    build=_build,
)
