"""Drafting from a part of the vocabulary changes no token, scores as the whole LM head does, and counts rightly."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import slipstream
from doubles import decode
from families import build, prompt_ids
from methods.eagle.test_eagle import SHAPES, random_head
from methods.watching import Watching
from oracle import oracle_generate
from slipstream.drafting.draft_vocabulary import (
    VOCABULARY_FILE,
    DraftVocabulary,
    PartialHead,
    asked_vocabulary,
    count_vocabulary,
    load_vocabulary,
)
from slipstream.drafting.shape import Static
from slipstream.engine.engine import Engine
from slipstream.errors import ArtifactError, InputError
from slipstream.methods.eagle.checkpoint import save_head
from slipstream.methods.eagle.drafter import EagleDrafter
from slipstream.target.target import Target

FAMILIES = ("llama", "gemma2", "granite", "gpt2", "phi", "cohere")  # capped, scaled, tied, with a bias
PROMPT = prompt_ids(7, seed=4) * 3


@pytest.fixture(scope="module")
def targets(family_model) -> dict[str, Target]:
    return {name: Target(family_model(name)) for name in FAMILIES}


def some_tokens(target: Target, count: int = 30) -> DraftVocabulary:
    order = torch.randperm(target.vocab_size, generator=torch.Generator().manual_seed(1))
    return DraftVocabulary(order[:count])


class Watched(Watching, EagleDrafter):
    """Keeps what it proposed."""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_partial_head_scores_as_the_whole_one(name, targets):
    target = targets[name]
    ids = some_tokens(target).ids
    hidden = torch.randn(
        1, 5, target.config.hidden_size, dtype=target.dtype, generator=torch.Generator().manual_seed(2)
    )
    torch.testing.assert_close(PartialHead(target, ids)(30 * hidden), target.head(30 * hidden)[..., ids])


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("method", SHAPES)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_tokens_are_those_of_plain_decoding(name, method, temperature, targets):
    target = targets[name]
    vocabulary = some_tokens(target)
    shape = SHAPES[method]
    shape = shape.within(len(vocabulary)) if isinstance(shape, Static) else shape
    drafter = Watched(target, random_head(target), shape, vocabulary)
    settings = {"max_new_tokens": 14, "temperature": temperature, "seed": 5}
    assert decode(Engine(target, drafter), PROMPT, **settings).ids == oracle_generate(target.model, PROMPT, **settings)
    drafted = torch.cat([tree.tokens for _, tree in drafter.proposals])
    assert drafted.numel() > 0
    assert torch.isin(drafted, vocabulary.ids).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_whole_vocabulary_in_another_order_drafts_the_same(temperature, targets):
    target = targets["llama"]
    settings = {"max_new_tokens": 14, "temperature": temperature, "seed": 3}
    trees = []
    for vocabulary in (None, some_tokens(target, target.vocab_size)):
        drafter = Watched(target, random_head(target), SHAPES["eagle2"], vocabulary)
        decode(Engine(target, drafter), PROMPT, **settings)
        trees.append([tree.tokens.tolist() for _, tree in drafter.proposals])
    assert trees[0] == trees[1]


def test_a_vocabulary_smaller_than_the_tree_is_wide_is_exact(targets):
    target = targets["llama"]
    drafter = EagleDrafter(target, random_head(target), SHAPES["eagle2"], some_tokens(target, 2))
    expected = oracle_generate(target.model, PROMPT, max_new_tokens=9)
    assert decode(Engine(target, drafter), PROMPT, max_new_tokens=9).ids == expected


def test_a_file_beside_the_head_is_used_unless_another_is_asked_for(tmp_path, targets):
    target = targets["llama"]
    save_head(random_head(target), tmp_path, target)

    def columns(**options: object) -> int | None:
        drafter = slipstream.load(target.model, "eagle2", draft=tmp_path, **options).drafter
        return None if drafter.ids is None else len(drafter.ids)

    assert columns() is None
    some_tokens(target, 20).save(tmp_path / VOCABULARY_FILE)
    some_tokens(target, 9).save(tmp_path / "other.safetensors")
    assert columns() == 20
    assert columns(draft_vocabulary=7) == 7
    assert columns(draft_vocabulary="all") is None
    assert columns(draft_vocabulary=str(tmp_path / "other.safetensors")) == 9
    for wrong in (0, 21, "nowhere", 1.5, True):
        with pytest.raises(InputError, match="draft_vocabulary is"):
            columns(draft_vocabulary=wrong)


def test_a_number_needs_a_file_beside_the_head(targets):
    with pytest.raises(InputError, match=r"no draft_vocabulary.safetensors lies beside the head"):
        asked_vocabulary(5, None, targets["llama"])


def test_counting_orders_by_frequency_and_keeps_the_ends():
    target = Target(build("llama"))
    a, b, c, end = 10, 11, 12, 3
    target.model.generation_config.eos_token_id = [end]
    answers = [[b, b, a, c, c], [b, a]]
    assert count_vocabulary(answers, 3, target).ids.tolist() == [b, a, end]
    assert count_vocabulary(answers, 50, target).ids.tolist() == [b, a, c, end]
    for size in (0, target.vocab_size + 1):
        with pytest.raises(InputError, match="the size is"):
            count_vocabulary(answers, size, target)


def test_a_file_is_read_back_and_damage_is_named(tmp_path, targets):
    target, path = targets["llama"], tmp_path / VOCABULARY_FILE
    kept = some_tokens(target)
    kept.save(path)
    assert load_vocabulary(path, target).ids.tolist() == kept.ids.tolist()
    for ids, message in (([1, 1], "each token once"), ([-1], "names token"), ([target.vocab_size], "count a draft")):
        save_file({"ids": torch.tensor(ids)}, path)
        with pytest.raises(ArtifactError, match=message):
            load_vocabulary(path, target)
    path.write_bytes(b"no tensors")
    with pytest.raises(ArtifactError, match="not a readable draft vocabulary"):
        load_vocabulary(path, target)


def test_a_quantised_lm_head_is_drafted_from_whole(tmp_path, monkeypatch, targets):
    target = targets["llama"]
    save_head(random_head(target), tmp_path, target)
    some_tokens(target, 20).save(tmp_path / VOCABULARY_FILE)

    def quantised(target: Target) -> None:
        raise InputError("the LM head is quantised")

    monkeypatch.setattr("slipstream.drafting.draft_vocabulary.lm_head_to_copy", quantised)
    assert slipstream.load(target.model, "eagle2", draft=tmp_path).drafter.ids is None
    with pytest.raises(InputError, match="quantised, so no rows of it can be taken out"):
        slipstream.load(target.model, "eagle2", draft=tmp_path, draft_vocabulary=5)
