"""The shapes of a draft: a chain, a dynamic tree, a static one, or a dynamic one sized by measured cost.

    chain:12      a chain of at most 12 tokens that ends early when the drafter is unsure
    8x5x20        a dynamic tree: 8 nodes run together at each of 5 levels, the best 20 of all verified
    static        a static tree: Medusa's default; static:NAME: another that was published (`published_trees.py`)
    auto:8x5x40   a dynamic tree of at most this size, chosen anew each cycle by what it costs and brings; or plain auto

All answer alike how many rows the drafter runs for them, how many nodes the target verifies and how deep they are, so
that nobody else has to know which one it is.
"""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from slipstream.core.rules import DecodingRule
from slipstream.core.tree import DraftTree, select_nodes
from slipstream.drafting.base import Observed
from slipstream.drafting.exit_rule import ExitRule
from slipstream.drafting.growth import rerank
from slipstream.drafting.published_trees import DEFAULT, TREES, Path, published_tree
from slipstream.drafting.sizes import CycleTimes, Prospect, Size, SizeChooser
from slipstream.errors import InputError, unknown_choice
from slipstream.runtime.clock import Part
from slipstream.runtime.costs import Costs

Kind = Literal["chain", "dynamic", "static"]

LIMITS = {"width": 256, "depth": 256, "total": 65536}
"""Largest dynamic tree: a level holds width * width nodes."""


class Shape(ABC):
    """What a draft looks like."""

    kind: ClassVar[Kind]
    """How it is drafted: a chain is drawn token by token, trees are grown level by level."""

    by_cost: ClassVar[bool] = False
    """Whether the size follows measured cost, down to none."""

    @property
    def varies(self) -> bool:
        """Whether sizes hang on the clock, or on texts before."""
        return self.by_cost

    @property
    @abstractmethod
    def depth(self) -> int:
        """Levels below the root, at most."""

    @property
    @abstractmethod
    def most_rows(self) -> int:
        """Rows that the drafter runs for one draft, root included, at most."""

    @property
    @abstractmethod
    def most_nodes(self) -> int:
        """Nodes that the target verifies, at most."""

    @property
    def fewest_nodes(self) -> int:
        """Nodes that the target verifies at least, where nothing cuts the draft short."""
        return self.most_nodes

    @property
    @abstractmethod
    def level_rows(self) -> int:
        """Rows of a drafting pass after the root's, at most."""

    def levels(self, num_nodes: int) -> int:
        """Passes of the drafter for a draft of so many nodes."""
        return self.depth

    @abstractmethod
    def cut(self, max_depth: int) -> Shape:
        """The same shape, at most `max_depth` deep."""

    @abstractmethod
    def for_generation(self, rule: DecodingRule) -> ShapeInUse | ExitRule:
        """What decides in one generation: on the tree of each cycle, or on the end of each chain."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The options by which a method is asked for this shape."""

    def for_drafter(self) -> Shape:
        """The shape for one drafter: what is carried over from prompt to prompt is that drafter's own."""
        return self

    def need_costs(self, measure: Callable[[Dynamic], Costs]) -> None:  # noqa: B027 (only one shape goes by costs)
        """Called before a generation. measure: finds what trees up to a size cost here."""

    def forget_costs(self) -> None:  # noqa: B027
        """What was measured no longer holds."""

    def scale_draft_costs(self, factor: float) -> None:  # noqa: B027
        """Drafting takes `factor` times what it took."""

    @staticmethod
    def parse(text: str, largest: Dynamic | None = None) -> Shape:
        """The shape that a text describes, as above. largest: of `auto` without sizes. Raises InputError."""
        name, _, rest = text.partition(":")
        if name == "chain" and (rest.isdecimal() or text == name):
            return Chain(length=int(rest)) if rest else Chain()
        if name == "static":
            return Static(published_tree(rest or DEFAULT))
        if name == "auto" and (rest or text == name):
            return Auto(_parse_sizes(rest, text) if rest else largest or Dynamic())
        return _parse_sizes(text, text)


def _parse_sizes(sizes: str, text: str) -> Dynamic:
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", sizes)
    if found is None:
        raise InputError(f"{text!r} is no shape of a draft; give one such as 8x5x20, chain:12, static or auto:8x5x40")
    width, depth, total = map(int, found.groups())
    return Dynamic(width=width, depth=depth, total=total)


