"""The adaptive skip set: no token changes, idle sub-layers are found, comparisons keep to their share of the time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

import slipstream
from doubles import decode
from families import build, prompt_ids
from oracle import oracle_generate
from pass_sizes import both_sizes, in_both_sizes
from slipstream.core.logits import ProcessingSettings
from slipstream.core.rules import GreedyRule
from slipstream.core.sampling import SamplingSettings
from slipstream.drafting.base import Generation
from slipstream.drafting.shape import Auto, Chain, Dynamic, Shape
from slipstream.engine.engine import Engine
from slipstream.engine.sequence import Request
from slipstream.errors import InputError
from slipstream.methods.layer_skip.adapt import AdaptiveSkipSet, AdaptSettings, ComparisonResult
from slipstream.methods.layer_skip.comparison import score_tokens
from slipstream.methods.layer_skip.drafter import LayerSkipDrafter
from slipstream.methods.layer_skip.effects import Effects
from slipstream.methods.registry import build_drafter
from slipstream.runtime.costs import Costs
from slipstream.runtime.sublayer_costs import CostTable, PassCost
from slipstream.skipping.plan import SkipPlan
from slipstream.skipping.skip_set import SkipSet
from slipstream.skipping.sublayers import SubLayers
from slipstream.target.target import Target

NUM_LAYERS = 4
IDLE_ATTENTION, IDLE_MLP = (1, 2), (2,)
"""Sub-layers of the model that do nothing."""
PROMPT = prompt_ids(9)
START = {"attention": [0], "mlp": []}
ROWS = (1, 3, 7, 16)


@torch.no_grad()
def idle_model() -> PreTrainedModel:
    """Four layers, of which two attentions and one MLP add nothing."""
    model = build("llama", num_hidden_layers=NUM_LAYERS, max_position_embeddings=1024)
    for i in IDLE_ATTENTION:
        model.model.layers[i].self_attn.o_proj.weight.zero_()
    for i in IDLE_MLP:
        model.model.layers[i].mlp.down_proj.weight.zero_()
    return model


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(idle_model())


def costs() -> CostTable:
    """Sub-layers are nearly all of a pass, so that leaving out those that do nothing pays."""
    part = (0.1,) * NUM_LAYERS

    def one(rows: int) -> PassCost:
        scale = 1 + 0.05 * (rows - 1)
        share = tuple(scale * seconds for seconds in part)
        return PassCost(rows=rows, outside=0.05 * scale, attention=share, mlp=share, rest=(0.0,) * NUM_LAYERS)

    return CostTable(passes=tuple(one(rows) for rows in ROWS), prefix=64)


SHAPES: dict[str, Shape] = {
    "dynamic": Dynamic(width=3, depth=3, total=6),
    "chain": Chain(length=4, threshold=0.0, adaptive=False),
}


def drafter(target: Target, tree: str = "dynamic", overhead: float = 0.3) -> LayerSkipDrafter:
    made = LayerSkipDrafter(
        target,
        START,
        SHAPES[tree],
        adapt=AdaptSettings(overhead=overhead, trial_rows=16),
    )
    assert made.adaptive is not None
    made.adaptive.costs = costs()  # no clock in tests
    return made


# -- what is promised --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", ["dynamic", "chain"])
@in_both_sizes("temperature", [0.0, 0.8])
def test_output_is_plain_decodings_while_the_set_moves(target: Target, tree: str, temperature: float) -> None:
    made = drafter(target, tree, overhead=0.5)
    result = decode(Engine(target, made), PROMPT, max_new_tokens=120, temperature=temperature, seed=1)
    expected = oracle_generate(target.model, PROMPT, max_new_tokens=120, temperature=temperature, seed=1)
    assert result.ids == expected
    assert made.adaptive is not None
    assert made.adaptive.num_changes > 0


def test_what_does_nothing_is_left_out_and_what_is_missed_comes_back(target: Target) -> None:
    made = drafter(target, overhead=0.5)
    assert made.adaptive is not None
    fixed = LayerSkipDrafter(target, START, shape=made.shape)
    before = decode(Engine(target, fixed), PROMPT, max_new_tokens=100)
    engine = Engine(target, made)
    for seed in range(3):
        decode(engine, prompt_ids(9, seed=seed), max_new_tokens=150)
    assert made.skip_set == made.adaptive.current
    assert set(made.skip_set.attention) == set(IDLE_ATTENTION)
    assert set(made.skip_set.mlp) == set(IDLE_MLP)
    after = decode(engine, PROMPT, max_new_tokens=100)
    assert len(after.steps) < len(before.steps)
    assert made.adaptive.seconds(made.skip_set) < made.adaptive.seconds(made.adaptive.start)


@pytest.mark.parametrize("overhead", [0.05, 0.3])
def test_comparisons_keep_to_the_overhead_at_every_cycle(
    target: Target, overhead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, widths = drafter(target, overhead=overhead), []
    adaptive, forward = made.adaptive, target.forward
    assert adaptive is not None

    def counted(tokens: torch.Tensor, positions: torch.Tensor, *args: object, **kwargs: object) -> object:
        if bool((positions.diff() > 0).all()) and tokens.shape[0] > 8:
            widths.append(tokens.shape[0])  # neither a level nor a tree: the prompt or a comparison
        return forward(tokens, positions, *args, **kwargs)

    monkeypatch.setattr(target, "forward", counted)
    for step in steps_of(Engine(target, made), 150):
        assert adaptive.comparisons_s <= overhead * (adaptive.comparisons_s + adaptive.cycles_s) + 1e-12
        assert len(step.token_ids) > 0
    assert adaptive.num_passes > 0
    assert len(widths) == adaptive.num_passes  # a prompt of 9 tokens prefills 8
    spent = sum(costs().draft(rows, SkipSet(num_layers=NUM_LAYERS, attention=(), mlp=())) for rows in widths)
    assert adaptive.comparisons_s <= spent + 1e-9


def steps_of(engine: Engine, num_tokens: int) -> Iterator[slipstream.Step]:
    processing = ProcessingSettings(prompt_length=len(PROMPT), max_length=len(PROMPT) + num_tokens)
    return engine.generate(Request(prompt_ids=PROMPT, processing=processing))


def test_under_rejection_the_set_changes_only_between_drafts(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    made = drafter(target, "chain", overhead=0.5)
    used: list[list[SkipPlan]] = [[]]
    forward = made.forward

    def noted(run: Generation, tokens: torch.Tensor, depth: int, visible: torch.Tensor, plan: SkipPlan) -> torch.Tensor:
        if depth == 0:
            used.append([])
        used[-1].append(plan)
        return forward(run, tokens, depth, visible, plan=plan)

    monkeypatch.setattr(made, "forward", noted)
    processing = ProcessingSettings(prompt_length=len(PROMPT), max_length=250, temperature=1.0)
    sampling = SamplingSettings(seed=1, verification="rejection")
    for _ in Engine(target, made).generate(Request(prompt_ids=PROMPT, processing=processing, sampling=sampling)):
        pass
    assert all(len(set(map(id, cycle))) <= 1 for cycle in used)
    assert len({id(cycle[0]) for cycle in used if cycle}) > 1


# -- a comparison ----------------------------------------------------------------------------------------------------


def committed(target: Target, tokens: list[int]) -> Generation:
    """A generation in which all tokens but the last are cached."""
    run = Generation(target, target.new_cache(32), GreedyRule(), tokens, 4, 9)
    n = len(tokens) - 1
    target.forward(torch.tensor(tokens[:-1]), torch.arange(n), target.causal(n), run.cache)
    run.cache.commit(None, n)
    return run


@both_sizes
@pytest.mark.parametrize("end", [20, 17])
@torch.inference_mode()
def test_a_comparison_says_what_the_first_row_of_a_draft_would_say(target: Target, end: int) -> None:
    tokens = prompt_ids(21, seed=4)
    plan = SubLayers.find(target.model).plan(SkipSet(num_layers=NUM_LAYERS, attention=(0, 3), mlp=(1,)))
    scores, hits = score_tokens(committed(target, tokens), plan, 8, end, 2)
    for row, place in enumerate(range(8, end)):
        run = committed(target, tokens[: place + 1])  # the token at `place` is the root
        logits = target.forward(
            run.root, torch.tensor([place]), torch.ones(1, 1, dtype=torch.bool), run.cache, instead=plan.model
        ).logits[0, 0]
        log_q = logits.log_softmax(dim=-1)
        taken = log_q[tokens[place + 1]]
        assert float(scores[row]) == pytest.approx(float(taken.clamp(-6.0, -torch.log(torch.tensor(3.0)))), abs=1e-9)
        assert bool(hits[row]) is (tokens[place + 1] in log_q.topk(2).indices.tolist())


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_comparison_leaves_all_that_is_committed_as_it_was(
    target: Target, interrupted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = committed(target, prompt_ids(21, seed=4))
    before = [(layer.keys[:, :, :20].clone(), layer.values[:, :, :20].clone()) for layer in run.cache.layers]
    positions = run.cache.positions[:, :20].clone()
    plan = SubLayers.find(target.model).plan(SkipSet(num_layers=NUM_LAYERS, attention=(0,), mlp=()))
    if interrupted:
        monkeypatch.setattr(target.layers[2].mlp, "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            score_tokens(run, plan, 4, 20, 1)
        monkeypatch.undo()
    else:
        score_tokens(run, plan, 4, 20, 1)
    assert run.length == 20
    assert torch.equal(run.cache.positions[:, :20], positions)
    for layer, (keys, values) in zip(run.cache.layers, before, strict=True):
        assert torch.equal(layer.keys[:, :, :20], keys)
        assert torch.equal(layer.values[:, :, :20], values)
    own = [target.layers[2].mlp] if interrupted else []  # whose forward was replaced above
    others = [module for module in target.model.model.modules() if module not in own]
    assert all("forward" not in module.__dict__ for module in others)


def interrupt(*args: object, **kwargs: object) -> None:
    raise KeyboardInterrupt


def test_a_generation_given_up_during_a_comparison_leaves_the_model_usable(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = drafter(target)
    engine, forward = Engine(target, made), target.forward

    def struck(tokens: torch.Tensor, *args: object, **kwargs: object) -> object:
        if tokens.shape[0] == 16:  # a comparison: with its candidate's sub-layers out
            raise KeyboardInterrupt
        return forward(tokens, *args, **kwargs)

    monkeypatch.setattr(target, "forward", struck)
    with pytest.raises(KeyboardInterrupt):
        list(steps_of(engine, 200))
    monkeypatch.undo()
    assert all("forward" not in module.__dict__ for module in target.model.modules())
    result = decode(engine, PROMPT, max_new_tokens=60)
    assert result.ids == oracle_generate(target.model, PROMPT, max_new_tokens=60)


# -- what is learnt ----------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=5, max_size=5), st.integers(0, 2**31))
def test_effects_of_single_sublayers_follow_from_comparisons_of_several(truth: list[float], seed: int) -> None:
    effects, rng = Effects(5, mean=0.2, sd=0.5), torch.Generator().manual_seed(seed)
    for _ in range(60):
        change = torch.randint(-1, 2, (5,), generator=rng).tolist()
        effects.learn(change, sum(step * effect for step, effect in zip(change, truth, strict=True)), 1e-4)
    for j, effect in enumerate(truth):
        mean, sd = effects.predict([int(i == j) for i in range(5)])
        assert mean == pytest.approx(effect, abs=0.1)
        assert 0 < sd < 0.1
    draws = torch.tensor([effects.draw(rng) for _ in range(50)]).mean(dim=0)
    assert draws.tolist() == pytest.approx(truth, abs=0.1)


def test_what_was_never_tried_keeps_its_prior() -> None:
    effects = Effects(3, mean=0.2, sd=0.5)
    effects.learn([1, 0, 0], -1.0, 0.01)
    assert effects.predict([0, 1, 0]) == pytest.approx((0.2, 0.5))
    assert effects.tried == [True, False, False]


def adaptive() -> AdaptiveSkipSet:
    made = AdaptiveSkipSet(SkipSet(num_layers=NUM_LAYERS, attention=(0,), mlp=()), AdaptSettings(), level_rows=3)
    made.costs = costs()
    for _ in range(20):
        made.record_cycle(2, 3, 6)
    return made


def test_candidates_change_at_most_one_sublayer_that_was_never_tried() -> None:
    made = adaptive()
    for _ in range(30):
        candidate = made.candidate()
        if candidate is not None:
            assert len({*candidate.attention} ^ {0}) + len(candidate.mlp) == 1


def candidate_for(made: AdaptiveSkipSet, attention: tuple[int, ...]) -> SkipSet:
    return SkipSet(num_layers=NUM_LAYERS, attention=attention, mlp=())


@pytest.mark.parametrize(
    ("attention", "difference", "variance", "taken"),
    [
        ((0, 1), 0.0, 1e-4, True),  # as good, and cheaper
        ((0, 1), 0.0, 4.0, False),  # perhaps as good: not sure enough
        ((0, 1), -2.0, 1e-4, False),  # cheaper, and much worse
        ((), 0.0, 1e-4, False),  # as good, and dearer
        ((), 2.0, 1e-4, True),  # dearer, and much better
    ],
)
def test_speed_decides_not_likeness_alone(
    attention: tuple[int, ...], difference: float, variance: float, taken: bool
) -> None:
    made = adaptive()
    base, candidate = made.current, candidate_for(made, attention)
    made.learn(candidate, base, ComparisonResult(difference=difference, variance=variance, hits=0.2 * difference))
    assert (made.current is candidate) is taken


def test_a_comparison_against_a_set_no_longer_in_use_teaches_but_changes_nothing() -> None:
    made = adaptive()
    old = SkipSet(num_layers=NUM_LAYERS, attention=(3,), mlp=())
    made.learn(candidate_for(made, (2, 3)), old, ComparisonResult(difference=0.0, variance=1e-4, hits=0.0))
    assert made.num_changes == 0
    assert made.effects.tried[2]


def test_the_set_in_use_can_be_saved_with_its_history(target: Target, tmp_path: Path) -> None:
    made = drafter(target)
    decode(Engine(target, made), PROMPT, max_new_tokens=80)
    assert made.adaptive is not None
    exported = made.adaptive.export(target.hash)
    exported.save(tmp_path / "set.json")
    loaded = LayerSkipDrafter(target, tmp_path / "set.json")
    assert (loaded.skip_set.attention, loaded.skip_set.mlp) == (made.skip_set.attention, made.skip_set.mlp)
    assert loaded.skip_set.provenance["trial_passes"] == made.adaptive.num_passes > 0


# -- options -----------------------------------------------------------------------------------------------------------


def test_adaptive_is_a_value_of_skip_set_and_costs_are_measured(target: Target) -> None:
    model = slipstream.load(target.model, skip_set="adaptive", start_set=START, overhead=0.2, trial_rows=16)
    assert isinstance(model.drafter, LayerSkipDrafter)
    assert model.drafter.adaptive is not None
    output = model.generate(PROMPT, max_new_tokens=40, temperature=0)
    assert output.token_ids == oracle_generate(target.model, PROMPT, max_new_tokens=40)
    assert model.drafter.adaptive.costs is not None
    assert model.drafter.adaptive.cycles_s > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_set": "adaptive", "overhead": 0}, "overhead is 0"),
        ({"skip_set": "adaptive", "overhead": 1.0}, "overhead is 1.0"),
        ({"skip_set": "adaptive", "trial_rows": 4}, "trial_rows is 4"),
        ({"skip_set": "adaptive", "rate": 0.1}, "no option 'rate'"),
        ({"overhead": 0.1}, "'overhead' of layer-skip is read only with skip_set='adaptive'"),
        ({"start_set": START}, "'start_set' of layer-skip is read only"),
    ],
)
def test_wrong_options_are_refused(target: Target, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        slipstream.load(target.model, "layer-skip", **options)


def test_costs_of_drafting_follow_the_set_that_is_drafted_with(target: Target) -> None:
    """Of a set that adapts they are rescaled, within a generation; of another set they are measured anew."""
    made = LayerSkipDrafter(target, START, Auto(Dynamic(width=3, depth=3, total=6)), adapt=AdaptSettings(trial_rows=16))
    assert made.adaptive is not None
    assert isinstance(made.shape, Auto)
    made.adaptive.costs = costs()
    made.shape.costs = before = Costs(((1, 1.0), (7, 2.0)), (0.0, 0.5, 1.0, 1.5))
    less = SkipSet(num_layers=NUM_LAYERS, attention=(), mlp=())
    made.adapt_to(less)
    ratio = made.adaptive.draft_seconds(less, 3) / made.adaptive.draft_seconds(made.adaptive.start, 3)
    assert ratio > 1
    assert made.shape.costs.draft_s == pytest.approx([ratio * seconds for seconds in before.draft_s])
    assert made.shape.costs.verify_s == before.verify_s
    made.draft_with(made.adaptive.start)
    assert made.shape.costs is None


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_adapting_set_may_be_sized_by_cost(target: Target, temperature: float) -> None:
    settings = {"max_new_tokens": 60, "temperature": temperature, "seed": 1}
    model = build_drafter("layer-skip", target, {"skip_set": "adaptive", "start_set": START, "trial_rows": 16})
    result = decode(Engine(target, model), PROMPT, **settings)
    assert result.ids == oracle_generate(target.model, PROMPT, **settings)
    assert isinstance(model.shape, Auto)
    assert model.shape.costs is not None
    assert max(step.num_drafted for step in result.steps) < model.draft_slots
