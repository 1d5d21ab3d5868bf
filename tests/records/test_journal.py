from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.errors import ArtifactError
from slipstream.records.journal import Journal, read_lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def test_finished_prompts_are_found_again(path: Path) -> None:
    journal = Journal(path)
    journal.finish("qa", 1, [{"text": "a"}, {"text": "b"}], 2.0)
    journal.finish("qa", "second", [{"text": "c\u2028d"}], 0.5)
    again = Journal(path)
    assert again.done == {("qa", 1), ("qa", "second")}
    assert again.wall_s == 2.5
    assert [one["text"] for one in read_lines(path)] == ["a", "b", "c\u2028d"]


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_prompt_that_was_cut_short_is_dropped(path: Path, kept: int) -> None:
    journal = Journal(path)
    journal.finish("qa", 1, [{"text": "a"}], 1.0)
    whole = path.read_bytes()
    journal.finish("qa", 2, [{"text": "b"}, {"text": "c"}], 1.0)
    path.write_bytes(path.read_bytes()[: len(whole) + kept])
    assert [one["text"] for one in read_lines(path)] == ["a"]  # reading changes nothing
    again = Journal(path)
    assert again.done == {("qa", 1)}
    assert path.read_bytes() == whole
    again.finish("qa", 2, [{"text": "d"}], 1.0)
    assert [one["text"] for one in read_lines(path)] == ["a", "d"]


def test_damage_in_the_middle_is_told_with_its_line(path: Path) -> None:
    Journal(path).finish("qa", 1, [{"text": "a"}], 1.0)
    path.write_bytes(b'{"text": tru\n' + path.read_bytes())
    with pytest.raises(ArtifactError, match=r"line 1 is damaged"):
        Journal(path)


def test_a_folder_without_answers_is_told(path: Path) -> None:
    with pytest.raises(ArtifactError, match="bench run"):
        list(read_lines(path))