@dataclass(frozen=True, kw_only=True)
class Chain(Shape):
    """A draft chain and its exit rule. Defaults are those of Draft & Verify's published runs."""

    kind: ClassVar[Kind] = "chain"

    length: int = 12
    """Tokens drafted at most (K in the paper)."""
    threshold: float = 0.6
    """First value of gamma: drafting stops after a token whose draft probability is below it. 0: never.

    Steered, it stays from 0 to 1, which the official code does not see to. When sampling with coupled verification the
    probability is that under the known noise.
    """
    adaptive: bool = True
    """Steer gamma towards `target_acceptance` after every verification; it is carried over from prompt to prompt."""
    target_acceptance: float = 0.9
    """Acceptance rate aimed at (alpha)."""

    def __post_init__(self) -> None:
        if not isinstance(self.length, int) or self.length < 1:
            raise InputError(f"chain length is {self.length!r}; it must be at least 1, a whole number")
        if not isinstance(self.adaptive, bool):
            raise InputError(f"chain adaptive is {self.adaptive!r}; it must be true or false")
        for name in ("threshold", "target_acceptance"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
                raise InputError(f"chain {name} is {value!r}; it must lie from 0 to 1")

    @property
    def varies(self) -> bool:
        return self.adaptive

    @property
    def depth(self) -> int:
        return self.length

    @property
    def most_rows(self) -> int:
        return self.length

    @property
    def most_nodes(self) -> int:
        return self.length

    @property
    def fewest_nodes(self) -> int:
        return 1

    @property
    def level_rows(self) -> int:
        return 1

    def levels(self, num_nodes: int) -> int:
        return num_nodes

    def cut(self, max_depth: int) -> Chain:
        return self if max_depth >= self.length else replace(self, length=max_depth)

    @cached_property
    def exit_rule(self) -> ExitRule:
        """What is carried over from prompt to prompt."""
        return ExitRule(self.length, self.threshold, self.target_acceptance if self.adaptive else None)

    def for_generation(self, rule: DecodingRule) -> ExitRule:
        return self.exit_rule.for_generation()

    def for_drafter(self) -> Chain:
        return replace(self)

    def options(self) -> dict[str, Any]:
        return {"tree": "chain", "length": self.length}


class Tree(Shape):
    """A shape that is grown level by level (`growth.py`)."""

    is_plain: ClassVar[bool] = True
    """Whether growing is all that is done with it: nobody looks on."""

    @abstractmethod
    def cut(self, max_depth: int) -> Tree:
        """The same shape, at most `max_depth` deep."""

    @abstractmethod
    def num_children(self, depth: int) -> int:
        """Children to attach to each node that was run, at this depth (1, 2, ...)."""

    @abstractmethod
    def choose(self, level: DraftTree, confidence: Tensor) -> Tensor:
        """[w] indices of the nodes of a new level to run next. confidence: [nodes] of each under its parent, log."""

    @abstractmethod
    def keep(self, tree: DraftTree, chosen: Tensor) -> DraftTree:
        """The draft. tree: all nodes, shallower first; chosen: indices of those that `choose` picked, all levels."""

    def for_generation(self, rule: DecodingRule) -> ShapeInUse:
        return ShapeInUse(self)


@dataclass(frozen=True, kw_only=True)
class Dynamic(Tree):
    """Size of a dynamic tree."""

    kind: ClassVar[Kind] = "dynamic"

    width: int = 4
    """Nodes run together at each level, and children attached to each, at most."""
    depth: int = 3
    """Levels below the root."""
    total: int = 12
    """Drafted nodes kept for verification. The root does not count: the EAGLE-2 paper's trees of 60 are 59 here."""

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"tree {name} is {value!r}; it must be at least 1, a whole number")
            if value > limit:
                raise InputError(f"tree {name} is {value}; it must be at most {limit}")

    @property
    def most_rows(self) -> int:
        return 1 + self.width * (self.depth - 1)

    @property
    def most_nodes(self) -> int:
        return min(self.total, self.width + (self.depth - 1) * self.width**2)  # what is kept, of what is attached

    @property
    def level_rows(self) -> int:
        return self.width

    def cut(self, max_depth: int) -> Dynamic:
        return self if max_depth >= self.depth else replace(self, depth=max_depth)

    def num_children(self, depth: int) -> int:
        return self._useful(depth - 1)

    def choose(self, level: DraftTree, confidence: Tensor) -> Tensor:
        return level.log_value.sort(descending=True, stable=True).indices[: self._useful(level.max_depth)]

    def _useful(self, depth: int) -> int:
        """Nodes of this depth, best first, that can have a child among the `total`, and children that a node can have.

        A child is kept with its own ancestors and after all nodes of higher value: those of its parent's depth that
        come before the parent, and those of its own that come before it.
        """
        return max(1, min(self.width, self.total - depth))

    def keep(self, tree: DraftTree, chosen: Tensor) -> DraftTree:
        return rerank(tree, self.total)

    def as_dynamic(self) -> Dynamic:
        """A dynamic tree whose levels and passes cost as much at most: itself."""
        return self

    def sizes(self) -> None:
        """Of the trees that are part of it: all."""

    def sized(self, size: Size) -> Dynamic:
        """The tree of this size."""
        return replace(self, depth=size.depth, total=size.total)

    def look(self, size: Size, show: Callable[[DraftTree], None]) -> Dynamic:
        """The whole tree, of which all candidates are shown and `size.total` nodes kept."""
        return _DynamicLook(width=self.width, depth=self.depth, total=self.total, num_kept=size.total, show=show)

    def options(self) -> dict[str, Any]:
        return {"width": self.width, "depth": self.depth, "total": self.total}


