"""Drafts of guesses whose worth is known before a pass: how many of them to verify, by measured cost.

For methods that look their drafts up. The value of a guess estimates the probability that it is accepted: the product,
along its path, of how often guesses of its kind were right. That costs nothing to learn: once the text has grown, every
guess that stood where the text went on was right or wrong, verified or not, so nothing has to be tried out.

Time that a node takes could have been spent on other cycles, which give `pace` tokens in the time of a plain one. So a
draft is worth sum(values) - pace * (price - 1), price being what its pass takes in plain ones, and the draft of most
worth is taken, with some caution: the guesses of highest value, which hold each other's parents; none where all cost
more than they bring.

Sizes are those of a few passes (`ROWS`), so that whoever pads or compiles passes has few to keep. Prices are this
machine's (`runtime/costs.py`), so sizes follow its clock; tokens do not.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch

from slipstream.core.rules import DecodingRule
from slipstream.core.tree import DraftTree
from slipstream.errors import InputError
from slipstream.runtime.costs import PassCosts, Points, on_line
from slipstream.runtime.kept_costs import KeptCosts
from slipstream.target.target import Target

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_LEAST_VALUE = 0.01  # guesses below it are left out where size follows cost
_LONGEST, _SIBLINGS = 12, 3  # matches longer, and siblings further back, are of one kind
_BELIEF = 16.0  # guesses' worth of belief in what is known of a kind from elsewhere
_GENERATION, _CARRIED = 64, 512  # guesses of a kind that are remembered, roughly
_CAUTION = 1.5  # times what rows cost: of all sizes, the one that looks best is the one that looks too good
_PACE = 32  # cycles that make the pace, roughly
_TRIAL = 16  # cycles of a trial of rows beside the draft
_SHARES = 0.05, 0.005  # of the time, for trials: at first, and at least
_KEEP = 1 - 1 / 64  # of what was seen of such rows, each cycle that they run

Total = int | Literal["auto"] | None


class Kind(NamedTuple):
    """What guesses have in common that are right about as often."""

    match: int
    """Tokens before the guess, its draft's among them, that are the same where it was looked up."""
    sibling: int
    """Guesses that were added before it under the same parent."""
    source: int = 0
    """Where the method has it from."""


# By the length of the match, of first guesses: the mean of 384 greedy and 384 sampled (T = 1) answers of SmolLM2-135M.
_RIGHT = (0.0, 0.17, 0.43, 0.57, 0.61, 0.66, 0.68, 0.7, 0.72, 0.75, 0.79, 0.83, 0.88)
_RIGHT_OF_SIBLINGS = (1.0, 0.4, 0.2)


def prior(kind: Kind) -> float:
    """What to expect of a kind that was never seen."""
    return _RIGHT[kind.match] * _RIGHT_OF_SIBLINGS[kind.sibling]


class Odds:
    """How often guesses of each kind were right, the latest above all."""

    def __init__(self, known: Callable[[Kind], float], memory: int) -> None:
        """known: what is to be believed before any was seen. memory: guesses of a kind that count, roughly."""
        self._known, self._keep = known, 1 - 1 / memory
        self._counts: dict[Kind, tuple[float, float]] = {}  # right, seen

    def of(self, kind: Kind) -> float:
        """The probability that such a guess is right, given that its parent is."""
        right, seen = self._counts.get(kind, (0.0, 0.0))
        return (right + _BELIEF * self._known(kind)) / (seen + _BELIEF)

    def note(self, kind: Kind, right: bool) -> None:
        """Such a guess stood where the text went on."""
        before, seen = self._counts.get(kind, (0.0, 0.0))
        self._counts[kind] = before * self._keep + right, seen * self._keep + 1


