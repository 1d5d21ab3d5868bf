"""Answers are found under any chat template, and the target's own answers are what it would say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from families import build
from slipstream.errors import ArtifactError, InputError
from slipstream.target.target import Target
from slipstream.training.data.batched_decoding import answer_together
from slipstream.training.data.corpus import Example
from slipstream.training.data.dialogues import (
    Dialogue,
    RegenerateSettings,
    encode,
    regenerate,
    usable_dialogues,
)


class LetterTokenizer:
    """One token a letter (a = 2, b = 3, ...), roles and ends as special tokens in upper case and punctuation."""

    chat_template: str | None = "there is one"

    def __init__(self, style: str = "plain") -> None:
        self.style = style

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) % 64 for letter in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(97 + token % 26) for token in ids)

    def apply_chat_template(self, messages, add_generation_prompt: bool = False, return_dict: bool = True):
        if messages[0]["role"] == "tool":
            raise ValueError("no tools here")
        text = "^"
        for index, message in enumerate(messages):
            content = message["content"]
            if self.style == "forgets thoughts" and index < len(messages) - 1:
                content = content.replace("think", "")  # as templates of reasoning models do with earlier turns
            text += message["role"][0].upper() + content + "|"
        return {"input_ids": self.encode(text + ("A" if add_generation_prompt else ""))}


def marked(example: Example, tokenizer: LetterTokenizer) -> str:
    dialogue = encode(example, tokenizer)
    whole = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in example.segments])["input_ids"]
    assert list(dialogue.token_ids) == whole
    text = {ord(letter) % 64: letter for letter in "^USA|abcdefghijklmnopqrstuvwxyz"}
    return "".join(text[t] if a else "-" for t, a in zip(dialogue.token_ids, dialogue.answer, strict=True))


def talk(*turns: str) -> Example:
    return Example(tuple((role, text) for role, text in zip(["user", "assistant"] * 3, turns, strict=False)))


def test_answers_and_their_end_are_marked_turn_by_turn():
    assert marked(talk("hi", "yes", "why", "so"), LetterTokenizer()) == "------yes|------so|"


def test_where_a_template_rewrites_history_only_what_stays_is_marked():
    assert marked(talk("hi", "thinkno", "b", "thinkso"), LetterTokenizer("forgets thoughts")).endswith("-thinkso|")


def test_text_without_roles_counts_as_a_whole():
    dialogue = encode(Example((("text", "abc"),)), LetterTokenizer())
    assert (len(dialogue.token_ids), all(dialogue.answer)) == (3, True)


def test_a_tokenizer_without_template_gets_the_bare_text():
    tokenizer = LetterTokenizer()
    tokenizer.chat_template = None
    dialogue = encode(talk("ab", "cd"), tokenizer)
    assert list(dialogue.token_ids) == tokenizer.encode("ab\ncd")
    assert dialogue.answer == (False, False, True, True, True)


def test_dialogues_are_cut_and_those_without_answers_dropped():
    long = Dialogue((5,) * 9, (False,) * 6 + (True,) * 3)
    assert usable_dialogues([long], 8) == [Dialogue((5,) * 8, (False,) * 6 + (True,) * 2)]
    assert usable_dialogues([long], 6) == []
    assert usable_dialogues([Dialogue((5, 6), (True, True))], 8) == [], "a row learns the token after the next"


def test_a_refused_conversation_is_one_clear_line():
    with pytest.raises(InputError, match=r"chat template refuses.*tool"):
        encode(Example((("tool", "x"), ("assistant", "y"))), LetterTokenizer())


# -- answers by the target -----------------------------------------------------------------------------------------

SETTINGS = RegenerateSettings(max_new_tokens=6, batch_size=2)


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(build("llama"))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [talk("a" * n, "ignored", "more", "ignored too") for n in (3, 9, 5)] + [Example((("text", "no turns"),))]


def test_answers_are_the_targets_own(target, examples, tmp_path):
    dialogues = list(regenerate(target, LetterTokenizer(), examples, tmp_path / "answers.jsonl", SETTINGS))
    assert len(dialogues) == 6, "two turns of three conversations"
    for dialogue in dialogues:
        start = dialogue.answer.index(True)
        alone = torch.tensor([dialogue.token_ids[:start]])
        expected = target.model.generate(alone, max_new_tokens=6, do_sample=False, pad_token_id=0)[0].tolist()
        assert list(dialogue.token_ids) == expected
        assert all(dialogue.answer[start:])
    first, second = dialogues[0], dialogues[3]
    history = LetterTokenizer().decode(list(first.token_ids[first.answer.index(True) :]))
    messages = [("user", "aaa"), ("assistant", history), ("user", "more")]
    rendered = LetterTokenizer().apply_chat_template(
        [{"role": role, "content": text} for role, text in messages], add_generation_prompt=True
    )["input_ids"]
    assert list(second.token_ids[: len(rendered)]) == rendered, "later turns follow the target's own answers"


def test_an_answer_ends_with_its_end_of_sequence_token(target, examples, tmp_path):
    free = next(iter(regenerate(target, LetterTokenizer(), examples[:1], tmp_path / "free.jsonl", SETTINGS)))
    end = free.token_ids[-4]
    target.model.generation_config.eos_token_id = end
    try:
        cut = next(iter(regenerate(target, LetterTokenizer(), examples[:1], tmp_path / "cut.jsonl", SETTINGS)))
    finally:
        target.model.generation_config.eos_token_id = None
    start = free.answer.index(True)
    answer = list(free.token_ids[start:])
    assert list(cut.token_ids[start:]) == answer[: answer.index(end) + 1]


def test_interrupted_work_is_taken_up(target, examples, tmp_path, monkeypatch):
    store = tmp_path / "answers.jsonl"
    whole = list(regenerate(target, LetterTokenizer(), examples, store, SETTINGS))
    lines = store.read_text().splitlines(keepends=True)
    store.write_text("".join(lines[:4]) + lines[4][:7])  # killed while the fifth answer was written
    asked: list[int] = []

    def counted(target: Target, prompts: list[list[int]], *args: Any, **how: Any) -> list[list[int]]:
        asked.append(len(prompts))
        return answer_together(target, prompts, *args, **how)

    monkeypatch.setattr("slipstream.training.data.dialogues.answer_together", counted)
    assert list(regenerate(target, LetterTokenizer(), examples, store, SETTINGS)) == whole
    assert sum(asked) == 2
    assert len({(r["example"], r["turn"]) for r in map(json.loads, store.read_text().splitlines())}) == 6


def test_a_damaged_store_is_named(target, examples, tmp_path: Path):
    (tmp_path / "answers.jsonl").write_text("[]\n")
    with pytest.raises(ArtifactError, match=r"answers\.jsonl"):
        list(regenerate(target, LetterTokenizer(), examples, tmp_path / "answers.jsonl", SETTINGS))


def test_prompts_that_fill_the_context_are_left_out(target, tmp_path):
    long = talk("a" * 126)
    assert list(regenerate(target, LetterTokenizer(), [long], tmp_path / "answers.jsonl", SETTINGS)) == []


def test_sampled_answers_follow_the_seed(target, examples, tmp_path):
    def answers(seed: int) -> list[Dialogue]:
        how = RegenerateSettings(max_new_tokens=6, temperature=1.0, max_turns=1, seed=seed)
        return list(regenerate(target, LetterTokenizer(), examples, tmp_path / f"{len(list(tmp_path.iterdir()))}", how))

    first = answers(1)
    assert first == answers(1)
    assert first != answers(2)