_PAPER = ((30e9, 48), (10e9, 50), (3e9, 60))  # parameters from which on, drafted tokens (arXiv 2406.16858, section 4)


def default_tree(num_parameters: int) -> Dynamic:
    """The paper's tree for a target of this size; for small targets, which are slowed by every row, a small one."""
    for least, total in _PAPER:
        if num_parameters >= least:
            return Dynamic(width=10, depth=6, total=total)
    return Dynamic(width=8, depth=5, total=20)


class Static(Tree):
    """A tree of the same ranks at every cycle, as a table for the growth of `growth.py`.

    A node is named by its path of ranks: (0, 2) is the third-best child of the best child of the root.
    """

    kind: ClassVar[Kind] = "static"

    def __init__(self, paths: Iterable[Path]) -> None:
        """paths: one a node, in any order, each with its parent's. Raises InputError for a node without its parent."""
        self.paths = tuple(sorted(set(paths), key=lambda path: (len(path), path)))
        self._cuts: dict[int, Static] = {}
        self._tables: dict[torch.device, _Table] = {}
        known = {(), *self.paths}
        orphan = next((path for path in self.paths if path[:-1] not in known or not path), None)
        if orphan is not None or not self.paths:
            raise InputError(f"a static tree needs every node's parent; {orphan} has none")

    @classmethod
    def published(cls, name: str, vocab_size: int) -> Static:
        """A published tree: `static` for Medusa's default, or a Medusa tree's name. Raises InputError for another."""
        if name not in ("static", *TREES):
            raise unknown_choice("tree", str(name), ("dynamic", "static", *TREES))
        return cls(published_tree(DEFAULT if name == "static" else name)).within(vocab_size)

    def within(self, vocab_size: int) -> Static:
        """The tree without ranks that a vocabulary of this size does not have."""
        return Static(path for path in self.paths if max(path) < vocab_size)

    @property
    def depth(self) -> int:
        return len(self.paths[-1])

    @property
    def most_nodes(self) -> int:
        return len(self.paths)

    @cached_property
    def most_rows(self) -> int:
        return 1 + sum(len(rows) for rows in self._rows[1:])

    @property
    def level_rows(self) -> int:
        return max((len(rows) for rows in self._rows[1:]), default=1)

    def cut(self, max_depth: int) -> Static:
        if max_depth >= self.depth:
            return self
        if max_depth not in self._cuts:
            self._cuts[max_depth] = Static(path for path in self.paths if len(path) <= max_depth)
        return self._cuts[max_depth]

    def as_dynamic(self) -> Dynamic:
        """A dynamic tree whose levels and passes cost as much at most."""
        return Dynamic(width=self.level_rows, depth=self.depth, total=max(self.most_nodes, self.level_rows))

    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(levels, nodes) of the trees that are the first levels of it."""
        return tuple((depth, self.cut(depth).most_nodes) for depth in range(1, self.depth + 1))

    def sized(self, size: Size) -> Static:
        """Its first levels."""
        return self.cut(size.depth)

    def look(self, size: Size, show: Callable[[DraftTree], None]) -> Static:
        """The whole tree, shown, of which the first levels are kept."""
        return _StaticLook(self.paths, size.depth, show)

    def options(self) -> dict[str, Any]:
        name = next((name for name in TREES if set(published_tree(name)) == set(self.paths)), None)
        return {} if name is None else {"tree": name}  # EAGLE-1 has no other tree than its own

    def num_children(self, depth: int) -> int:
        return self._num_children[depth]

    def choose(self, level: DraftTree, confidence: Tensor) -> Tensor:
        return self._table(level.tokens.device).chosen[level.max_depth]

    def keep(self, tree: DraftTree, chosen: Tensor) -> DraftTree:
        return select_nodes(tree, self._table(tree.tokens.device).kept)

    # Growth attaches num_children(d) nodes to each row of depth d - 1: a path's place among them follows from its ranks

    @cached_property
    def _rows(self) -> list[list[Path]]:
        """The paths that have children, by depth, the root's first."""
        inner = {path[:-1] for path in self.paths}
        return [[path for path in ((), *self.paths) if len(path) == depth and path in inner] for depth in self._depths]

    @property
    def _depths(self) -> range:
        return range(self.depth + 1)

    @cached_property
    def _num_children(self) -> list[int]:
        return [1 + max((path[-1] for path in self.paths if len(path) == d), default=0) for d in self._depths]

    def _place(self, path: Path) -> int:
        """Index of a node among those attached at its depth."""
        depth = len(path)
        return self._rows[depth - 1].index(path[:-1]) * self._num_children[depth] + path[-1]

    def _table(self, device: torch.device) -> _Table:
        if device not in self._tables:
            places = [[self._place(path) for path in rows] if depth else [] for depth, rows in enumerate(self._rows)]
            sizes = [len(rows) * k for rows, k in zip(self._rows, self._num_children[1:], strict=False)]  # of levels
            kept = sorted(sum(sizes[: len(path) - 1]) + self._place(path) for path in self.paths)
            chosen = [torch.tensor(level, dtype=torch.int64, device=device) for level in places]
            self._tables[device] = _Table(chosen, torch.tensor(kept, dtype=torch.int64, device=device))
        return self._tables[device]