class Guesses:
    """Chains of guessed tokens under a root, merged where they share a beginning."""

    def __init__(self, odds: Callable[[Kind], float], least_value: float = 0.0) -> None:
        """odds: see `Odds.of`. least_value: guesses that are worth less are left out, but for the root's children."""
        self._odds, self._least = odds, least_value
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depth: list[int] = []
        self.values: list[float] = []
        self._kinds: list[Kind] = []
        self._children: list[dict[int, int]] = [{}]  # by token; the root's, then those of every node

    def add(self, chain: Iterable[int], match: int, source: int = 0) -> None:
        """A chain that was looked up by a match of so many tokens."""
        parent, value = -1, 1.0
        for depth, token in enumerate(chain, start=1):
            children = self._children[parent + 1]
            node = children.get(token)
            if node is None:
                kind = Kind(min(match + depth - 1, _LONGEST), min(len(children), _SIBLINGS - 1), source)
                value *= self._odds(kind)
                if value < self._least and depth > 1:
                    return
                node = children[token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(parent)
                self.depth.append(depth)
                self.values.append(value)
                self._kinds.append(kind)
                self._children.append({})
            parent, value = node, self.values[node]

    def follow(self, text: Iterable[int]) -> Iterator[tuple[Kind, bool]]:
        """Every guess that stood where this text went on, and whether it was right."""
        parent = -1
        for token in text:
            children = self._children[parent + 1]
            for guess, node in children.items():
                yield self._kinds[node], guess == token
            if token not in children:
                return
            parent = children[token]

    def num_right(self, text: Sequence[int], kept: Iterable[int]) -> int:
        """How many tokens of a text the nodes `kept` would have foreseen."""
        among, parent = set(kept), -1
        for count, token in enumerate(text):
            parent = self._children[parent + 1].get(token, -1)
            if parent not in among:
                return count
        return len(text)

    def tree(self, kept: Sequence[int], device: torch.device) -> DraftTree:
        """The nodes `kept`, ascending, which hold each other's parents."""
        rank = {-1: -1} | {node: place for place, node in enumerate(kept)}
        depth = [self.depth[node] for node in kept]
        rows = [[self.tokens[node] for node in kept], [rank[self.parents[node]] for node in kept], depth]
        tokens, parents, depths = torch.tensor(rows, device=device).long()
        values = torch.tensor([math.log(max(self.values[node], 1e-300)) for node in kept], device=device)
        return DraftTree(tokens, parents, depths, values, max(depth, default=0))


class Scouting:
    """Whether rows beside the draft, from which a drafter learns, bring more than they cost: by trial.

    Trials may take `_SHARES` of the time of all other cycles, and never begin before that has been saved up; the share
    is halved whenever a trial did not pay. Of a trial's cycles it is known what they emitted and cost, and what the
    same drafter without the rows would have emitted and cost there.
    """

    def __init__(self) -> None:
        self.pays = False
        self._share, self._saved = _SHARES[0], 0.0  # plain cycles that trials may take
        self._cycles = 0  # of the trial under way
        self._with, self._without = (0.0, 0.0), (0.0, 0.0)  # tokens, price

    def begins(self, price: float, num_idle: int, room: int) -> bool:
        """Whether to run the rows from here on.

        price: plain cycles that a cycle takes more with them. num_idle: cycles until they bring anything. room: tokens
        that may still be emitted.
        """
        cycles = num_idle + _TRIAL
        return self.pays or (room >= cycles and self._saved >= cycles * price)

    def save(self, price: float) -> None:
        """A cycle without the rows took so long."""
        self._saved += self._share * price

    def note(self, num_idle: int, tokens: int, price: float, tokens_without: int, price_without: float) -> bool:
        """A cycle with the rows, and what it would have been without them. Returns whether they are to go on."""
        if not self.pays:
            self._saved -= price - price_without
        self._with = self._with[0] * _KEEP + tokens, self._with[1] * _KEEP + price
        self._without = self._without[0] * _KEEP + tokens_without, self._without[1] * _KEEP + price_without
        self._cycles += 1
        if self._cycles < num_idle + _TRIAL:
            return True
        self.pays = self._with[0] * self._without[1] > self._without[0] * self._with[1]
        if not self.pays:
            self._cycles, self._with, self._without = 0, (0.0, 0.0), (0.0, 0.0)
            self._share = max(self._share / 2, _SHARES[1])
        return self.pays


@dataclass(slots=True)
class Habits:
    """What is known of texts under one rule."""

    odds: Odds = field(default_factory=lambda: Odds(prior, _CARRIED))
    tokens: float = float(_PACE)
    """Emitted of late, ..."""
    price: float = float(_PACE)
    """... and what the cycles took, in plain ones."""
    scouting: Scouting = field(default_factory=Scouting)

    @property
    def pace(self) -> float:
        """Tokens in the time of a plain cycle: plain decoding is always to be had."""
        return max(1.0, self.tokens / self.price)

    def note(self, tokens: int, price: float) -> None:
        """A cycle is over."""
        self.tokens += tokens - self.tokens / _PACE
        self.price += price - self.price / _PACE


class RowPrices:
    """What passes cost by their rows, in plain ones."""

    def __init__(self, points: Points) -> None:
        """points: (rows, seconds), ascending from one row."""
        plain_s = points[0][1]
        self._points = tuple((rows, seconds / plain_s) for rows, seconds in points)

    def of(self, rows: int) -> float:
        """Of a pass over so many rows."""
        return on_line(self._points, rows)


class HostSizes:
    """Sizes of a drafter's drafts: of a fixed number of nodes, or by cost.

    Costs of a target are known before its first generation; a text goes by the prices after as many tokens as its
    prompt has. Habits are carried over from generation to generation, for greedy texts and every temperature to the
    first decimal place on their own; generations that take turns share them.
    """

    def __init__(self, total: Total, most: int) -> None:
        """total: nodes of every draft; "auto": by cost; None: all there are. most: nodes of any draft.

        Raises InputError for anything else.
        """
        if total not in ("auto", None) and (not isinstance(total, int) or isinstance(total, bool) or total < 1):
            raise InputError(f"total is {total!r}; it must be at least 1, a whole number, or 'auto'")
        self.by_cost = total == "auto"
        self.varies = total is not None
        """Whether the guesses that are kept hang on the clock, or on what was right in texts before."""
        self.most = min(most, ROWS[-1] - 1) if self.by_cost else most if total is None else min(most, int(total))
        self._habits: dict[tuple[type[DecodingRule], float], Habits] = {}
        self._costs: WeakKeyDictionary[Target, PassCosts] = WeakKeyDictionary()
        self._measuring = threading.Lock()

    def start(self, target: Target, rule: DecodingRule, prompt_length: int) -> Sizing:
        """Sizes for a new generation."""
        habits = self._habits.setdefault((type(rule), round(rule.temperature, 1)), Habits())
        prices = self._priced(target, prompt_length) if self.by_cost else None
        return Sizing(habits, prices, self.most)

    def _priced(self, target: Target, prompt_length: int) -> RowPrices:
        with self._measuring:  # generations that begin now wait for the costs
            if target not in self._costs:
                self._costs[target] = KeptCosts(target).passes()
        return RowPrices(self._costs[target].at(prompt_length))


class Sizing:
    """The size of every draft of one generation."""

    def __init__(self, habits: Habits, prices: RowPrices | None, most: int) -> None:
        self.habits, self.prices, self._most = habits, prices, most
        self._odds = Odds(habits.odds.of, _GENERATION)
        self._guesses: Guesses | None = None  # of the cycle under way
        self._rows, self._length = 1, 0  # of its pass, and of the text before it
        self._price: float | None = None
        self.worth = 0.0
        """Of the draft chosen last, where sizes follow cost: expected tokens beyond those that its time would bring."""

    @property
    def price(self) -> float:
        """Of the cycle run last, in plain ones."""
        if self._price is not None:
            return self._price
        assert self.prices is not None, "drafts of a fixed size have no price"
        return self.prices.of(self._rows)

    def guesses(self) -> Guesses:
        """Where the guesses of a cycle are put."""
        return Guesses(self._odds.of, 0.0 if self.prices is None else _LEAST_VALUE)

    def catch_up(self, text: Sequence[int]) -> None:
        """Learn from what came of the last cycle."""
        if self._guesses is not None:
            emitted = text[self._length :]
            for kind, right in self._guesses.follow(emitted):
                self._odds.note(kind, right)
                self.habits.odds.note(kind, right)
            if self.prices is not None:
                self.habits.note(len(emitted), self.price)
            self._guesses = None

    def choose(self, guesses: Guesses, beside: int = 0) -> list[int]:
        """The nodes to verify in a pass with so many rows beside them, ascending."""
        count = len(guesses.tokens)
        if self.prices is None and count <= self._most:
            return list(range(count))
        best_first = sorted(range(count), key=lambda node: -guesses.values[node])  # stable: parents before children
        return sorted(best_first[: self._count([guesses.values[node] for node in best_first], beside)])

    def run(self, guesses: Guesses, text: Sequence[int], rows: int, price: float | None = None) -> None:
        """A pass over so many rows is next, whatever part of the guesses is among them.

        price: of the cycle, in plain ones; None: that of the pass.
        """
        self._guesses, self._length, self._rows, self._price = guesses, len(text), rows, price

    def _count(self, values: Sequence[float], beside: int) -> int:
        """How many nodes, those of highest value first, are worth most."""
        if self.prices is None:
            return self._most
        pace, alone = self.habits.pace, self.prices.of(1 + beside)
        best, best_worth, worth, taken = 0, 0.0, 0.0, 0
        for rows in ROWS:
            size = min(rows - 1 - beside, len(values), self._most)
            if size <= taken:
                continue
            worth += sum(values[taken:size])
            taken = size
            net = worth - _CAUTION * pace * (self.prices.of(1 + beside + size) - alone)
            if net > best_worth:
                best, best_worth = size, net
        self.worth = best_worth
        return best
