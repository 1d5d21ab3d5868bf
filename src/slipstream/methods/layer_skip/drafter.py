"""Self-speculative decoding (Draft & Verify, Zhang et al. 2024, arXiv 2309.08168).

The target drafts for itself with some of its attention and MLP sub-layers skipped, and verifies in one full pass. The
draft reads the target's exact KV of the prefix in the layers it keeps and writes its own from slot `length` on, which
verification overwrites: no extra weights, no second cache. The root's KV is not in the cache, so it is run first.

Two shapes of draft: the published chain, which ends early when the draft is unsure (section 3.3, adaptive threshold),
and a dynamic tree in which the skipping target plays EAGLE-2's draft head (`growth.py`), of fixed size or sized by
measured cost. What a level costs hangs on the skip set: a set that adapts rescales the measured costs of levels, by the
costs of the sub-layers that it keeps, whenever it changes.
"""

from __future__ import annotations

from torch import Tensor

from slipstream.core.confidence import ConfidenceScale
from slipstream.drafting.base import Drafting, Generation, Observed
from slipstream.drafting.drafter import ModelDrafter
from slipstream.drafting.expander import DraftLogits, DraftStage, Expander
from slipstream.drafting.growth import Frontier
from slipstream.drafting.shape import Dynamic, Shape
from slipstream.methods.layer_skip.adapt import AdaptiveSkipSet, AdaptSettings
from slipstream.methods.layer_skip.comparison import Comparisons
from slipstream.runtime.kept_costs import KeptCosts
from slipstream.runtime.sublayer_costs import CostTable, measure_sublayers
from slipstream.skipping.plan import SkipPlan
from slipstream.skipping.resolve import SkipSetLike, resolve_skip_set
from slipstream.skipping.skip_set import SkipSet
from slipstream.skipping.sublayers import SubLayers
from slipstream.target.target import Target

_TIMED_PREFIX = 64  # tokens in the cache while costs are measured


class LayerSkipDrafter(ModelDrafter):
    """The target with sub-layers skipped, as its own drafter."""

    name = "layer-skip"

    def __init__(
        self,
        target: Target,
        skip_set: SkipSetLike = None,
        shape: Shape | None = None,
        *,
        adapt: AdaptSettings | None = None,
    ) -> None:
        """skip_set: a `SkipSet`, a JSON file, lists, or None for the built-in default of this depth.

        adapt: refine the set while it is in use, starting from `skip_set`; None: it stays.

        Raises LayerSkipUnsupportedError where the target's sub-layers cannot be skipped, SkipSetError where the set
        does not fit it.
        """
        super().__init__(target, shape or Dynamic())
        self.sublayers = SubLayers.find(target.model)
        self.draft_with(resolve_skip_set(skip_set, self.sublayers, target.hash))
        self.adaptive = None if adapt is None else self._adapting(adapt)
        if self.shape.kind == "dynamic":  # a chain's exit rule takes probabilities as they are, as published
            self.confidence = ConfidenceScale.of(self.skip_set.provenance.get("confidence_scale"))

    def _adapting(self, adapt: AdaptSettings) -> AdaptiveSkipSet:
        width, per_level = self.shape.level_rows, round(self.shape.most_nodes / self.shape.depth)
        return AdaptiveSkipSet(self.skip_set, adapt, level_rows=width, num_children=min(width, max(1, per_level)))

    def draft_with(self, skip_set: SkipSet) -> None:
        """Draft with this set from the next generation on: what drafting costs is measured anew."""
        self._take(skip_set)
        self.shape.forget_costs()

    def adapt_to(self, skip_set: SkipSet) -> None:
        """Draft with this set from the next pass on: what drafting costs follows from the sub-layers it keeps."""
        assert self.adaptive is not None
        before, after = (self.adaptive.draft_seconds(one, self.shape.depth) for one in (self.skip_set, skip_set))
        self._take(skip_set)
        self.shape.scale_draft_costs(after / before)

    def _take(self, skip_set: SkipSet) -> None:
        self.skip_set = skip_set
        self.skipped_fraction = self.sublayers.skipped_fraction(skip_set)
        self.plan = self.sublayers.plan(skip_set)

    def expander(self, generation: Generation) -> LayerSkipExpander:
        return LayerSkipExpander(self, generation)

    def start(self, generation: Generation) -> Drafting:
        if self.adaptive is not None:
            with self.adaptive.lock:  # other generations that begin now wait for the costs
                self._measure_sublayers(self.adaptive)
        return super().start(generation)

    def _measure_sublayers(self, adaptive: AdaptiveSkipSet) -> None:
        if adaptive.costs is None:
            widths = sorted({1, adaptive.level_rows, 1 + self.shape.most_nodes, adaptive.settings.trial_rows})
            adaptive.costs = KeptCosts(self.target).get(
                f"sub-layers at {', '.join(map(str, widths))} rows",
                CostTable,
                lambda: measure_sublayers(self.target, self.sublayers.parts, widths, _TIMED_PREFIX),
            )

    @property
    def cost_name(self) -> str:
        return f"{self.name} without attention {list(self.skip_set.attention)}, MLP {list(self.skip_set.mlp)}"

    @property
    def varies(self) -> bool:
        return super().varies or self.adaptive is not None

    @property
    def draft_slots(self) -> int:
        drafted = max(self.shape.most_rows, 1 + self.shape.most_nodes)
        return drafted if self.adaptive is None else max(drafted, self.adaptive.settings.trial_rows)

    def forward(
        self, generation: Generation, tokens: Tensor, depth: int, visible: Tensor, *, plan: SkipPlan | None = None
    ) -> Tensor:
        """The skipping target's logits [w, vocab] for draft rows of one depth; they go to the next free draft slots.

        tokens: [w]. visible: [w, draft rows run before + w] bool. plan: of the set to skip, by default that in use.
        """
        start = generation.length + visible.shape[1] - visible.shape[0]
        positions, model = (generation.cache.lengths + depth).expand_as(tokens), (plan or self.plan).model
        output = self.target.forward(tokens, positions, visible, generation.cache, start=start, instead=model)
        return output.logits[0]


class LayerSkipExpander(Expander):
    """The skipping target at work on one generation. The set may change before a draft is begun, never within one,
    though another generation may have changed it meanwhile.
    """

    def __init__(self, drafter: LayerSkipDrafter, generation: Generation) -> None:
        self._drafter, self._generation, self._plan = drafter, generation, drafter.plan
        adaptive = drafter.adaptive
        self._comparisons = (
            None if adaptive is None else Comparisons(adaptive, drafter.sublayers, generation, drafter.adapt_to)
        )

    def catch_up(self, observed: Observed) -> None:
        tree, adaptive = observed.tree, self._drafter.adaptive
        if adaptive is not None and tree is not None and tree.num_nodes > 0:
            with adaptive.lock:
                adaptive.record_cycle(len(observed.path), tree.max_depth, tree.num_nodes)

    def begin(self, shape: Shape) -> int:
        if self._comparisons is not None:
            self._comparisons.advance()
        self._plan = self._drafter.plan
        return shape.depth

    def stage(self) -> DraftStage | None:
        target, cache = self._drafter.target, self._generation.cache
        return DraftStage(target.executor, self._plan.model, cache, (), lambda: None) if target.may_replay else None

    def expand(self, frontier: Frontier) -> DraftLogits:
        logits = self._drafter.forward(
            self._generation, frontier.tokens, frontier.depth, frontier.visible, plan=self._plan
        )
        return DraftLogits(logits)