@dataclass(frozen=True, slots=True)
class _Table:
    """The answers of a static tree on one device."""

    chosen: list[Tensor]
    kept: Tensor


class Auto(Shape):
    """Trees none larger than `largest`, each sized by what it costs and brings (`sizes.py`), or none at all.

    Carried over from prompt to prompt, and shared by generations that take turns: a cycle learns if no other one is
    learning, so no tree is taken for another's, and an estimate is that of all their texts. Cycles that run beside one
    that learns, in other threads, take the best size as it is known.
    Greedy and sampled texts have estimates of their own: less is accepted of the same drafts when sampling.
    """

    kind: ClassVar[Kind] = "dynamic"
    by_cost: ClassVar[bool] = True

    def __init__(self, largest: Dynamic | Static) -> None:
        self.largest = largest
        self.costs: Costs | None = None
        """To be measured before the first tree."""
        self._choosers: dict[tuple[type[DecodingRule], float], SizeChooser] = {}
        self._measuring = threading.Lock()

    @property
    def depth(self) -> int:
        return self.largest.depth

    @property
    def most_rows(self) -> int:
        return self.largest.most_rows

    @property
    def most_nodes(self) -> int:
        return self.largest.most_nodes

    @property
    def level_rows(self) -> int:
        return self.largest.level_rows

    def cut(self, max_depth: int) -> Auto:
        return self if max_depth >= self.depth else type(self)(self.largest.cut(max_depth))

    def options(self) -> dict[str, Any]:
        options = self.largest.options()
        return {**options, "total": f"auto:{options['total']}"} if "total" in options else {**options, "total": "auto"}

    def for_generation(self, rule: DecodingRule) -> ShapeInUse:
        """Temperatures count to the first decimal place."""
        kind = type(rule), round(rule.temperature, 1)
        if kind not in self._choosers:
            largest = self.largest
            first, among = largest.level_rows + largest.depth, largest.sizes()
            self._choosers.setdefault(kind, SizeChooser(largest.depth, largest.most_nodes, first, among))
        return _ChosenShape(self, self._choosers[kind])

    def need_costs(self, measure: Callable[[Dynamic], Costs]) -> None:
        with self._measuring:  # generations that begin now wait for the costs
            if self.costs is None:
                self.costs = measure(self.largest.as_dynamic())

    def forget_costs(self) -> None:
        self.costs = None

    def scale_draft_costs(self, factor: float) -> None:
        if self.costs is not None:
            self.costs = replace(self.costs, draft_s=tuple(factor * seconds for seconds in self.costs.draft_s))


