"""The drafter of every method that drafts with a model: it supplies an expander, the shape picks the skeleton."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from slipstream.core.rules import GreedyRule
from slipstream.core.tree import empty_tree
from slipstream.drafting.base import Drafter, Drafting, Generation, Observed
from slipstream.drafting.chain import ChainDrafting
from slipstream.drafting.expander import Expander
from slipstream.drafting.shape import Dynamic, Shape, Static, default_tree, sized
from slipstream.drafting.tree import TreeDrafting
from slipstream.errors import InputError
from slipstream.runtime.costs import Costs, LevelCosts, Measured, measure_levels
from slipstream.runtime.kept_costs import KeptCosts
from slipstream.target.target import Target

SKELETONS: dict[str, Callable[..., Drafting]] = {
    "chain": ChainDrafting,
    "dynamic": TreeDrafting,
    "static": TreeDrafting,
}
"""By the kind of the shape."""

_MEASURED_TEXT = 32  # tokens of the text on which drafting is timed
_CONTEXT = 64  # cached tokens after which passes are priced for sizes of trees


class ModelDrafter(Drafter):
    """A drafter with a model, and the shape of its drafts. An `Auto`'s costs are measured at the first generation."""

    longest_text: int | None = None
    """Tokens up to which the model can draft, where it has a limit of its own."""

    def __init__(self, target: Target, shape: Shape) -> None:
        self.target, self.shape = target, shape.for_drafter()

    @abstractmethod
    def expander(self, generation: Generation) -> Expander:
        """The model at work on a new generation."""

    def start(self, generation: Generation) -> Drafting:
        self.shape.need_costs(self.measure)
        in_use = self.shape.for_generation(generation.rule)
        return SKELETONS[self.shape.kind](self.expander(generation), in_use, generation)

    @property
    def varies(self) -> bool:
        return self.shape.varies

    @property
    def draft_slots(self) -> int:
        return 1 + self.shape.most_nodes

    @property
    def cost_name(self) -> str:
        """Names what its levels cost besides their width: another drafter for this target, another name."""
        modules = [one for one in vars(self).values() if isinstance(one, nn.Module)]
        modules += [one.model for one in vars(self).values() if isinstance(one, Target) and one is not self.target]
        return f"{self.name} of {sum(tensor.numel() for one in modules for tensor in one.parameters())} parameters"

    def other_readings(self) -> Sequence[Mapping[str, Any]]:
        """Options of `load` that read the model's files in other plausible ways; none where they leave no doubt."""
        return ()

    def measure(self, largest: Dynamic) -> Costs:
        """What verifying and drafting cost for trees up to `largest`, as this machine has it or measured now."""
        kept = KeptCosts(self.target)
        return Costs.of(kept.passes(), self.level_costs(kept, largest), context=_CONTEXT, depth=largest.depth)

    def level_costs(self, kept: KeptCosts, largest: Dynamic) -> LevelCosts:
        """What drafting the levels of such trees costs."""
        name = f"{self.cost_name}, {largest.depth} of width {largest.width}"
        return kept.levels(name, lambda: self._measure_levels(largest))

    @torch.inference_mode()
    def _measure_levels(self, largest: Dynamic) -> Measured:
        """Time the drafting of cycles that commit one token each."""
        target, device, count = self.target, self.target.device, _MEASURED_TEXT
        if self.longest_text is not None:
            count = max(1, min(count, self.longest_text - largest.depth))
        rule, cache = GreedyRule(), target.new_cache(largest.most_rows)
        text = torch.zeros(count - 1, dtype=torch.int64, device=device)
        if count > 1:
            positions = torch.arange(count - 1, device=device)
            target.forward(text, positions, target.causal(count - 1), cache, last_logits_only=True)
            cache.commit(None, count - 1)
        generation = Generation(target, cache, rule, [0] * count, count)
        drafting = TreeDrafting(self.expander(generation), largest.for_generation(rule), generation)
        features = torch.zeros(1, self.features.width(target.config.hidden_size), dtype=target.dtype, device=device)
        committed = Observed(tokens=[0], features=features, tree=empty_tree(device))

        def draft(levels: int) -> None:
            generation.max_depth = levels
            drafting.observe(committed)
            drafting.propose()

        target.executor.settle([partial(draft, largest.depth)])
        return measure_levels(device, largest.level_rows, largest.depth, draft)


def fit_to_heads(shape: Shape, num_heads: int) -> Shape:
    """The shape for drafters with one head a level: a static tree is cut to as many levels as there are heads.

    Raises InputError for a dynamic tree that is deeper.
    """
    if shape.kind == "static":
        return shape.cut(num_heads)
    if shape.depth > num_heads:
        raise InputError(
            f"tree depth is {shape.depth}, but each level takes a head and there are {num_heads}; set depth "
            f"to at most {num_heads}"
        )
    return shape


def head_shape(method: str, target: Target, num_heads: int, options: Mapping[str, Any]) -> Shape:
    """The tree that options ask for, of a method with one head a level. Option `tree`: "dynamic", "static" for the one
    that the released codes of Medusa and Hydra draft, or the name of another published tree.

    A dynamic tree has one level a head, at most those of the default for this target's size, and is sized by measured
    cost unless a total is given. Raises InputError for another tree, or sizes for a static one.
    """
    tree = options.get("tree", "dynamic")
    given = {one.name: options[one.name] for one in fields(Dynamic) if one.name in options}
    if tree == "dynamic":
        default = default_tree(target.model.num_parameters())
        return sized(given, replace(default, depth=min(num_heads, default.depth)))
    shape = Static.published(tree, target.vocab_size)
    if given:
        raise InputError(f"{method} with tree={tree!r} does not read {', '.join(given)}; leave it out or change tree")
    return shape
