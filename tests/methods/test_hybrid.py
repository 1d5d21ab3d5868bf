"""A head and prompt lookup draft for one text: each cycle by the one of more worth, and no token changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from doubles import decode
from families import prompt_ids
from methods.eagle.test_eagle import exact_pair, random_head
from methods.hydra.test_hydra import random_heads as hydra_heads
from methods.medusa.test_medusa import random_heads as medusa_heads
from oracle import oracle_generate
from slipstream.core.tree import DraftTree
from slipstream.drafting.drafter import ModelDrafter
from slipstream.drafting.shape import Auto, Dynamic, Shape
from slipstream.drafting.sizes import Prospect, SizeChooser
from slipstream.drafting.tree import TreeDrafting
from slipstream.engine.engine import Engine
from slipstream.methods.draft_model.drafter import DraftModelDrafter
from slipstream.methods.eagle.drafter import EagleDrafter
from slipstream.methods.hybrid import HybridDrafter, with_lookup
from slipstream.methods.hydra.drafter import HydraDrafter
from slipstream.methods.medusa.drafter import MedusaDrafter
from slipstream.methods.prompt_lookup import Lookup, PromptLookupDrafter
from slipstream.runtime.costs import Costs
from slipstream.target.target import Target

PROMPT = prompt_ids(9, seed=4) * 3
TREE = Dynamic(width=3, depth=3, total=7)
FREE = Costs(((1, 1.0), (64, 1.1)), (0.0, 0.01, 0.02, 0.03))
MODELS: dict[str, Callable[[Target, Shape], ModelDrafter]] = {
    "eagle2": lambda target, shape: EagleDrafter(target, random_head(target), shape),
    "medusa": lambda target, shape: MedusaDrafter(target, medusa_heads(target), shape),
    "hydra": lambda target, shape: HydraDrafter(target, hydra_heads(target), shape),
    "draft-model": lambda target, shape: DraftModelDrafter(target, target, shape),
}


def hybrid(name: str, target: Target, shape: Shape | None = None) -> Engine:
    return Engine(target, HybridDrafter(MODELS[name](target, shape or Auto(TREE))))


@pytest.fixture(scope="module")
def target(family_model) -> Target:
    return Target(family_model("llama"))


@pytest.fixture
def worths(monkeypatch) -> list[float]:
    """What lookups are worth, in turn, beside a model that is worth 1; and all costs are known."""
    wanted = [2.0, 0.0]
    monkeypatch.setattr(Lookup, "worth", property(lambda self: wanted[len(self._generation.tokens) % len(wanted)]))
    monkeypatch.setattr(TreeDrafting, "prospect", lambda self: Prospect(1.0, 1.0))
    return wanted


def by_lookup(monkeypatch) -> list[bool]:
    """Who drafted, cycle by cycle."""
    seen: list[bool] = []
    for kind, method, lookup in ((Lookup, "draft", True), (TreeDrafting, "propose", False)):
        plain = getattr(kind, method)
        monkeypatch.setattr(
            kind, method, lambda self, plain=plain, lookup=lookup: (seen.append(lookup), plain(self))[1]
        )
    return seen


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.9, "seed": 3}])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_plain_decodings_whoever_drafts(name, sampling, target, worths, monkeypatch):
    seen = by_lookup(monkeypatch)
    found = decode(hybrid(name, target), PROMPT, max_new_tokens=24, **sampling)
    assert found.ids == oracle_generate(target.model, PROMPT, max_new_tokens=24, **sampling)
    assert {True, False} == set(seen), "both must have had their turns"


@pytest.mark.parametrize("name", MODELS)
def test_the_model_goes_on_where_the_lookup_left_the_text(name, target, worths, monkeypatch):
    """After cycles of the lookup its tree is the one that it grows for the same text from the start."""
    trees: dict[int, DraftTree] = {}
    plain = TreeDrafting.propose

    def propose(self: TreeDrafting) -> DraftTree:
        tree = plain(self)
        trees[len(self._generation.tokens)] = tree
        return tree

    monkeypatch.setattr(TreeDrafting, "propose", propose)
    ids = decode(hybrid(name, target, TREE), PROMPT, max_new_tokens=24).ids
    text, mixed = [*PROMPT, *ids], dict(trees)
    assert len(mixed) > 3
    worths[:] = [0.0]
    for length, tree in mixed.items():
        trees.clear()
        room = len(text) - length
        decode(hybrid(name, target, TREE), text[:length], max_new_tokens=room)
        if room < 2:
            continue
        assert torch.equal(trees[length].tokens, tree.tokens)
        assert torch.equal(trees[length].parents, tree.parents)


def test_lookups_are_not_taken_for_the_models_trees(target, worths, monkeypatch):
    told: list[int] = []
    monkeypatch.setattr(SizeChooser, "record_tree", lambda self, tree, count: told.append(tree.num_nodes))
    monkeypatch.setattr(SizeChooser, "record_times", lambda self, seconds, before: None)
    shape = Auto(TREE)
    shape.costs = FREE
    seen = by_lookup(monkeypatch)
    decode(hybrid("eagle2", target, shape), PROMPT, max_new_tokens=24)
    assert len(told) == seen.count(False) + 1  # the last cycle has no room to draft: its tree is empty, and known


def test_a_perfect_head_wins_over_a_text_that_never_repeats():
    """Costs of next to nothing for drafting: the head takes nearly all cycles, and its tree is accepted whole."""
    target, head = exact_pair()
    model = EagleDrafter(target, head, Auto(Dynamic(width=2, depth=3, total=4)))
    model.shape.costs = FREE
    found = decode(Engine(target, HybridDrafter(model)), [1, 7, 12, 5], max_new_tokens=60)
    assert found.ids == oracle_generate(target.model, [1, 7, 12, 5], max_new_tokens=60)
    assert len(found.steps) < 40


def test_where_drafting_is_dear_the_lookup_drafts_alone(target, monkeypatch):
    sizes: list[int] = []
    plain = TreeDrafting.propose

    def propose(self: TreeDrafting) -> DraftTree:
        tree = plain(self)
        sizes.append(tree.num_nodes)
        return tree

    monkeypatch.setattr(TreeDrafting, "propose", propose)
    model = MODELS["eagle2"](target, Auto(TREE))
    model.shape.costs = Costs(((1, 1.0), (64, 1.1)), (0.0, 9.0, 18.0, 27.0))
    engine = Engine(target, HybridDrafter(model))
    decode(engine, PROMPT, max_new_tokens=40)  # three rounds, in which the model drafts to be known
    sizes.clear()
    found = decode(engine, PROMPT, max_new_tokens=40)
    by_model = sum(size > 0 for size in sizes)
    assert by_model <= 2
    assert sum(step.num_drafted > 0 for step in found.steps) > by_model


@pytest.mark.parametrize(("shape", "beside"), [(Auto(TREE), True), (TREE, False)])
def test_a_size_that_is_given_stays_as_given(shape, beside, target):
    drafter = EagleDrafter(target, random_head(target), shape)
    assert isinstance(with_lookup(drafter), HybridDrafter) == beside
    assert isinstance(with_lookup(PromptLookupDrafter()), PromptLookupDrafter)


# --- what a cycle of the model promises -----------------------------------------------------------------------------


def test_worth_counts_what_the_time_would_bring_otherwise():
    assert Prospect(1.2, 1.5).worth(1.0) == pytest.approx(0.7)
    assert Prospect(1.2, 1.5).worth(2.0) == pytest.approx(0.2)


def values(tree: Sequence[float]) -> DraftTree:
    count = len(tree)
    return DraftTree(
        torch.arange(count), torch.arange(count) - 1, torch.arange(1, count + 1), torch.tensor(tree).log(), count
    )


def test_the_prospect_is_that_of_the_best_size_and_unknown_while_a_round_is_due():
    table = Costs(((1, 1.0), (2, 1.1), (3, 1.2)), (0.0, 0.1, 0.2))
    chooser = SizeChooser(2, 2, 2)
    assert chooser.prospect() is None
    seconds = dict.fromkeys(("draft", "build", "verify", "sample", "commit"), 0.0) | {"verify": 1.0}
    for _ in range(9):  # three rounds of a look, a trial and a plain cycle
        size = chooser.next(table)
        tree = values([0.8, 0.5][: 0 if size is None else size.total])
        if size is not None and size.look:
            chooser.record_candidates(values([0.8, 0.5]))
        chooser.record_tree(tree, tree.num_nodes)
        chooser.record_times(seconds, None)
    found = chooser.prospect()
    assert found is not None
    assert found.price == pytest.approx(chooser.price(table, 2, 2)) == pytest.approx(1.4)
    assert 1.3 < found.tokens <= 2  # by its values, trusted a little more since all were accepted
