"""The demo target's tokenizer: exact round trips, cheap blanks, single digits, the chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from slipstream.training.data.corpus import PROMPT_BIT, Example, read_examples
from slipstream.training.data.tokenizer import SPECIAL_TOKENS, encode_examples, save_tokenizer, train_tokenizer

SAMPLE = ["def f(x):\n        return x + 12\n" * 20, "the cat sat on the mat. " * 50]
TOKENIZER = train_tokenizer(SAMPLE, 320)
TOKENIZER.encode_special_tokens = True


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(TOKENIZER, folder, context=64)
    return AutoTokenizer.from_pretrained(folder)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_byte_for_byte(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["", " ", "a\r\n\tb  ", "é漢🙂", "x = 10**-3  # ok\n\n\n    y", "don't  stop ."])
def test_saved_files_load_and_round_trip(loaded: Any, text: str) -> None:
    assert loaded.decode(loaded(text).input_ids) == text


def test_special_tokens_come_first_and_are_set(loaded: Any) -> None:
    assert loaded.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == ("<|pad|>", "<|bos|>", "<|end|>")


def test_digits_are_single_tokens() -> None:
    assert TOKENIZER.encode("12345").tokens == list("12345")


def test_a_run_of_blanks_is_one_token() -> None:
    assert len(TOKENIZER.encode("\n        return").ids) < 6


def test_training_documents_are_what_the_chat_template_writes(loaded: Any) -> None:
    turns = (("user", "the cat?"), ("assistant", "sat."), ("user", "mat"), ("assistant", "on it"))
    document = encode_examples(TOKENIZER, [Example(turns)])[0]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert (document & (PROMPT_BIT - 1)).tolist() == loaded.apply_chat_template(messages, return_dict=False)


def test_template_opens_the_answer_and_puts_the_system_message_before_the_user(loaded: Any) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|user|>S\n\nU<|end|><|assistant|>"


def test_only_user_tokens_carry_the_prompt_bit() -> None:
    document = encode_examples(TOKENIZER, [Example((("user", "mat"), ("assistant", "cat")))])[0]
    ids, marked = (document & (PROMPT_BIT - 1)).tolist(), (document & PROMPT_BIT > 0).tolist()
    start, middle = ids.index(SPECIAL_TOKENS.index("<|user|>")), ids.index(SPECIAL_TOKENS.index("<|assistant|>"))
    assert marked == [start <= i < middle for i in range(len(ids))]


def test_special_tokens_written_in_the_text_stay_text() -> None:
    document = encode_examples(TOKENIZER, [Example((("text", "a <|end|> b"),))])[0]
    assert document.tolist().count(SPECIAL_TOKENS.index("<|end|>")) == 1


def test_every_example_becomes_one_document(data: Path) -> None:
    examples = list(read_examples(data / "talk.jsonl"))
    assert len(encode_examples(TOKENIZER, examples, batch_size=7)) == len(examples)


def test_the_same_text_trains_the_same_tokenizer() -> None:
    assert Tokenizer.to_str(train_tokenizer(SAMPLE, 320)) == Tokenizer.to_str(train_tokenizer(SAMPLE, 320))
