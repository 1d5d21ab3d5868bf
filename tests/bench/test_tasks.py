from __future__ import annotations

import json
from pathlib import Path

import pytest

from slipstream.bench.tasks import in_turns, load_tasks, questions_hash
from slipstream.errors import InputError
from slipstream.prompts import KINDS, read_questions


def questions(path: Path, *turns: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"question_id": number, "turns": [turn]}) for number, turn in enumerate(turns)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_shipped_prompts_are_tasks_by_kind() -> None:
    assert set(load_tasks(None)) == set(KINDS)


def test_a_file_is_one_task(tmp_path: Path) -> None:
    tasks = load_tasks(questions(tmp_path / "mine.jsonl", "a", "b"))
    assert [one.turns for one in tasks["mine"]] == [("a",), ("b",)]


def test_a_folder_holds_the_papers_tasks_in_their_order_and_others(tmp_path: Path) -> None:
    for name in ("zebra", "nq", "mt_bench", "alpaca"):
        questions(tmp_path / f"{name}.jsonl", name)
    assert list(load_tasks(tmp_path)) == ["mt_bench", "alpaca", "nq", "zebra"]


def test_the_folders_of_eagles_repository_are_read(tmp_path: Path) -> None:
    for folder in ("mt_bench", "sum", "qa"):
        questions(tmp_path / folder / "question.jsonl", folder)
    assert {name: one[0].turns[0] for name, one in load_tasks(tmp_path).items()} == {
        "mt_bench": "mt_bench",
        "cnn_dm": "sum",
        "nq": "qa",
    }


def test_tasks_and_prompts_can_be_chosen(tmp_path: Path) -> None:
    for name in ("nq", "mt_bench"):
        questions(tmp_path / f"{name}.jsonl", "a", "b", "c")
    tasks = load_tasks(tmp_path, ["nq"], 2)
    assert list(tasks) == ["nq"]
    assert len(tasks["nq"]) == 2
    with pytest.raises(InputError, match="unknown task 'gsm8k'"):
        load_tasks(tmp_path, ["gsm8k"])


def test_prompts_of_all_tasks_take_turns(tmp_path: Path) -> None:
    questions(tmp_path / "a.jsonl", "a0", "a1", "a2")
    questions(tmp_path / "b.jsonl", "b0")
    assert [one.turns[0] for one in in_turns(load_tasks(tmp_path))] == ["a0", "b0", "a1", "a2"]


def test_other_questions_have_another_hash(tmp_path: Path) -> None:
    first = questions_hash(load_tasks(questions(tmp_path / "a.jsonl", "x", "y")))
    assert first == questions_hash(load_tasks(tmp_path / "a.jsonl"))
    assert first != questions_hash(load_tasks(questions(tmp_path / "a.jsonl", "x", "z")))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no question"),
        ("{]\n", "line 1 is not JSON"),
        ('{"question_id": 1, "turns": ["a"]}\n{"question_id": 2}\n', "line 2 is no question"),
        ('{"question_id": 1, "turns": []}\n', "line 1 is no question"),
        ('{"question_id": 1, "turns": ["a", 3]}\n', "line 1 is no question"),
        ('{"question_id": 1, "turns": ["a", " "]}\n', "line 1 is no question"),
        ('{"question_id": 1, "turns": ["a"]}\n{"question_id": 1, "turns": ["b"]}\n', "1 stands twice"),
    ],
)
def test_what_is_no_question_file_is_refused_by_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_questions(path, "mine")


def test_a_place_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no question file"):
        load_tasks(tmp_path)
    with pytest.raises(InputError, match="there is no file or folder"):
        load_tasks(tmp_path / "nowhere")