class AutoStatic(Auto):
    """As many whole levels of a static tree as pay."""

    kind: ClassVar[Kind] = "static"


class ShapeInUse:
    """The shape of a drafter's trees in one generation: the same at every cycle."""

    def __init__(self, shape: Tree) -> None:
        self._shape = shape

    def next(self) -> Tree | None:
        """The tree of the cycle that begins; None: none, since it would not pay."""
        return self._shape

    def prospect(self) -> Prospect | None:
        """What a draft of the next cycle is expected to bring and take; None: not known."""
        return None

    def price(self, tree: DraftTree) -> float:
        """Of a cycle that drafted this tree, in plain ones, where sizes follow cost."""
        return 1.0

    def record_tree(self, observed: Observed) -> None:
        """What became of the cycle's tree."""

    def record_times(self, seconds: Mapping[Part, float]) -> None:
        """What the cycle took."""


class _ChosenShape(ShapeInUse):
    """The shape in use of an `Auto`: chosen anew each cycle."""

    def __init__(self, auto: Auto, chooser: SizeChooser) -> None:
        super().__init__(auto.largest)
        self._auto, self._chooser = auto, chooser
        self._before: CycleTimes | None = None
        self._first = True
        self._learns: bool | None = None  # whether this cycle does; None: not known yet

    def next(self) -> Tree | None:
        costs = self._auto.costs
        self._learns = costs is not None and self._chooser.take_turn(self)
        size = self._chooser.next(costs) if costs is not None and self._learns else self._chooser.in_use()
        if size is None or costs is None:  # None: forgotten meanwhile
            return None
        largest = self._auto.largest
        return largest.look(size, self._chooser.record_candidates) if size.look else largest.sized(size)

    def prospect(self) -> Prospect | None:
        return None if self._auto.costs is None else self._chooser.prospect()

    def price(self, tree: DraftTree) -> float:
        costs = self._auto.costs
        return 1.0 if costs is None else self._chooser.price(costs, tree.max_depth, tree.num_nodes)

    def record_tree(self, observed: Observed) -> None:
        if observed.tree is not None and self._is_learning():
            self._chooser.record_tree(observed.tree, len(observed.path))

    def record_times(self, seconds: Mapping[Part, float]) -> None:
        """A generation's first cycle is no neighbour: it does what no other has to."""
        times = self._chooser.record_times(seconds, self._before) if self._is_learning() else None
        self._before = None if self._first else times
        self._first = False
        if self._learns:
            self._chooser.end_turn()
        self._learns = None

    def _is_learning(self) -> bool:
        """A cycle may have no room to draft, and so never ask for a tree."""
        if self._learns is None:
            self._learns = self._chooser.take_turn(self)
        return self._learns


@dataclass(frozen=True, kw_only=True)
class _DynamicLook(Dynamic):
    """Shows all candidates for `total` nodes, and keeps the best few."""

    is_plain: ClassVar[bool] = False

    num_kept: int
    show: Callable[[DraftTree], None]

    def keep(self, tree: DraftTree, chosen: Tensor) -> DraftTree:
        self.show(tree)
        return rerank(tree, self.num_kept)


class _StaticLook(Static):
    """Shows all nodes, and keeps some levels."""

    is_plain: ClassVar[bool] = False

    def __init__(self, paths: Iterable[Path], num_levels: int, show: Callable[[DraftTree], None]) -> None:
        super().__init__(paths)
        self._num_levels, self._show = num_levels, show

    def keep(self, tree: DraftTree, chosen: Tensor) -> DraftTree:
        whole = super().keep(tree, chosen)
        self._show(whole)
        return whole.cut(self._num_levels)


def sized(given: Mapping[str, Any], default: Dynamic) -> Dynamic | Auto:
    """The dynamic tree of a method that was given some of width, depth and total.

    total: a number fixes the size. "auto", which is the default, sizes trees by measured cost, none larger than
    `default`; with "auto:40" they have up to 40 nodes. Raises InputError for anything else.
    """
    total = given.get("total", "auto")
    sizes = {name: value for name, value in given.items() if name != "total"}
    if not isinstance(total, str):
        return replace(default, **sizes, total=total)
    name, _, most = total.partition(":")
    if name != "auto" or (total != name and not most.isdecimal()):
        raise InputError(f"tree total is {total!r}; it must be a whole number, 'auto', or 'auto:40' for at most 40")
    return Auto(replace(default, **sizes, **({"total": int(most)} if most else {})))
