"""Trees are sized by cost: large where rows are free, none where drafting is dear, and tokens never change."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from doubles import decode, request
from families import build
from methods.eagle.test_eagle import PROMPT, exact_pair, random_head
from methods.hydra.test_hydra import random_heads as hydra_heads
from methods.medusa.test_medusa import random_heads as medusa_heads
from oracle import oracle_generate
from slipstream.bench.watching import WatchedDrafter
from slipstream.certify import recording
from slipstream.core.rules import Candidates, GreedyRule
from slipstream.core.tree import DraftTree, empty_tree
from slipstream.drafting import sizes
from slipstream.drafting.base import Drafting, ForwardingDrafting, Observed
from slipstream.drafting.growth import Frontier, grow
from slipstream.drafting.shape import Auto, AutoStatic, Dynamic, ShapeInUse, Static
from slipstream.drafting.sizes import CycleTimes, Size, SizeChooser
from slipstream.engine.engine import Engine
from slipstream.methods.draft_model.drafter import DraftModelDrafter
from slipstream.methods.eagle.checkpoint import save_head
from slipstream.methods.eagle.drafter import EagleDrafter
from slipstream.methods.hydra.drafter import HydraDrafter
from slipstream.methods.layer_skip.drafter import LayerSkipDrafter
from slipstream.methods.medusa.drafter import MedusaDrafter
from slipstream.methods.registry import build_drafter
from slipstream.runtime.clock import PARTS, Part
from slipstream.runtime.costs import ROWS, Costs, fastest
from slipstream.target.target import Target

LARGEST = Dynamic(width=4, depth=4, total=12)


def costs(*, row: float, level: float, whole: float = 1.0) -> Costs:
    """A target pass costs `whole` and `row` for each row beyond the first, drafting `level` per level."""
    verify = tuple((n, whole + row * (n - 1)) for n in (1, 4, 16))
    return Costs(verify, tuple(level * depth for depth in range(LARGEST.depth + 1)))


def test_costs_lie_on_the_line_between_measured_sizes():
    table = Costs(((1, 1.0), (4, 1.3), (16, 4.9)), (0.0,))
    assert [table.verify(n) for n in (1, 2, 4, 10, 28)] == pytest.approx([1.0, 1.1, 1.3, 3.1, 8.5])


# expected[d][n]: what a tree of d + 1 levels and n + 1 nodes brings
EXPECTED = [[0.7, 0.8], [0.7, 1.2]]


@pytest.mark.parametrize(
    ("table", "best"),
    [
        (costs(row=0.0, level=0.0), (2, 2, 2.2)),  # all is free
        (costs(row=0.6, level=0.0), (1, 1, 1.7 / 1.6)),  # rows are dear
        (costs(row=0.0, level=0.4), (1, 2, 1.8 / 1.4)),  # levels are dear
        (costs(row=0.0, level=0.9), (1, 2, 1.8 / 1.9)),  # drafting cannot pay
    ],
)
def test_the_tree_with_the_most_tokens_per_second_is_found(table, best):
    assert fastest(table, EXPECTED) == pytest.approx(best)


# --- the choice in simulated worlds --------------------------------------------------------------------------------


@dataclass
class World:
    """A machine and a text: what cycles take, and how often a child is what the target says."""

    costs: Costs
    shares: Sequence[float] = (0.65, 0.15, 0.05, 0.02)
    """How often the first, second, ... child is right, after any node."""
    claimed: float = 1.0
    """What the drafter believes, in times of `shares`."""
    speed: Callable[[float], float] = lambda seconds: 1.0
    """Of the machine at a moment."""
    fixed_s: float = 0.0
    """What any tree adds to a cycle beside drafting and rows."""
    noise: float = 0.0
    """Spread of what a cycle takes."""
    seed: int = 0

    def run(self, use: ShapeInUse, num_cycles: int) -> float:
        """Tokens per second."""
        rng, tokens, seconds = random.Random(self.seed), 0, 0.0
        for _ in range(num_cycles):
            tree = self.draft(use.next())
            path = list(range(self.accept(tree, rng)))
            took = self.cycle(tree, self.speed(seconds) * rng.gauss(1, self.noise))
            use.record_tree(Observed(tokens=[0], features=None, tree=tree, path=path))
            use.record_times(took)
            tokens += 1 + len(path)
            seconds += sum(took.values())
        return tokens / seconds

    def best(self) -> Dynamic | None:
        """The fixed size with the most tokens per second; None: plain decoding."""
        tree = self.draft(LARGEST)
        values = tree.log_value.exp() / self.claimed**tree.depth
        best, best_rate = None, 1 / self.costs.verify(1)
        for depth in range(1, LARGEST.depth + 1):
            brought = values[tree.depth <= depth].sort(descending=True).values.cumsum(0).tolist()
            for total, accepted in enumerate(brought, start=1):
                seconds = self.costs.draft_s[depth] + self.costs.verify(1 + total) + self.fixed_s
                rate = (1 + accepted) / seconds
                if rate > best_rate:
                    best, best_rate = replace(LARGEST, depth=depth, total=total), rate
        return best

    def cycle(self, tree: DraftTree, speed: float) -> dict[Part, float]:
        """Seconds by part."""
        seconds: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
        seconds["draft"] = self.costs.draft_s[tree.max_depth] / speed
        seconds["verify"] = self.costs.verify(1 + tree.num_nodes) / speed
        seconds["sample"] = self.fixed_s / speed if tree.num_nodes else 0.0
        return seconds

    def draft(self, shape: Dynamic | Static | None) -> DraftTree:
        """The tree of this shape; None: none."""
        return empty_tree() if shape is None else grow(self._expand, torch.tensor([0]), shape)

    def accept(self, tree: DraftTree, rng: random.Random) -> int:
        """How many of its nodes the target says."""
        nodes = {
            (parent, token): node
            for node, (parent, token) in enumerate(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True))
        }
        node, accepted = -1, 0
        while True:
            (right,) = rng.choices([0, 1, 2, 3, None], [*self.shares, 1 - sum(self.shares)])
            if (node, right) not in nodes:
                return accepted
            node, accepted = nodes[node, right], accepted + 1

    def _expand(self, frontier: Frontier, k: int) -> Candidates:
        rows = frontier.tokens.shape[0]
        confidence = (torch.tensor(self.shares[:k]) * self.claimed).log()
        return Candidates(torch.arange(len(confidence)).expand(rows, -1), confidence.expand(rows, -1))


class Plain(ShapeInUse):
    """Never drafts."""

    def next(self) -> None:
        return None


def always(shape: Dynamic | Static | None) -> ShapeInUse:
    """One size for ever; None: no tree."""
    return Plain(LARGEST) if shape is None else ShapeInUse(shape)


def by_cost(measured: Costs) -> ShapeInUse:
    """Sizes chosen by these costs."""
    auto = Auto(LARGEST)
    auto.costs = measured
    return auto.for_generation(GreedyRule())


CHEAP, DEAR = costs(row=0.02, level=0.1), costs(row=0.3, level=0.5)


@pytest.mark.parametrize(
    ("measured", "world", "share"),
    [
        pytest.param(CHEAP, World(CHEAP), 0.95, id="drafting pays"),
        pytest.param(DEAR, World(DEAR), 0.95, id="nothing pays"),
        pytest.param(CHEAP, World(DEAR), 0.95, id="cycles are dearer than measured"),
        pytest.param(DEAR, World(CHEAP), 0.95, id="cycles are cheaper than measured"),
        pytest.param(CHEAP, World(costs(row=0.3, level=0.1)), 0.9, id="rows are dearer than measured"),
        pytest.param(CHEAP, World(costs(row=0.02, level=0.5)), 0.9, id="levels are dearer than measured"),
        pytest.param(CHEAP, World(CHEAP, claimed=1.15), 0.9, id="values promise too much"),
        pytest.param(CHEAP, World(CHEAP, shares=(0.3, 0.08, 0.02, 0.01), claimed=2.0), 0.9, id="far too much"),
        pytest.param(CHEAP, World(CHEAP, claimed=0.6), 0.9, id="values promise too little"),
        pytest.param(CHEAP, World(CHEAP, fixed_s=0.3), 0.9, id="any tree takes longer"),
        pytest.param(CHEAP, World(CHEAP, fixed_s=1.0), 0.9, id="any tree takes much longer"),
        pytest.param(CHEAP, World(CHEAP, fixed_s=0.1, noise=0.1), 0.9, id="cycles differ"),
    ],
)
def test_the_choice_comes_near_the_best_fixed_size(measured, world, share):
    """Also where costs or values are wrong: cycles and acceptance correct them."""
    assert world.run(by_cost(measured), 1000) > share * world.run(always(world.best()), 1000)


@pytest.mark.parametrize("true_costs", [CHEAP, DEAR], ids=["drafting pays", "nothing pays"])
def test_a_machine_that_is_slow_now_and_then_does_not_mislead(true_costs):
    """Half as fast for a third of the time: only neighbours are compared."""
    world = World(true_costs, speed=lambda seconds: 0.5 if seconds % 90 < 30 else 1.0)
    assert world.run(by_cost(true_costs), 1500) > 0.95 * world.run(always(world.best()), 1500)


STATIC = Static([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (0, 0, 0, 0)])


def levels_by_cost(measured: Costs) -> tuple[AutoStatic, ShapeInUse]:
    auto = AutoStatic(STATIC)
    auto.costs = measured
    return auto, auto.for_generation(GreedyRule())


@pytest.mark.parametrize("true_costs", [CHEAP, DEAR, costs(row=0.02, level=0.3)], ids=["cheap", "dear", "levels"])
@pytest.mark.parametrize("measured", [CHEAP, DEAR], ids=["seems cheap", "seems dear"])
def test_of_a_static_tree_as_many_levels_are_drafted_as_pay(measured, true_costs):
    world, cuts = World(true_costs), [None, *(STATIC.cut(depth) for depth in range(1, 5))]
    best = max(world.run(always(cut), 1000) for cut in cuts)
    assert world.run(levels_by_cost(measured)[1], 1000) > 0.9 * best


def test_levels_of_a_static_tree_are_whole():
    _, use = levels_by_cost(CHEAP)
    world, seen = World(CHEAP), set()
    wholes = {tuple(world.draft(STATIC.cut(depth)).tokens.tolist()) for depth in range(1, 5)}
    for _ in range(60):
        tree = world.draft(use.next())
        seen.add(tuple(tree.tokens.tolist()))
        use.record_tree(Observed(tokens=[0], features=None, tree=tree, path=[]))
        use.record_times(world.cycle(tree, 1.0))
    assert seen - {()} <= wholes
    assert len(seen) > 1


def test_processes_that_share_a_target_go_by_the_size_they_agree_on(monkeypatch):
    """Here drafting pays; the others say that it does not."""
    monkeypatch.setattr(sizes, "agree", lambda own: own._replace(gain=0.5))
    auto = Auto(LARGEST)
    auto.costs = CHEAP
    use = auto.for_generation(GreedyRule())
    World(CHEAP).run(use, 20)
    assert use.next() is None


# --- the choice in real generations ---------------------------------------------------------------------------------

START = 9  # cycles of the first three rounds


@pytest.fixture
def as_costs_say(monkeypatch):
    """The clock of a machine on which every cycle takes what the measured costs say."""
    trees, costs_of = {}, {}
    choose, record_tree, record_times = SizeChooser.next, SizeChooser.record_tree, SizeChooser.record_times

    def keep_costs(self: SizeChooser, measured: Costs) -> Size | None:
        costs_of[self] = measured
        return choose(self, measured)

    def keep_tree(self: SizeChooser, tree: DraftTree, num_accepted: int) -> None:
        trees[self] = tree
        record_tree(self, tree, num_accepted)

    def by_costs(self: SizeChooser, seconds: Mapping[Part, float], before: CycleTimes | None) -> CycleTimes | None:
        assert set(seconds) == set(PARTS), "the engine tells what the cycle took"
        verify_s = costs_of[self].verify(1 + trees[self].num_nodes)
        draft_s = costs_of[self].draft_s[trees[self].max_depth]
        return record_times(self, {**dict.fromkeys(PARTS, 0.0), "draft": draft_s, "verify": verify_s}, before)

    monkeypatch.setattr(SizeChooser, "next", keep_costs)
    monkeypatch.setattr(SizeChooser, "record_tree", keep_tree)
    monkeypatch.setattr(SizeChooser, "record_times", by_costs)


def shapes_of(shape: Auto, drafter: EagleDrafter, prompt: list[int], num_tokens: int) -> list[int]:
    """Sizes of the trees of a generation, and a check of its tokens."""
    result = decode(Engine(drafter.target, drafter), prompt, max_new_tokens=num_tokens)
    assert result.ids == oracle_generate(drafter.target.model, prompt, max_new_tokens=num_tokens)
    return [step.num_drafted for step in result.steps]


@pytest.mark.usefixtures("as_costs_say")
def test_a_good_head_gets_its_whole_tree_where_rows_are_free():
    target, head = exact_pair()
    shape = Auto(LARGEST)
    shape.costs = costs(row=0.0, level=0.01)
    sizes = shapes_of(shape, EagleDrafter(target, head, shape), [1, *PROMPT], 90)
    assert set(sizes[START:-2]) == {LARGEST.total}


@pytest.mark.usefixtures("as_costs_say")
def test_a_sure_head_gets_a_chain_where_rows_are_dear():
    target, head = exact_pair()
    shape = Auto(LARGEST)
    shape.costs = costs(row=0.2, level=0.01)
    sizes = shapes_of(shape, EagleDrafter(target, head, shape), [1, *PROMPT], 90)
    assert max(sizes[START:-2]) < LARGEST.total
    assert min(sizes[START:-2]) >= 1


@pytest.mark.usefixtures("as_costs_say")
def test_a_useless_head_is_left_alone():
    target = Target(build("llama"))
    shape = Auto(LARGEST)
    shape.costs = costs(row=0.3, level=0.2)
    sizes = shapes_of(shape, EagleDrafter(target, random_head(target), shape), PROMPT, 90)
    believed, left_alone = sizes[:20], sizes[20:]  # the head is certain of its drafts, and wrong: not for long
    assert sum(size > 0 for size in believed) >= 6, "three rounds of a look and a tree to be timed"
    assert [size > 0 for size in left_alone].count(True) <= 4, "only rounds, ever more seldom"


@pytest.mark.usefixtures("as_costs_say")
def test_drafting_is_taken_up_again_where_it_pays():
    """After a stretch of plain decoding the head has many rows to catch up on."""
    target, head = exact_pair()
    shape = Auto(LARGEST)
    shape.costs = costs(row=9.0, level=9.0)
    drafter = EagleDrafter(target, head, shape)
    assert set(shapes_of(shape, drafter, [1, *PROMPT], 60)[START:-6]) == {0}
    shape.costs = costs(row=0.0, level=0.0)
    sizes = shapes_of(shape, drafter, [1, *PROMPT], 100)
    assert sizes[0] == 0
    assert min(sizes[-6:-2]) >= LARGEST.total - 1  # the last of all may bring nothing


@pytest.mark.usefixtures("as_costs_say")
def test_generations_that_take_turns_share_one_estimate():
    """A tree is noted before another generation proposes its own: both go on to draft with a good head."""
    target, head = exact_pair()
    shape = Auto(LARGEST)
    shape.costs = costs(row=0.5, level=0.01)  # a chain pays for a head that is believed, and for no other
    engine = Engine(target, EagleDrafter(target, head, shape))
    answers: dict[int, list[int]] = {1: [], 2: []}
    sizes: list[int] = []
    streams = {first: engine.generate(request([1, first, *PROMPT], max_new_tokens=80)) for first in answers}
    for steps in zip(*streams.values(), strict=False):
        for first, step in zip(answers, steps, strict=True):
            answers[first] += step.token_ids
            sizes.append(step.num_drafted)
    for first, ids in answers.items():
        expected = oracle_generate(target.model, [1, first, *PROMPT], max_new_tokens=80)
        assert ids == expected[: len(ids)]
    assert min(sizes[START:-6]) > 0


def test_answers_of_a_few_tokens_never_show_a_whole_tree():
    """Every look is cut short by the budget: the first size stays, and nothing is decided on nothing."""
    target, head = exact_pair()
    shape = Auto(LARGEST)
    shape.costs = costs(row=9.0, level=9.0)  # nothing would pay
    engine = Engine(target, EagleDrafter(target, head, shape))
    drafted = []
    for first in range(20):
        prompt = [1, first, *PROMPT]
        result = decode(engine, prompt, max_new_tokens=4)
        assert result.ids == oracle_generate(target.model, prompt, max_new_tokens=4)
        drafted.append(result.steps[0].num_drafted)
    assert max(drafted[START:]) == LARGEST.width + LARGEST.depth


def test_a_generations_first_cycle_is_no_neighbour():
    """It may be slower than any other for reasons of its own, and the last of the answer before was plain."""
    world = World(CHEAP)

    def mean_size(slower: float) -> float:
        shape, rng, sizes = Auto(LARGEST), random.Random(0), []
        shape.costs = CHEAP
        for _ in range(60):
            use = shape.for_generation(GreedyRule())
            for cycle in range(16):
                tree = world.draft(use.next() if cycle < 15 else None)
                path = list(range(world.accept(tree, rng)))
                use.record_tree(Observed(tokens=[0], features=None, tree=tree, path=path))
                use.record_times(world.cycle(tree, speed=1 / slower if cycle == 0 else 1.0))
                sizes.append(tree.num_nodes)
        return sum(sizes) / len(sizes)

    assert mean_size(slower=3.0) == mean_size(slower=1.0) > 4


WRAPPED = {
    "bench": lambda drafter: WatchedDrafter(drafter),
    "certify": lambda drafter: recording._Recorder(drafter),
}


@pytest.mark.usefixtures("as_costs_say")
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_sizes_are_chosen_as_well_where_a_drafter_is_watched(wrapped):
    target, head = exact_pair()
    shape = Auto(LARGEST)
    shape.costs = costs(row=9.0, level=9.0)
    drafter = WRAPPED[wrapped](EagleDrafter(target, head, shape))
    steps = decode(Engine(target, drafter), [1, *PROMPT], max_new_tokens=60).steps
    assert {step.num_drafted for step in steps[START:-6]} == {0}


def test_those_who_watch_a_draft_pass_everything_on():
    hooks = {name for name, one in vars(Drafting).items() if inspect.isfunction(one)}
    assert hooks == {name for name in vars(ForwardingDrafting) if not name.startswith("_")}


def test_texts_of_another_temperature_have_an_estimate_of_their_own():
    target, head = exact_pair()
    shape = Auto(LARGEST)
    shape.costs = costs(row=0.0, level=0.01)
    engine = Engine(target, EagleDrafter(target, head, shape))
    greedy = decode(engine, [1, *PROMPT], max_new_tokens=90).steps
    sampled = decode(engine, [1, *PROMPT], max_new_tokens=20, temperature=1.0).steps
    again = decode(engine, [1, *PROMPT], max_new_tokens=20, temperature=1.04).steps
    begins = [LARGEST.width + LARGEST.depth, 0]  # the first and the third cycle of a first round
    assert [greedy[0].num_drafted, greedy[2].num_drafted] == begins
    assert [sampled[0].num_drafted, sampled[2].num_drafted] == begins
    assert len(sampled) > START
    assert again[2].num_drafted > 0, "near enough to the temperature before"


DRAFTERS = {
    "eagle": lambda target: EagleDrafter(target, random_head(target), Auto(LARGEST)),
    "medusa": lambda target: MedusaDrafter(target, medusa_heads(target), Auto(replace(LARGEST, depth=3))),
    "hydra": lambda target: HydraDrafter(target, hydra_heads(target), Auto(replace(LARGEST, depth=3))),
    "layer-skip": lambda target: LayerSkipDrafter(target, {"attention": [1], "mlp": [0]}, Auto(LARGEST)),
    "draft-model": lambda target: DraftModelDrafter(target, target, Auto(LARGEST)),
}


@pytest.mark.parametrize("method", DRAFTERS)
def test_costs_are_measured_on_the_real_models(method):
    drafter = DRAFTERS[method](Target(build("llama")))
    measured = drafter.measure(drafter.shape.largest)
    assert [rows for rows, _ in measured.verify_s] == list(ROWS)
    assert all(seconds > 0 for _, seconds in measured.verify_s)
    assert len(measured.draft_s) == drafter.shape.depth + 1
    assert measured.draft_s[0] == 0 < measured.draft_s[1] <= measured.draft_s[-1]
    assert drafter.shape.costs is None, "measured apart"


@pytest.mark.parametrize("method", DRAFTERS)
def test_measuring_fits_a_short_context(method):
    """Every cycle that is timed commits a row to the drafter's own cache."""
    target = Target(build("llama", max_position_embeddings=20))
    drafter = DRAFTERS[method](target)
    result = decode(Engine(target, drafter), PROMPT[:5], max_new_tokens=6)
    assert result.ids == oracle_generate(target.model, PROMPT[:5], max_new_tokens=6)
    assert drafter.shape.costs is not None


def test_automatic_size_is_the_default(tmp_path):
    target = Target(build("llama"))
    save_head(random_head(target), tmp_path, target)
    drafter = build_drafter("eagle2", target, {"draft": tmp_path, "depth": 3, "total": "auto"})
    assert isinstance(drafter.shape, Auto)
    assert drafter.shape.depth == 3
    assert isinstance(build_drafter("eagle2", target, {"draft": tmp_path}).shape, Auto)
    torch.manual_seed(0)
    sizes = decode(Engine(target, drafter), PROMPT, max_new_tokens=9).steps
    assert drafter.shape.costs is not None
    assert sizes[0].num_drafted > 0
