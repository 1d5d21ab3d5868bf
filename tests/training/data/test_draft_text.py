"""The text that the demo's drafters learn from: the corpus as it is, and what the target itself says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from families import build
from slipstream.errors import InputError
from slipstream.target.target import Target
from slipstream.training.data.corpus import PROMPT_BIT, Source
from slipstream.training.data.draft_text import DraftTextSettings, draft_text
from slipstream.training.data.encoded import Corpus, prepare

SETTINGS = DraftTextSettings(num_documents=20, num_answered=5, max_length=24, answer_tokens=6, max_prompt=20)


@pytest.fixture(scope="module")
def corpus(data: Path, mix: dict[str, Source], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare(data, tmp_path_factory.mktemp("encoded"), 300, 64, mix)


@pytest.fixture(scope="module")
def target() -> Target:
    model = build("llama", vocab_size=300, weight_std=0.2).float()
    model.generation_config.eos_token_id = 2
    return Target(model)


def test_documents_are_windows_of_the_corpus_with_the_users_part_unmarked(corpus, target, tmp_path):
    text = draft_text(target, corpus, tmp_path, replace(SETTINGS, num_answered=0))
    whole = {
        name: [tuple((int(t) & (PROMPT_BIT - 1), int(t) < PROMPT_BIT) for t in one) for one in documents]
        for name, documents in ((name, [part[i] for i in range(len(part))]) for name, part in corpus.train.items())
    }
    for dialogue in text:
        window = tuple(zip(dialogue.token_ids, dialogue.answer, strict=True))
        assert len(window) <= SETTINGS.max_length
        assert any(
            window == document[start : start + len(window)]
            for documents in whole.values()
            for document in documents
            for start in range(len(document) - len(window) + 1)
        )


def test_answers_are_what_the_target_says_greedily_and_sampled(corpus, target, tmp_path):
    text = draft_text(target, corpus, tmp_path, SETTINGS)[-2 * SETTINGS.num_answered :]
    greedy = text[: SETTINGS.num_answered]
    for dialogue in greedy:
        start = dialogue.answer.index(True)
        assert dialogue.answer == (*[False] * start, *[True] * (len(dialogue.answer) - start))
        logits = target.model(torch.tensor([dialogue.token_ids])).logits[0]
        assert tuple(logits[start - 1 : -1].argmax(dim=-1).tolist()) == dialogue.token_ids[start:]
    assert [one.token_ids for one in greedy] != [one.token_ids for one in text[SETTINGS.num_answered :]]


def test_it_is_the_same_again_and_answers_are_not_made_twice(corpus, target, tmp_path, monkeypatch):
    first = draft_text(target, corpus, tmp_path, SETTINGS)
    monkeypatch.setattr(target.model, "generate", None)  # nothing may be generated now
    assert draft_text(target, corpus, tmp_path, SETTINGS) == first


def test_too_few_short_prompts_are_named(corpus, target, tmp_path):
    with pytest.raises(InputError, match="conversations open with at most 2 tokens; lower num_answered"):
        draft_text(target, corpus, tmp_path, replace(SETTINGS, max_prompt=2))
    with pytest.raises(InputError, match="max_length of the draft text is 0"):
        replace(SETTINGS, max_length=0)
