"""`bench run --dataset`: rows of the hub are asked beside question files, and a resumed run does without the hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from byte_model import save_byte_model

SIZES = ("-n", 3, "-t", 0, "-d", "prompt-lookup", "--device", "cpu", "--no-report", "--json")


@pytest.fixture
def hub(monkeypatch):
    """The `datasets` package: four rows, or no network."""
    answers = SimpleNamespace(rows=[{"q": f"Row {n}?", "a": f"{n}"} for n in range(4)])

    def load_dataset(*args, **kwargs):
        if answers.rows is None:
            raise ConnectionError("Couldn't reach the Hub")
        return iter(answers.rows)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return answers


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question_id": 1, "turns": ["Mine?"]}\n')
    return path


def test_data_sets_and_files_are_both_run_and_a_resumed_run_needs_no_hub(cli, hub, questions, tmp_path: Path) -> None:
    model, folder = save_byte_model(tmp_path / "model"), tmp_path / "run"
    command = ("bench", "run", "-m", model, "--data", questions, "--dataset", "rows=me/rows:test:q:a", "--prompts", 2)
    first = cli(*command, "--out", folder, *SIZES)
    assert first.exit_code == 0, first.stderr
    record = json.loads(first.stdout)
    assert record["run"]["data"] == "mine.jsonl, rows (me/rows, test)"
    assert {task: one["num_prompts"] for task, one in record["tasks"].items()} == {"mine": 1, "rows": 2}
    kept = [json.loads(line) for line in (folder / "questions" / "rows.jsonl").read_text().splitlines()]
    assert [(one["question_id"], one["turns"], one["reference"]) for one in kept] == [
        (0, ["Row 0?"], "0"),
        (1, ["Row 1?"], "1"),
    ]
    hub.rows = None
    again = cli(*command, "--out", folder, "--resume", *SIZES)
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["rows"] == record["rows"]
    other = cli(*command, "--out", tmp_path / "other", *SIZES)
    assert other.exit_code == 2
    assert "cannot read the data set rows (me/rows, test): Couldn't reach the Hub" in other.stderr
    assert not (tmp_path / "other").exists()


def test_names_that_collide_are_refused(cli, hub, questions) -> None:
    found = cli("bench", "run", "--data", questions, "--dataset", "mine=me/rows:test:q", *SIZES)
    assert found.exit_code == 2
    assert "two tasks are called 'mine'" in found.stderr


def test_tasks_without_files_are_refused(cli, hub) -> None:
    found = cli("bench", "run", "--dataset", "rows=me/rows:test:q", "--tasks", "rows", *SIZES)
    assert found.exit_code == 2
    assert "--tasks chooses among the tasks of --data" in found.stderr
