"""Trees are sized by cost: large where rows are free, none where drafting is dear, and tokens never change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from doubles import decode, request
from drafters.test_eagle import PROMPT, exact_pair, random_head
from drafters.test_hydra import random_heads as hydra_heads
from drafters.test_medusa import random_heads as medusa_heads
from families import build
from oracle import oracle_generate
from slipstream.drafters import build_drafter
from slipstream.drafters.auto_shape import AutoShape
from slipstream.drafters.eagle import EagleDrafter
from slipstream.drafters.eagle_checkpoint import save_head
from slipstream.drafters.growth import TreeShape
from slipstream.drafters.hydra import HydraDrafter
from slipstream.drafters.medusa import MedusaDrafter
from slipstream.engine import Engine
from slipstream.runtime import Costs, fastest, measure_verification
from slipstream.target import Target

LARGEST = TreeShape(width=4, depth=4, total=12)


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
    ("table", "chosen"),
    [
        (costs(row=0.0, level=0.0), (2, 2)),  # all is free
        (costs(row=0.6, level=0.0), (1, 1)),  # rows are dear
        (costs(row=0.0, level=0.4), (1, 2)),  # levels are dear
        (costs(row=0.0, level=0.9), (0, 0)),  # drafting cannot pay
    ],
)
def test_the_tree_with_the_most_tokens_per_second_is_chosen(table, chosen):
    assert fastest(table, EXPECTED) == chosen


def shapes_of(shape: AutoShape, drafter: EagleDrafter, prompt: list[int], num_tokens: int) -> list[int]:
    """Sizes of the trees of a generation, and a check of its tokens."""
    result = decode(Engine(drafter.target, drafter), prompt, max_new_tokens=num_tokens)
    assert result.ids == oracle_generate(drafter.target.model, prompt, max_new_tokens=num_tokens)
    return [step.num_drafted for step in result.steps]


def test_a_good_head_gets_its_whole_tree_where_rows_are_free():
    target, head = exact_pair()
    shape = AutoShape(LARGEST)
    shape.costs = costs(row=0.0, level=0.01)
    sizes = shapes_of(shape, EagleDrafter(target, head, shape), [1, *PROMPT], 60)
    assert set(sizes[:-2]) == {LARGEST.total}


def test_a_sure_head_gets_a_chain_where_rows_are_dear():
    target, head = exact_pair()
    shape = AutoShape(LARGEST)
    shape.costs = costs(row=0.2, level=0.01)
    sizes = shapes_of(shape, EagleDrafter(target, head, shape), [1, *PROMPT], 80)
    assert max(sizes[5:-2]) < LARGEST.total
    assert min(sizes[5:-2]) >= 1


def test_a_useless_head_is_left_alone():
    target = Target(build("llama"))
    shape = AutoShape(LARGEST)
    shape.costs = costs(row=0.3, level=0.2)
    sizes = shapes_of(shape, EagleDrafter(target, random_head(target), shape), PROMPT, 90)
    assert sum(size > 0 for size in sizes[6:]) <= 2, "only looks, ever more seldom"
    assert sum(size > 0 for size in sizes) > 4


def test_drafting_is_taken_up_again_where_it_pays():
    """After a stretch of plain decoding the head has many rows to catch up on."""
    target, head = exact_pair()
    shape = AutoShape(LARGEST)
    shape.costs = costs(row=9.0, level=9.0)
    drafter = EagleDrafter(target, head, shape)
    assert set(shapes_of(shape, drafter, [1, *PROMPT], 40)[6:-6]) == {0}
    shape.costs = costs(row=0.0, level=0.0)
    sizes = shapes_of(shape, drafter, [1, *PROMPT], 100)
    assert sizes[0] == 0
    assert set(sizes[-6:-2]) == {LARGEST.total}


HEADS = {
    "eagle": lambda target: EagleDrafter(target, random_head(target), AutoShape(LARGEST)),
    "medusa": lambda target: MedusaDrafter(target, medusa_heads(target), AutoShape(replace(LARGEST, depth=3))),
    "hydra": lambda target: HydraDrafter(target, hydra_heads(target), AutoShape(replace(LARGEST, depth=3))),
}


@pytest.mark.parametrize("method", HEADS)
def test_costs_are_measured_on_the_real_models(method):
    drafter = HEADS[method](Target(build("llama")))
    measured = drafter.measure(drafter.largest)
    assert [rows for rows, _ in measured.verify_s] == [1, 2, 4, 8, 13]
    assert all(seconds > 0 for _, seconds in measured.verify_s)
    assert len(measured.draft_s) == drafter.largest.depth + 1
    assert measured.draft_s[0] == 0 < measured.draft_s[1] < measured.draft_s[-1]
    assert isinstance(drafter.shape, AutoShape), "measured on a copy"


@pytest.mark.parametrize("method", HEADS)
def test_measuring_fits_a_short_context(method):
    """Every cycle that is timed commits a row to the drafter's own cache."""
    target = Target(build("llama", max_position_embeddings=20))
    drafter = HEADS[method](target)
    result = decode(Engine(target, drafter), PROMPT[:5], max_new_tokens=6)
    assert result.ids == oracle_generate(target.model, PROMPT[:5], max_new_tokens=6)
    assert drafter.shape.costs is not None


def test_generations_that_take_turns_share_one_estimate():
    """A tree is noted before another generation proposes its own: both go on to draft with a good head."""
    target, head = exact_pair()
    shape = AutoShape(LARGEST)
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
    assert min(sizes[:-6]) > 0


def test_measuring_stays_within_the_context():
    target = Target(build("gpt2", sizes={"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 20}))
    assert len(measure_verification(target, 9)) == 5


def test_automatic_size_is_the_default(tmp_path):
    target = Target(build("llama"))
    save_head(random_head(target), tmp_path, target)
    drafter = build_drafter("eagle2", target, {"draft": tmp_path, "depth": 3, "total": "auto"})
    assert isinstance(drafter.shape, AutoShape)
    assert drafter.largest.depth == 3
    assert isinstance(build_drafter("eagle2", target, {"draft": tmp_path}).shape, AutoShape)
    assert isinstance(build_drafter("eagle2", target, {"draft": tmp_path, "rerank": False}).shape, TreeShape)
    torch.manual_seed(0)
    sizes = decode(Engine(target, drafter), PROMPT, max_new_tokens=9).steps
    assert drafter.shape.costs is not None
    assert sizes[0].num_drafted > 0
