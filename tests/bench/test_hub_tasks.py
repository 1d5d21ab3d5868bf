"""Data sets of the hub become question files: rows in their order, references kept, every failure one clear line."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slipstream.bench.hub_tasks import (
    DEFAULT_ROWS,
    PRESETS,
    HubTask,
    fetch_questions,
    keep_questions,
    kept_questions,
    parse_task,
    parse_tasks,
    prompts_of,
)
from slipstream.bench.quality.records import load_records
from slipstream.bench.quality.scorers import find_scorer
from slipstream.bench.tasks import load_tasks
from slipstream.errors import InputError

ROW = {
    "xsum": {"document": "Rain fell.", "summary": "It rained.", "id": "1"},
    "cnn_dm": {"article": "Rain fell.", "highlights": "It rained.", "id": "1"},
    "gsm8k": {"question": "One and one?", "answer": "Add them.\n#### 2"},
    "humaneval": {
        "task_id": "HumanEval/0",
        "prompt": "def one():\n    '''One.'''\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
    },
    "nq": {"question": "who wrote it", "answer": ["A", "B"]},
}


class Hub:
    """Stands for the `datasets` package: hands out rows, and remembers what was asked of it."""

    def __init__(self, rows: list[dict[str, Any]] | Exception) -> None:
        self.rows, self.asked, self.num_read = rows, [], 0

    def load_dataset(self, *args, **kwargs):
        self.asked.append((args, kwargs))
        if isinstance(self.rows, Exception):
            raise self.rows
        return self._read()

    def _read(self):
        for row in self.rows:
            self.num_read += 1
            yield row


@pytest.fixture
def hub(monkeypatch):
    """Puts a double of the package in place."""

    def put(rows):
        double = Hub(rows)
        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=double.load_dataset))
        return double

    return put


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_makes_questions_that_can_be_asked_and_scored(name, hub, tmp_path: Path) -> None:
    double, task = hub([ROW[name]]), parse_task(name)
    keep_questions(tmp_path, task, fetch_questions(task))
    assert double.asked == [
        ((task.path, task.config), {"split": task.split, "revision": task.revision, "streaming": True})
    ]
    [prompt] = load_tasks(tmp_path / "questions")[name]
    assert ROW[name][task.column] in prompt.turns[0]
    assert [prompt] == prompts_of(task, kept_questions(tmp_path, task))
    [record] = load_records(tmp_path / "questions")[name].values()
    scorers = {"xsum": "rouge", "cnn_dm": "rouge", "gsm8k": "number", "nq": "short"}
    if name == "humaneval":
        assert record.fields["entry_point"] == "one"
        with pytest.raises(InputError, match="--run-code"):
            find_scorer(name, [record])
    else:
        expected = ROW[name][task.reference]
        assert record.references(0) == ([expected] if isinstance(expected, str) else expected)
        assert find_scorer(name, [record]).basis == find_scorer(name, [record], scorers[name]).basis


def test_the_first_rows_come_in_order_and_no_more_is_fetched(hub) -> None:
    double = hub([{"text": f"row {number}"} for number in range(DEFAULT_ROWS + 20)])
    task = parse_task("mine=me/rows:test:text")
    assert [one["turns"] for one in lines(fetch_questions(task, 3))] == [["row 0"], ["row 1"], ["row 2"]]
    assert double.num_read == 3
    assert len(lines(fetch_questions(task))) == DEFAULT_ROWS


def test_rows_without_a_text_are_left_out_and_keep_their_numbers(hub) -> None:
    hub([{"text": ""}, {"text": "a\u2028b"}, {"text": None}, {"text": "c"}])
    task = parse_task("mine=me/rows:test:text")
    assert [(one.id, one.turns) for one in prompts_of(task, fetch_questions(task))] == [(1, ("a\u2028b",)), (3, ("c",))]


def test_a_text_with_braces_stays_as_it_is(hub) -> None:
    hub([{"document": "{} {0}", "summary": "x"}])
    assert lines(fetch_questions(PRESETS["xsum"]))[0]["turns"] == ["Summarize in one sentence: {} {0}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=o/d:test:q", {"path": "o/d"}),
        ("a=o/d:test:q:r", {"path": "o/d", "reference": "r"}),
        ("a=o/d/main:test:q", {"path": "o/d", "config": "main"}),
        (
            "a=o/d/main@refs/convert/parquet:test:q",
            {"path": "o/d", "config": "main", "revision": "refs/convert/parquet"},
        ),
        ("a=./my/data/here:test:q", {"path": "./my/data/here"}),
    ],
)
def test_any_data_set_can_be_named(text: str, expected: dict[str, str]) -> None:
    assert parse_task(text) == HubTask(name="a", split="test", column="q", **expected)


@pytest.mark.parametrize("text", ["a=", "=o/d:t:c", "a=d:t:c", "a=o/d", "a=o/d:t", "a=o/d:t::r", "a/b=o/d:t:c"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not of the form NAME=OWNER/DATASET"):
        parse_task(text)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'xsum'"):
        parse_task("xsun")


def test_names_may_not_stand_twice() -> None:
    with pytest.raises(InputError, match="two tasks are called 'gsm8k'"):
        parse_tasks(["gsm8k"], taken=["gsm8k"])
    with pytest.raises(InputError, match="two tasks are called 'xsum'"):
        parse_tasks(["xsum", "xsum=o/d:t:c"])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            ConnectionError("Couldn't reach\nthe Hub"),
            r"cannot read the data set mine \(me/rows, test\): Couldn't reach the",
        ),
        (RuntimeError("Dataset scripts are no longer supported, but found rows.py"), "@refs/convert/parquet"),
        ([{"question": "a"}], "no column 'text'; it has question"),
        ([{"text": " "}], "no text in column 'text'"),
        ([], "no text in column 'text'"),
    ],
)
def test_what_cannot_be_read_is_one_line(rows, says: str, hub) -> None:
    hub(rows)
    with pytest.raises(InputError, match=says) as failure:
        fetch_questions(parse_task("mine=me/rows:test:text"))
    assert "\n" not in str(failure.value)


def test_a_missing_package_names_its_install_command(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install datasets"):
        fetch_questions(PRESETS["xsum"])


@pytest.mark.skipif(find_spec("datasets") is None, reason="the datasets package is not installed")
def test_the_real_package_reads_a_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"q": f"question {number}", "a": ["x", "y"]} for number in range(5)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = lines(fetch_questions(parse_task(f"mine={tmp_path}:test:q:a"), 2))
    assert [(one["question_id"], one["turns"], one["reference"]) for one in found] == [
        (0, ["question 0"], ["x", "y"]),
        (1, ["question 1"], ["x", "y"]),
    ]
