"""A draft model must mean the target's tokens by their ids; what decides is the tokenizers, not the sizes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import slipstream
from doubles import decode
from families import REFUSED, build, prompt_ids
from oracle import oracle_generate
from slipstream.core.confidence import ConfidenceScale
from slipstream.drafting.shape import Auto, Dynamic
from slipstream.engine.engine import Engine
from slipstream.errors import ArtifactError, ArtifactWarning, InputError, UnsupportedTargetError
from slipstream.methods.draft_model.checkpoint import load_draft
from slipstream.methods.draft_model.drafter import DraftModelDrafter
from slipstream.methods.draft_model.vocabulary import check_same_vocabulary, fit_logits
from slipstream.methods.registry import METHODS, build_drafter
from slipstream.target.target import Target
from slipstream.training.data.tokenizer import save_tokenizer, train_tokenizer

WORDS = [f"w{number}" for number in range(60)]
TALK = [f"the bird number {n} sings over the river and {n} more follow" for n in range(40)]


@dataclass
class Words:
    """A tokenizer as far as vocabularies are concerned."""

    ordinary: list[str]
    added: dict[str, int] = field(default_factory=dict)

    def get_vocab(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.ordinary)} | self.added

    def get_added_vocab(self) -> dict[str, int]:
        return self.added


@pytest.fixture(scope="module")
def target(family_model) -> Target:
    return Target(family_model("llama"))


@pytest.fixture(scope="module")
def small() -> Target:
    return Target(build("llama", num_hidden_layers=1, seed=8))


@pytest.fixture(autouse=True)
def _no_warning_unless_expected():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# -- comparing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        Words(WORDS),
        Words(WORDS, {"<think>": 60, "</think>": 61}),  # a chat variant with more added tokens
        Words(WORDS[:-1], {"[PAD]": 59}),  # a reserved token renamed
        Words(WORDS[:40]),  # a vocabulary cut short
    ],
)
def test_one_family_has_one_vocabulary_whatever_its_added_tokens(other, target, small):
    padded = Target(build("llama", vocab_size=80, num_hidden_layers=1))
    for draft in (small, padded):
        check_same_vocabulary(target, draft, Words(WORDS, {"<end>": 60}), other)


def test_another_vocabulary_of_the_same_size_is_refused(target, small):
    swapped = [WORDS[1], WORDS[0], *WORDS[2:]]
    with pytest.raises(InputError, match=r"2 of 60 common token ids .*the first is 0: 'w0' there, 'w1' here"):
        check_same_vocabulary(target, small, Words(WORDS), Words(swapped))
    with pytest.raises(InputError, match="another vocabulary"):
        check_same_vocabulary(target, small, Words(WORDS), Words([]))


@pytest.mark.parametrize("missing", [(None, Words(WORDS)), (Words(WORDS), None), (None, None)])
def test_without_a_tokenizer_it_says_what_was_compared(missing, target, small):
    with pytest.warns(ArtifactWarning, match="tokenizer is not at hand, so only sizes and special ids were compared"):
        check_same_vocabulary(target, small, *missing)
    padded = Target(build("llama", vocab_size=80, num_hidden_layers=1))
    with pytest.raises(InputError, match=r"vocabulary size is 80, not 64 \(.*tokenizer is not at hand"):
        check_same_vocabulary(target, padded, *missing)
    other = Target(build("llama", bos_token_id=5, num_hidden_layers=1))
    with pytest.raises(InputError, match=r"bos_token_id is 5, not 1 \(.*draft_tokenizer="):
        check_same_vocabulary(target, other, *missing)


def test_logits_are_cut_or_padded_to_the_targets_ids():
    logits = torch.arange(6.0).view(2, 3)
    assert fit_logits(logits, 2).tolist() == [[0, 1], [3, 4]]
    assert fit_logits(logits, 3) is not None
    assert fit_logits(logits, 5)[1].tolist() == [3, 4, 5, -torch.inf, -torch.inf]


# -- loading -------------------------------------------------------------------------------------------------------


def save(folder: Path, texts: list[str], **settings: Any) -> Path:
    save_tokenizer(train_tokenizer(texts, 300), folder, 128)
    build("llama", vocab_size=300, weight_std=0.2, **settings).float().save_pretrained(folder)
    return folder


def test_a_folder_drafts_for_a_folder_of_its_tokenizer(tmp_path):
    big = save(tmp_path / "big", TALK)
    small = save(tmp_path / "small", TALK, num_hidden_layers=1)
    other = save(tmp_path / "other", [text[::-1] for text in TALK], num_hidden_layers=1)
    options = {"dtype": "float64", "device": "cpu"}
    plain = slipstream.load(big, "plain", **options).generate("the bird", max_new_tokens=20, temperature=0)
    for tree in ("dynamic", "chain"):
        model = slipstream.load(big, "draft-model", draft=small, tree=tree, **options)
        assert model.drafter.draft.dtype == torch.float64, "the target's, not as saved"
        assert model.generate("the bird", max_new_tokens=20, temperature=0).token_ids == plain.token_ids
    with pytest.raises(InputError, match="common token ids stand for another token"):
        slipstream.load(big, "draft-model", draft=other, **options)
    loaded = slipstream.load(big, "plain", **options)
    with pytest.raises(
        InputError, match="common token ids stand for another token"
    ):  # a loaded model, a tokenizer's path
        slipstream.load(
            loaded.target.model, "draft-model", draft=build("llama", vocab_size=300), draft_tokenizer=str(other),
            tokenizer=loaded.tokenizer,
        )  # fmt: skip


def test_the_method_is_built_from_its_options(target, small):
    with pytest.warns(ArtifactWarning, match="not at hand"):
        drafter = build_drafter("draft-model", target, {"draft": small.model})
    assert isinstance(drafter.shape, Auto)
    assert drafter.draft.model is small.model
    words = {"tokenizer": Words(WORDS), "draft_tokenizer": Words(WORDS)}
    fixed = {**words, "draft": small.model, "width": 2, "depth": 3, "total": 5}
    assert METHODS["draft-model"].build(target, fixed).shape == Dynamic(width=2, depth=3, total=5)
    chain = {**words, "draft": small.model, "tree": "chain", "length": 3, "schedule": "heuristic", "threshold": 0.1}
    built = METHODS["draft-model"].build(target, chain)
    assert (built.shape.kind, built.shape.length, built.shape.exit_rule.length) == ("chain", 3, 3)
    prompt = prompt_ids(9)
    assert decode(Engine(target, built), prompt).ids == oracle_generate(target.model, prompt, max_new_tokens=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tree": "chain", "width": 3}, "tree='chain'.* width"),
        ({"tree": "dynamic", "length": 3}, "tree='dynamic'.* length"),
        ({"threshold": 0.3}, "tree='dynamic'.* threshold"),
        ({}, "draft=PATH .*slipstream train draft"),
    ],
)
def test_options_that_nothing_would_read_are_refused(options, message, target):
    with pytest.raises(InputError, match=message):
        build_drafter("draft-model", target, options)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_draft_is_refused_by_name(name, target):
    build_refused, reason = REFUSED[name]
    with pytest.raises(UnsupportedTargetError, match=f"cannot draft: .*({reason})"):
        load_draft(build_refused(), target)


def test_a_draft_model_of_another_target_warns(target, small):
    model = build("llama", num_hidden_layers=1)
    model.config.slipstream = {"target": target.hash}
    assert load_draft(model, target).model is model, "trained on this target's ids: nothing to compare"
    model.config.slipstream = {"target": "0123456789abcdef"}
    with pytest.warns(ArtifactWarning, match="was trained for target 0123456789abcdef"):
        load_draft(model, target, Words(WORDS), Words(WORDS))


def test_a_calibrated_confidence_is_used_and_a_damaged_one_refused(target):
    model = build("llama", num_hidden_layers=1)
    model.config.slipstream = {"target": target.hash, "confidence_scale": {"floor": 0.1, "slope": 0.7, "greedy": 1.0}}
    assert DraftModelDrafter(target, load_draft(model, target)).confidence == ConfidenceScale(floor=0.1, slope=0.7)
    model.config.slipstream["confidence_scale"] = 3
    with pytest.raises(ArtifactError, match="confidence_scale is 3"):
        DraftModelDrafter(target, load_draft(model, target))
    model.config.slipstream = "yes"
    with pytest.raises(ArtifactError, match="slipstream is 'yes'; it must be an object"):
        load_draft(model, target)


def test_a_file_is_no_draft_model(target, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.safetensors is a file; give a model folder"):
        load_draft(tmp_path / "model.safetensors", target)


def test_the_drafter_leaves_a_loaded_model_where_it_is(target, small):
    drafter = DraftModelDrafter(target, small)
    assert (drafter.name, drafter.draft) == ("draft-model", small)


def test_one_end_token_is_the_same_as_a_list_of_it():
    target, small = (Target(build("llama", num_hidden_layers=1, seed=seed)) for seed in (8, 9))
    ends = {"one": 2, "list": [2], "twice": [2, 2], "several": [2, 3], "turned": [3, 2]}
    for name, own in ends.items():
        for other_name, other in ends.items():
            target.config.eos_token_id, small.config.eos_token_id = own, other
            same = ({name, other_name} <= {"one", "list", "twice"}) or ({name, other_name} <= {"several", "turned"})
            expected = (
                pytest.warns(ArtifactWarning) if same else pytest.raises(InputError, match=r"eos_token_id is .*, not ")
            )
            with expected:
                check_same_vocabulary(target, small, None, None)
