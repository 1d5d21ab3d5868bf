"""`auto` picks the head that was given, the one that ships, or prompt lookup, and says what an option is for."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import slipstream
from families import prompt_ids
from methods.eagle.test_eagle import random_head
from methods.eagle3.test_eagle3 import random_head as eagle3_head
from oracle import oracle_generate
from slipstream.drafting.draft_vocabulary import DraftVocabulary
from slipstream.errors import ArtifactError, InputError
from slipstream.methods.eagle.checkpoint import save_head
from slipstream.methods.eagle3.checkpoint import save_head as save_eagle3
from slipstream.target.target import Target

PROMPT = prompt_ids(7, seed=4) * 3


@pytest.fixture(scope="module")
def target(family_model) -> Target:
    return Target(family_model("llama"))


def test_it_is_the_default():
    assert slipstream.load("tiny").method == "eagle2+prompt-lookup"


def test_a_model_without_a_head_gets_prompt_lookup(target):
    assert slipstream.load(target.model).method == "prompt-lookup"


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_head_that_is_given_drafts(pickled, temperature, target, tmp_path):
    save_head(random_head(target), tmp_path, target)
    if pickled:
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    model = slipstream.load(target.model, draft=tmp_path, total=12)
    assert model.method == "eagle2"
    answer = model.generate(PROMPT, max_new_tokens=14, temperature=temperature, seed=5)
    expected = oracle_generate(target.model, PROMPT, max_new_tokens=14, temperature=temperature, seed=5)
    assert answer.token_ids == expected
    assert answer.stats.num_drafted > 0


@pytest.mark.parametrize(("artefact", "method"), [("medusa", "medusa"), ("hydra", "hydra"), ("draft", "draft-model")])
def test_other_artefacts_are_known_too(artefact, method):
    folder = slipstream.files.packaged.shipped("tiny", artefact)
    assert slipstream.load("tiny", draft=folder).method == f"{method}+prompt-lookup"


def test_an_eagle3_head_is_known_by_its_files(target, tmp_path):
    save_eagle3(eagle3_head(target), tmp_path, target)
    model = slipstream.load(target.model, draft=tmp_path, total=12)
    assert model.method == "eagle3"
    answer = model.generate(PROMPT, max_new_tokens=14, temperature=0.0)
    assert answer.token_ids == oracle_generate(target.model, PROMPT, max_new_tokens=14)
    assert answer.stats.num_drafted > 0
    with pytest.raises(InputError, match="'auto' is 'eagle3' for this model and has no option 'draft_vocabulary'"):
        slipstream.load(target.model, draft=tmp_path, draft_vocabulary=9)


def test_options_of_another_method_are_refused_by_name(target):
    with pytest.raises(InputError, match="'auto' is 'prompt-lookup' for this model and has no option 'width'"):
        slipstream.load(target.model, width=4)
    with pytest.raises(InputError, match="no option 'colour'"):
        slipstream.load(target.model, colour="blue")
    with pytest.raises(InputError, match="has no option 'calibrated' then"):
        slipstream.load(target.model, calibrated=False)


def test_what_is_no_drafter_is_refused(target, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sofa"}))
    with pytest.raises(ArtifactError, match="nothing that is known to draft; name its method"):
        slipstream.load(target.model, draft=tmp_path)


def test_a_draft_vocabulary_reaches_the_head(target, tmp_path):
    save_head(random_head(target), tmp_path, target)
    DraftVocabulary(torch.arange(20)).save(tmp_path / "draft_vocabulary.safetensors")
    assert len(slipstream.load(target.model, draft=tmp_path, draft_vocabulary=9).drafter.model.ids) == 9
