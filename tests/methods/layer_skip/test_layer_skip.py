"""Layer-skip at unit level: its exit rule, what it drafts, and what drafting may touch.

That its output is the target's own is tested for every family in test_families.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from transformers import DynamicCache, PreTrainedModel

from families import VOCAB_SIZE
from random_trees import path_to, token_paths
from slipstream.core.logits import ProcessingSettings
from slipstream.core.rules import DecodingRule, make_rule
from slipstream.core.sampling import SamplingSettings
from slipstream.core.tree import DraftTree, chain
from slipstream.drafting.base import Generation, Observed
from slipstream.drafting.shape import Auto, Chain, Dynamic, Shape
from slipstream.drafting.tree import TreeDrafting
from slipstream.engine.engine import Engine
from slipstream.engine.sequence import Request
from slipstream.errors import InputError
from slipstream.methods.layer_skip.drafter import LayerSkipDrafter
from slipstream.methods.plain import PlainDrafter
from slipstream.methods.registry import build_drafter
from slipstream.runtime.clock import PARTS
from slipstream.runtime.costs import Costs
from slipstream.skipping.sublayers import SubLayers
from slipstream.target.arguments import cache_argument
from slipstream.target.target import Target

PROMPT = [5, 17, 3, 40, 22, 9, 61, 17, 3]
SKIP = {"attention": [1], "mlp": [0]}


@pytest.fixture
def target(family_model: Callable[[str], PreTrainedModel]) -> Target:
    return Target(family_model("llama"))


def chain_drafter(target: Target, **settings: float) -> LayerSkipDrafter:
    return LayerSkipDrafter(target, SKIP, Chain(**settings))


def rule_for(temperature: float, verification: str = "coupled") -> DecodingRule:
    processing = ProcessingSettings(prompt_length=len(PROMPT), max_length=99, temperature=temperature)
    sampling = SamplingSettings(seed=3, verification=verification)
    return make_rule(processing, sampling, VOCAB_SIZE, torch.device("cpu"))


def prefilled(
    target: Target, drafter: LayerSkipDrafter, rule: DecodingRule | None = None, max_depth: int = 50
) -> Generation:
    """A generation whose prompt is cached up to its last token, the root."""
    run = Generation(
        target, target.new_cache(drafter.draft_slots), rule or rule_for(0.0), PROMPT, len(PROMPT), max_depth
    )
    n = len(PROMPT) - 1
    target.forward(torch.tensor(PROMPT[:-1]), torch.arange(n), target.causal(n), run.cache)
    run.cache.commit(None, n)
    run.rule.begin(n)
    return run


# -- the adaptive threshold ---------------------------------------------------------------------------------------


def test_the_threshold_learns_from_verified_chains_and_is_carried_over(target: Target) -> None:
    drafter = chain_drafter(target)
    run = prefilled(target, drafter)
    drafting = drafter.start(run)
    tree = chain(torch.tensor([1, 2, 3]))
    drafting.observe(Observed(tokens=[1, 2], features=None))  # a prefill chunk says nothing about drafts
    assert drafter.shape.exit_rule.gamma == 0.6
    for _ in range(3):
        drafting.observe(Observed(tokens=[9], features=None, tree=tree, path=()))
    expected = drafter.shape.exit_rule.gamma
    assert expected > 0.6
    assert drafter.start(run).exit_rule.gamma == drafting.exit_rule.gamma == expected


def test_another_generation_does_not_disturb_the_average_of_this_one(target: Target) -> None:
    """The average of accepted / drafted belongs to a generation: after two good chains a bad one leaves it high."""
    good, bad = (chain(torch.tensor([1, 2, 3])), (0, 1, 2)), (chain(torch.tensor([1, 2, 3])), ())
    gammas = []
    for interleaved in (False, True):
        drafter = chain_drafter(target, target_acceptance=0.3)
        drafting = drafter.start(prefilled(target, drafter))
        for tree, path in (good, good, bad):
            drafting.observe(Observed(tokens=[9], features=None, tree=tree, path=path))
            if interleaved:
                drafter.start(prefilled(target, drafter))
        gammas.append(drafter.shape.exit_rule.gamma)
    assert gammas[0] == gammas[1] < 0.6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"length": 0}, "length is 0; it must be at least 1"),
        ({"length": "many"}, "length is 'many'; it must be at least 1, a whole number"),
        ({"threshold": "high"}, "threshold is 'high'; it must lie from 0 to 1"),
        ({"adaptive": "no"}, "adaptive is 'no'; it must be true or false"),
        ({"threshold": -0.1}, "threshold is -0.1; it must lie from 0 to 1"),
        ({"target_acceptance": 1.5}, "target_acceptance is 1.5; it must lie from 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Chain(**wrong)


def test_an_unknown_kind_of_tree_is_refused(target: Target) -> None:
    with pytest.raises(InputError, match="dynamic"):
        build_drafter("layer-skip", target, {"tree": "dynamc"})


# -- the chain's exit -----------------------------------------------------------------------------------------------


def chain_with_confidences(target: Target, confidences: list[float], **settings: float) -> DraftTree:
    """The chain that is drafted when its tokens 0, 1, 2, ... have these probabilities."""
    drafter = chain_drafter(target, adaptive=False, **settings)

    def forward(run: Generation, tokens: Tensor, depth: int, visible: Tensor, **others: object) -> Tensor:
        rest = (1.0 - confidences[depth]) / (VOCAB_SIZE - 1)
        row = torch.full((1, VOCAB_SIZE), math.log(max(rest, 1e-30)))
        row[0, depth] = math.log(confidences[depth])
        return row

    drafter.forward = forward  # type: ignore[method-assign]  # the draft's logits are what the test decides
    return drafter.start(prefilled(target, drafter, max_depth=len(confidences))).propose()


@pytest.mark.parametrize(
    ("confidences", "num_drafted"),
    [
        ([0.9, 0.8, 0.5, 0.9], 3),  # the unsure third token stays
        ([0.5, 0.9, 0.9, 0.9], 1),
        ([0.9, 0.9, 0.9, 0.5], 4),
        ([0.9, 0.9, 0.9, 0.9], 4),
    ],
)
def test_a_chain_ends_with_its_first_unsure_token(target: Target, confidences: list[float], num_drafted: int) -> None:
    tree = chain_with_confidences(target, confidences, threshold=0.6)
    assert tree.tokens.tolist() == list(range(num_drafted))
    expected = torch.tensor(confidences[:num_drafted]).log().cumsum(0)
    torch.testing.assert_close(tree.log_value, expected)


def test_a_chain_is_no_longer_than_its_length_and_the_room(target: Target) -> None:
    assert chain_with_confidences(target, [0.9] * 9, length=5).num_nodes == 5
    assert chain_with_confidences(target, [0.9] * 3, length=5).num_nodes == 3


@pytest.mark.parametrize(("threshold", "num_drafted"), [(0.0, 7), (1.0, 1)])
def test_extreme_thresholds_draft_everything_or_one_token(target: Target, threshold: float, num_drafted: int) -> None:
    drafter = chain_drafter(target, length=7, threshold=threshold)
    assert drafter.start(prefilled(target, drafter)).propose().num_nodes == num_drafted


# -- what is drafted --------------------------------------------------------------------------------------------------


class Reference:
    """The skipping target over transformers' own cache: exact KV of the prefix, then one drafted token at a time."""

    def __init__(self, target: Target) -> None:
        self.model, self.sublayers = target.model, SubLayers.find(target.model)
        self.skip_set = LayerSkipDrafter(target, SKIP).skip_set
        self.name = cache_argument(target.model.forward)

    @torch.inference_mode()
    def logits(self, path: tuple[int, ...]) -> Tensor:
        """Draft logits after PROMPT + path, [1, vocab]."""
        cache = DynamicCache()
        self.model(torch.tensor([PROMPT[:-1]]), **{self.name: cache})
        skipping = self.sublayers.plan(self.skip_set).model
        for position, token in enumerate([PROMPT[-1], *path], start=len(PROMPT) - 1):
            output = skipping(torch.tensor([[token]]), position_ids=torch.tensor([[position]]), **{self.name: cache})
        return output.logits[0]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@torch.inference_mode()
