"""Token ids as prompts, in every form in which people hold them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

import slipstream
from byte_model import byte_tokenizer, save_byte_model
from slipstream.errors import InputError
from slipstream.prompt_ids import given_ids

IDS = [5, 6, 7]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> slipstream.Model:
    folder = save_byte_model(tmp_path_factory.mktemp("model"))
    return slipstream.load(folder, "plain", dtype="float64", device="cpu")


@pytest.mark.parametrize(
    "prompt",
    [
        IDS,
        tuple(IDS),
        range(5, 8),
        [IDS],
        [np.int64(5), np.int32(6), np.uint8(7)],
        [torch.tensor(5), 6, np.int64(7)],
        np.array(IDS),
        np.array([IDS], dtype=np.uint16),
        torch.tensor(IDS),
        torch.tensor([IDS], dtype=torch.int32),
        [torch.tensor(IDS)],
        {"input_ids": IDS},
        {"input_ids": [IDS], "attention_mask": [[1, 1, 1]], "token_type_ids": [[0, 0, 0]]},
        {"input_ids": IDS, "special_tokens_mask": [0, 0, 0], "pixel_values": None},
        BatchEncoding({"input_ids": torch.tensor([IDS]), "attention_mask": torch.ones(1, 3)}.items()),
        {"input_ids": torch.tensor([[0, 0, *IDS]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1]])},
        {"input_ids": [*IDS, 0], "attention_mask": [True, True, True, False]},
        BatchEncoding({"input_ids": np.array([[0, *IDS, 0]]), "attention_mask": np.array([[0, 1, 1, 1, 0]])}),
    ],
    ids=lambda prompt: type(prompt).__name__,
)
def test_ids_in_every_form(prompt):
    found = given_ids(prompt)
    assert found == IDS
    assert json.loads(json.dumps(found)) == IDS, "Python's own numbers"


@pytest.mark.parametrize("prompt", ["text", "", [], [{"role": "user", "content": "Hi"}]])
def test_text_messages_and_nothing_are_left_to_others(prompt):
    assert not given_ids(prompt)


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        (None, "the prompt is None; a prompt is text, token ids, or messages"),
        ("a \ud83d b", r"half a surrogate pair \(\\ud83d\)"),
        (b"Hi", "the prompt is a bytes"),
        (bytearray(b"Hi"), "the prompt is a bytearray"),
        (memoryview(b"Hi"), "the prompt is a memoryview"),
        (7, "the prompt is a int"),
        ((one for one in IDS), "the prompt is a generator"),
        ({5, 6}, "the prompt is a set"),
        ([5, None], "the prompt holds None where a token id should be"),
        ([5, 6.0], "the prompt holds 6.0 where"),
        ([True, False], "the prompt holds True where"),
        ([5, "a"], "the prompt holds a str where"),
        ([5, {"role": "user"}], "the prompt holds a dict where"),
        (torch.tensor([0.5]), "the prompt holds 0.5 where"),
        (np.array([True]), "the prompt holds True where"),
        (torch.tensor(5), "the prompt has 0 dimensions"),
        (torch.zeros(1, 1, 3, dtype=torch.int64), "the prompt has 3 dimensions"),
        (torch.tensor([IDS, IDS]), "the prompt has 2 rows, and batches are not served"),
        (np.array([IDS, IDS]), "the prompt has 2 rows, and batches are not served"),
        ([IDS, IDS], "the prompt is a list of 2 prompts, and batches are not served"),
        (["Hi", "Ho"], "the prompt is a list of 2 prompts, and batches are not served"),
        ([[{"role": "user", "content": "Hi"}]] * 3, "the prompt is a list of 3 prompts, and batches are not served"),
        ({"role": "user", "content": "Hi"}, "without input_ids; .*; put the message into a list"),
        ({"input_ids": [IDS, IDS]}, "the prompt is a list of 2 prompts, and batches are not served"),
        ({"input_ids": "Hi"}, "input_ids of the prompt are text"),
        ({"input_ids": IDS, "pixel_values": torch.zeros(1)}, "the prompt holds pixel_values, which is not read"),
        ({"input_ids": IDS, "token_type_ids": [0, 1, 1]}, "token_type_ids are not all 0"),
        ({"input_ids": IDS, "attention_mask": [1, 1]}, "attention_mask does not have one number for each of its 3"),
        ({"input_ids": IDS, "attention_mask": [0, 0, 0]}, "attention_mask hides all of it"),
        ({"input_ids": IDS, "attention_mask": [1, 0, 1]}, "attention_mask hides tokens in its middle"),
    ],
)
def test_what_is_no_prompt_is_refused_in_one_line(prompt, line):
    with pytest.raises(InputError, match=line) as caught:
        given_ids(prompt)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt", [np.array([], dtype=np.int64), {"input_ids": []}, {"input_ids": [[]]}])
def test_no_ids_at_all_are_an_empty_prompt(prompt, plain):
    with pytest.raises(InputError, match="the prompt is empty"):
        plain.generate(prompt)


def test_what_a_tokenizer_returns_is_a_prompt(plain):
    tokenizer = byte_tokenizer()
    plain_ids = tokenizer("Hello")["input_ids"]
    expected = plain.generate(plain_ids, max_new_tokens=6, temperature=0.0)
    for side in ("left", "right"):
        tokenizer.padding_side = side
        for form in ({}, {"return_tensors": "pt"}, {"return_tensors": "np"}):
            encoded = tokenizer(["Hello"], padding="max_length", max_length=9, **form)
            answer = plain.generate(encoded, max_new_tokens=6, temperature=0.0)
            assert (answer.token_ids, answer.prompt_ids) == (expected.token_ids, plain_ids), (side, form)


def test_numbers_of_numpy_and_torch_are_settings(plain):
    own = {"max_new_tokens": 8, "temperature": 1.0, "top_k": 5, "seed": 3, "stream_id": 2, "eos_token_id": 4}
    expected = plain.generate(IDS, **own).token_ids
    for kind in (np.int64, np.uint8, torch.tensor):
        settings = {name: kind(value) if isinstance(value, int) else np.float32(value) for name, value in own.items()}
        assert plain.generate(IDS, **settings).token_ids == expected


@pytest.mark.parametrize("form", [list, tuple, set, np.array, torch.tensor, lambda ends: list(np.array(ends))])
def test_end_tokens_in_every_form(form, plain):
    settings = {"max_new_tokens": 30, "temperature": 1.0, "seed": 1}
    free = plain.generate(IDS, eos_token_id=[], **settings).token_ids
    ends = [free[7], free[12]]
    answer = plain.generate(IDS, eos_token_id=form(ends), **settings)
    assert answer.token_ids == free[: min(map(free.index, ends)) + 1]


@pytest.mark.parametrize(("end", "line"), [(261, "end token 261"), (-1, "end token -1"), ([4, 999], "end token 999")])
def test_an_end_token_outside_the_vocabulary_is_refused(end, line, plain):
    with pytest.raises(InputError, match=f"the {line} is not in the target's vocabulary of 261"):
        plain.generate(IDS, eos_token_id=end)


@pytest.mark.parametrize("end", ["4", 4.0, True, [None], [[4]]])
def test_what_is_no_end_token_is_refused(end, plain):
    with pytest.raises(InputError, match=r"eos_token_id is .*; it must be a token id or a list of them"):
        plain.generate(IDS, eos_token_id=end)
