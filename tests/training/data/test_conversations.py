"""Training text as people have it: what is read, what is left out and said, and what is an error with its line."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from byte_model import byte_tokenizer
from slipstream.errors import InputError
from slipstream.training.data.corpus import PROMPT_BIT, Example, read_examples
from slipstream.training.data.dialogues import encode, render, usable_dialogues
from slipstream.training.data.token_lines import holds_token_lines
from slipstream.training.data.tokenizer import encode_examples, train_tokenizer

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
TALK = {"messages": [USER, ASSISTANT]}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


def written(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def segments(path: Path, record: object) -> tuple[tuple[str, str], ...]:
    (example,) = read_examples(written(path / "data.jsonl", record))
    return example.segments


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Yes", "Yes"),
        ([{"type": "text", "text": "Ye"}, {"type": "text", "text": "s"}], "Yes"),
        ([{"text": "Yes"}], "Yes"),
        (["Ye", "s"], "Yes"),
        ([], ""),
        (None, ""),
        ("", ""),
    ],
)
def test_the_text_of_a_turn_is_that_of_its_parts(tmp_path, content, text):
    record = {"messages": [USER, {"role": "assistant", "content": content}]}
    assert segments(tmp_path, record) == (("user", "Hi"), ("assistant", text))


def test_a_turn_may_lack_content(tmp_path):
    assert segments(tmp_path, {"messages": [USER, {"role": "assistant"}]})[1] == ("assistant", "")


def test_turns_without_text_are_no_answers():
    example = Example((("user", "Hi"), ("assistant", ""), ("tool", "7"), ("assistant", "Yes")))
    tokenizer = byte_tokenizer()
    dialogue = encode(example, tokenizer)
    whole = "<|user|>Hi<|end|><|assistant|><|end|><|tool|>7<|end|><|assistant|>Yes<|end|>"
    assert tokenizer.decode(list(dialogue.token_ids)) == whole
    learned = [token for token, answer in zip(dialogue.token_ids, dialogue.answer, strict=True) if answer]
    assert tokenizer.decode(learned) == "Yes<|end|>"
    assert not any(encode(Example(example.segments[:2]), tokenizer).answer)
    tokenizer.chat_template = None
    dialogue = encode(example, tokenizer)
    learned = [token for token, answer in zip(dialogue.token_ids, dialogue.answer, strict=True) if answer]
    assert tokenizer.decode(learned) == "\nYes"


def test_the_shipped_models_own_text_knows_no_answer_without_text():
    tokenizer = train_tokenizer(["Hi Yes " * 9], 300)
    with_text, without = (
        encode_examples(tokenizer, [Example((("user", "Hi"), ("assistant", text)))])[0] for text in ("Yes", "")
    )
    assert (with_text < PROMPT_BIT).sum() > 2
    assert (without < PROMPT_BIT).sum() == 1, "only the first token of a document counts"
    with pytest.raises(InputError, match="file line 3 has a turn of role 'tool'"):
        encode_examples(tokenizer, [Example((("tool", "7"),), "file line 3")])


@pytest.mark.parametrize(
    ("name", "role"),
    [("human", "user"), ("gpt", "assistant"), ("system", "system"), ("user", "user"), ("assistant", "assistant"),
     ("tool", "tool"), ("observation", "tool"), ("function_call", "assistant")],
)  # fmt: skip
def test_sharegpt_names_are_roles(tmp_path, name, role):
    record = {"id": "a", "conversations": [{"from": name, "value": "Hi"}, {"from": "gpt", "value": "Yes"}]}
    assert segments(tmp_path, record) == ((role, "Hi"), ("assistant", "Yes"))


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"\n{json.dumps(TALK)}\n\n  \n\r\n{json.dumps(TALK)}".encode())
    assert [example.place for example in read_examples(path)] == [f"{path} line 2", f"{path} line 6"]
    path.write_bytes(b'\xef\xbb\xbf\n{"prompt_ids": [1], "ids": [2]}\n')
    assert holds_token_lines(path)
    path.write_bytes(b"")
    assert not holds_token_lines(path)


@pytest.mark.parametrize(
    ("unusable", "reason"),
    [
        ({"messages": []}, "it has no text"),
        ({"conversations": []}, "it has no text"),
        ({"messages": [{"role": "user", "content": None}, CALL]}, "it has no text"),
        ({"text": ""}, "it has no text"),
        ({"text": None}, "it has no text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ASSISTANT]},
            "it has a part of type 'image_url', and only text is read",
        ),
        ({"text": "a \ud83d b"}, r"it has half a surrogate pair \(\\ud83d\)"),
        ({"messages": [USER, {"role": "assistant", "content": "\udc00"}]}, r"half a surrogate pair \(\\udc00\)"),
    ],
)
def test_what_cannot_be_used_is_counted_and_said(tmp_path, caplog, unusable, reason):
    path = written(tmp_path / "data.jsonl", TALK, unusable, TALK, unusable)
    with caplog.at_level(logging.WARNING):
        assert len(list(read_examples(path))) == 2
    (said,) = caplog.messages
    assert said.startswith(f"2 of 4 examples are left out; {path} line 2: ")
    assert re.search(reason, said)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "is not JSON"),
        (b"[1]", "is not a training example"),
        (b'{"prompt": "Hi"}', "is not a training example; each line must be"),
        (b'{"messages": "Hi"}', "is not a training example"),
        (b'{"messages": ["Hi"]}', "has a turn that is neither"),
        (b'{"messages": [{"role": 1, "content": "Hi"}]}', "has a turn that is neither"),
        (b'{"messages": [{"role": "user", "content": 7}]}', "whose content is 7"),
        (b'{"messages": [{"role": "user", "content": [7]}]}', "has a part of content that is neither"),
        (b'{"conversations": [{"from": "critic", "value": "Hi"}]}', "from 'critic'; it must be from one of human, "),
        (b'{"text": 7}', "whose content is 7"),
        (b'{"text": "\xff"}', "is not UTF-8"),
        ('{"text": "Hi"}'.encode("utf-16"), "is not UTF-8"),
    ],
)
def test_what_is_malformed_is_an_error_with_its_line(tmp_path, line, reason):
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(TALK).encode() + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=f"{path} line 2 .*") as caught:
        list(read_examples(path))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ strftime_later() }}", "'strftime_later' is undefined"),
        ("{{ messages[7]['role'] }}", "no element 7"),
        ("{{ messages[0]['content'].missing.name }}", "no attribute 'missing'"),
        ("{{ 1 // 0 }}", "by zero"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_what_a_template_refuses_names_file_and_line(tmp_path, template, reason):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    path = written(tmp_path / "data.jsonl", TALK)
    (example,) = read_examples(path)
    with pytest.raises(InputError, match="refuses a conversation of roles user, assistant: ") as caught:
        encode(example, tokenizer)
    assert str(caught.value).startswith(f"{path} line 1: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"^the target's chat template refuses a conversation of roles user: "):
        render([USER], tokenizer)


def test_dialogues_without_an_answer_in_reach_are_counted(caplog):
    tokenizer = byte_tokenizer()
    dialogues = [
        encode(Example(turns), tokenizer) for turns in ((("user", "Hi"), ("assistant", "Yes")), (("user", "Hi"),))
    ]
    with caplog.at_level(logging.WARNING):
        assert usable_dialogues(dialogues, 99) == dialogues[:1]
    assert caplog.messages == ["1 of 2 dialogues hold no answer within 99 tokens and are left out"]