def test_the_chain_is_what_the_skipping_target_says(target: Target, temperature: float) -> None:
    drafter, reference = chain_drafter(target, length=5, threshold=0.0), Reference(target)
    run = prefilled(target, drafter, rule_for(temperature))
    tree = drafter.start(run).propose()
    path: tuple[int, ...] = ()
    for depth, token in enumerate(tree.tokens.tolist(), start=1):
        assert token == int(run.rule.draw(reference.logits(path), depth).token)
        path = (*path, token)


@torch.inference_mode()
def test_a_sampled_chain_carries_the_distributions_it_was_drawn_from(target: Target) -> None:
    drafter, reference = chain_drafter(target, length=4, threshold=0.0), Reference(target)
    tree = drafter.start(prefilled(target, drafter, rule_for(0.8, "rejection"))).propose()
    assert tree.q is not None
    for depth, q in enumerate(tree.q):
        expected = (reference.logits(tuple(tree.tokens[:depth].tolist()))[0] / 0.8).softmax(dim=-1)
        torch.testing.assert_close(q, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@torch.inference_mode()
def test_the_dynamic_tree_holds_the_skipping_targets_values(target: Target, temperature: float) -> None:
    """Every node's value is the sum of confidences along its own path, siblings and other branches unseen."""
    drafter = LayerSkipDrafter(target, SKIP, shape=Dynamic(width=3, depth=3, total=12))
    reference, run = Reference(target), prefilled(target, drafter, rule_for(temperature))
    tree = drafter.start(run).propose()
    parents, paths = tree.parents.tolist(), token_paths(tree)
    assert {len(path) for path in paths} == {1, 2, 3}
    for node in range(tree.num_nodes):
        value = 0.0
        for step in path_to(parents, node):
            depth = len(paths[step])
            children = run.rule.children(reference.logits(paths[step][:-1]), depth, VOCAB_SIZE)
            value += float(children.log_confidence[children.tokens == tree.tokens[step]])
        assert float(tree.log_value[node]) == pytest.approx(value, abs=1e-5)


def test_a_tree_is_no_deeper_than_the_room(target: Target) -> None:
    drafter = LayerSkipDrafter(target, SKIP, shape=Dynamic(width=2, depth=4, total=12))
    tree = drafter.start(prefilled(target, drafter, max_depth=2)).propose()
    assert int(tree.depth.max()) == tree.max_depth == 2


def test_trees_are_sized_by_measured_cost_unless_a_total_is_given(target: Target) -> None:
    def shape(**options: object) -> Shape:
        return build_drafter("layer-skip", target, {"skip_set": SKIP, **options}).shape

    assert isinstance(shape(), Auto)
    assert (shape().options(), shape(total="auto", width=2, depth=3).options()) == (
        {"width": 4, "depth": 5, "total": "auto:20"},
        {"width": 2, "depth": 3, "total": "auto:20"},
    )
    assert shape(total=12) == Dynamic(width=4, depth=3, total=12)
    assert shape(tree="chain", length=3) == Chain(length=3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("level", "drafts"), [(0.0, True), (9.0, False)])
def test_a_set_that_does_not_pay_gives_way_to_plain_decoding(
    target: Target, level: float, drafts: bool, temperature: float
) -> None:
    drafter = LayerSkipDrafter(target, {"attention": [], "mlp": []}, Auto(Dynamic(width=2, depth=3, total=6)))
    drafter.shape.costs = Costs(((1, 1.0), (7, 1.0)), tuple(level * depth for depth in range(4)))
    drafter.shape.need_costs(drafter.measure)  # measured already
    shape = drafter.shape.for_generation(rule_for(temperature))
    generation, sizes = prefilled(target, drafter, rule_for(temperature)), []
    drafting = TreeDrafting(drafter.expander(generation), shape, generation)
    for _ in range(40):
        tree = drafting.propose()
        drafting.observe(Observed(tokens=[9], features=None, tree=tree, path=range(tree.max_depth)))
        rest_s, draft_s = 1.0, level * tree.max_depth
        drafting.end_cycle({**dict.fromkeys(PARTS, 0.0), "draft": draft_s, "verify": rest_s})
        sizes.append(tree.num_nodes)
    assert (min(sizes[9:31]) > 0) is drafts
    assert drafts or max(sizes[9:31]) == 0


# -- what drafting may touch: no extra memory ------------------------------------------------------------------------

DRAFTERS: dict[str, Callable[[Target], LayerSkipDrafter]] = {
    "chain": lambda target: chain_drafter(target, length=6, threshold=0.0),
    "dynamic": lambda target: LayerSkipDrafter(target, SKIP, shape=Dynamic(width=3, depth=4, total=5)),
    "large-total": lambda target: LayerSkipDrafter(target, SKIP, shape=Dynamic(width=3, depth=2, total=30)),
}
each_drafter = pytest.mark.parametrize("make", DRAFTERS.values(), ids=DRAFTERS)


def storages() -> dict[int, int]:
    """Bytes of every tensor storage alive, by address. A compiler's tensors that hold nothing have none."""
    gc.collect()
    kinds = [(thing, type(thing)) for thing in gc.get_objects()]  # isinstance wakes lazy objects
    tensors = [thing for thing, kind in kinds if issubclass(kind, Tensor) and not issubclass(kind, FakeTensor)]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@each_drafter
def test_a_drafter_adds_no_tensor_of_its_own(target: Target, make: Callable[[Target], LayerSkipDrafter]) -> None:
    before = storages()
    drafter = make(target)
    after = storages()
    added = {address: size for address, size in after.items() if address not in before}
    assert sum(added.values()) == 0
    assert drafter.draft_slots > 0


def test_the_count_of_storages_would_see_a_copy_of_one_weight(target: Target) -> None:
    before = storages()
    copy = target.model.get_input_embeddings().weight.detach().clone()
    added = {address: size for address, size in storages().items() if address not in before}
    assert sum(added.values()) == copy.numel() * copy.element_size()


@each_drafter
@torch.inference_mode()
def test_drafting_writes_draft_slots_and_nothing_else(
    target: Target, make: Callable[[Target], LayerSkipDrafter]
) -> None:
    drafter = make(target)
    run = prefilled(target, drafter)
    cache, length = run.cache, run.length
    for layer in cache.layers:
        layer.keys[:, :, length:] = layer.values[:, :, length:] = 777.0
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    weights = {name: weight.clone() for name, weight in target.model.named_parameters()}
    drafter.start(run).propose()
    assert cache.length == length
    assert cache.capacity == before[0][0].shape[2]
    for index, (layer, old) in enumerate(zip(cache.layers, before, strict=True)):
        for rows, old_rows in zip((layer.keys, layer.values), old, strict=True):
            changed = (rows != old_rows).any(dim=-1).any(dim=1)[0].nonzero().flatten().tolist()
            assert set(changed) <= set(range(length, length + drafter.draft_slots))
            assert bool(changed) is (index not in SKIP["attention"])  # a skipped attention writes nothing
    for name, weight in target.model.named_parameters():
        assert torch.equal(weight, weights[name])
    assert all("forward" not in module.__dict__ for module in target.model.modules())


def cache_after_generating(target: Target, drafter: LayerSkipDrafter | PlainDrafter) -> int:
    """Bytes of KV that an engine holds after a generation up to the context limit."""
    engine = Engine(target, drafter)
    processing = ProcessingSettings(prompt_length=len(PROMPT), max_length=10_000)
    runs: list[Generation] = []
    start = drafter.start
    drafter.start = lambda run: runs.append(run) or start(run)  # type: ignore[method-assign]  # to see the cache
    *_, last = engine.generate(Request(prompt_ids=PROMPT, processing=processing))
    assert last.finish_reason == "context"
    return runs[0].cache.nbytes()


@each_drafter
def test_kv_beyond_plain_decoding_is_at_most_the_draft_slots(
    target: Target, make: Callable[[Target], LayerSkipDrafter]
) -> None:
    drafter = make(target)
    config = target.config
    row = target.num_layers * 2 * config.num_key_value_heads * config.head_dim * 8  # float64
    assert target.context_length is not None
    assert cache_after_generating(target, drafter) <= row * (target.context_length + drafter.draft_slots + 1)
    assert cache_after_generating(target, PlainDrafter()) >= row * target.context_length


@each_drafter
def test_the_draft_slots_hold_the_root_and_every_tree(
    target: Target, make: Callable[[Target], LayerSkipDrafter]
) -> None:
    drafter = make(target)
    assert 1 + drafter.start(prefilled(target, drafter)).propose().num_nodes <= drafter.draft_slots


def test_a_draft_that_fails_leaves_the_model_as_it_was(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = LayerSkipDrafter(target, SKIP)
    run = prefilled(target, drafter)

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(target, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        drafter.start(run).propose()
    assert all("forward" not in module.__dict__ for module in target.model.modules())
