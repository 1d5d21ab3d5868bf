"""Prompts and answers as token ids are read as they are, and only those of the same target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from families import build
from slipstream.errors import InputError
from slipstream.target.target import Target
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.data.token_lines import holds_token_lines, read_token_lines


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(build("llama"))


def written(path: Path, *records: dict[str, Any], end: str = "\n") -> Path:
    path.write_text("\n".join(json.dumps(one) for one in records) + end)
    return path


def test_the_answer_is_what_the_target_wrote(target, tmp_path):
    path = written(tmp_path / "a", {"example": 0, "prompt_ids": [1, 2], "ids": [3], "target": target.hash})
    assert holds_token_lines(path)
    assert list(read_token_lines(path, target)) == [Dialogue((1, 2, 3), (False, False, True))]


def test_other_files_are_told_apart(tmp_path):
    assert not holds_token_lines(written(tmp_path / "a", {"messages": []}))
    (tmp_path / "b").write_text("nonsense")
    (tmp_path / "c").write_text("")
    assert not holds_token_lines(tmp_path / "b")
    assert not holds_token_lines(tmp_path / "c")


def test_a_line_that_is_being_written_is_left_out(target, tmp_path, caplog):
    path = written(tmp_path / "a", {"prompt_ids": [1], "ids": [2]}, {"prompt_ids": [1], "ids": [23]}, end="")
    path.write_text(path.read_text()[:-3])
    assert list(read_token_lines(path, target)) == [Dialogue((1, 2), (False, True))]
    assert "line 2 has no end" in caplog.text


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt_ids": [1], "ids": [2], "target": "other"}, "answered by the target other"),
        ({"prompt_ids": [1], "ids": ["x"]}, "line 2 is not"),
        ({"prompt_ids": [1]}, "line 2 is not"),
        ({"prompt_ids": [1], "ids": [64]}, "outside the target's vocabulary of 64"),
    ],
)
def test_anything_else_is_one_clear_line(record, message, target, tmp_path):
    path = written(tmp_path / "a", {"prompt_ids": [1], "ids": [2]}, record)
    with pytest.raises(InputError, match=message):
        list(read_token_lines(path, target))
