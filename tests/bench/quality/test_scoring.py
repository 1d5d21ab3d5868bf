"""A run's answers are scored by what the question files carry, plain beside every method, item by item."""

from __future__ import annotations

import json

import pytest

from bench_answers import line
from slipstream.bench.quality import scorers
from slipstream.bench.quality.records import Record
from slipstream.bench.quality.sandbox import Outcome, missing_part
from slipstream.bench.quality.scorers import find_scorer
from slipstream.bench.quality.scoring import score_run
from slipstream.errors import InputError
from slipstream.records.journal import Journal

linux_only = pytest.mark.skipif(missing_part() is not None, reason=str(missing_part()))

SUMS = [
    {"question_id": 1, "turns": ["1 + 1?"], "reference": ["#### 2"]},
    {"question_id": 2, "turns": ["2 + 2?"], "reference": ["#### 4"]},
    {"question_id": 3, "turns": ["Who are you?"]},
]
HEAD = 'def double(x):\n    """Twice x.\n\n    >>> double(2)\n    4\n    """\n'
CODE = [{"question_id": 1, "turns": [HEAD], "reference": ["    return 2 * x\n"]}]


def write_files(folder, **tasks):
    for task, lines in tasks.items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def write_run(folder, task, answers, temperature=0.0):
    """answers: {question id: {entrant: text or a list of samples}}."""
    journal = Journal(folder / "answers.jsonl")
    for number, entrants in answers.items():
        lines = [
            line(task=task, prompt_id=number, sample=sample, temperature=temperature, entrant=entrant, text=text)
            for entrant, texts in entrants.items()
            for sample, text in enumerate([texts] if isinstance(texts, str) else texts)
        ]
        journal.finish(task, number, lines, 1.0)
    return folder


@pytest.fixture
def folders(tmp_path):
    run, data = tmp_path / "run", tmp_path / "data"
    run.mkdir()
    data.mkdir()
    return run, data


def test_plain_stands_beside_every_entrant_and_differing_items_are_named(folders):
    run, data = folders
    answers = {1: {"plain": "It is 2.", "eagle2": "It is 2."}, 2: {"plain": "It is 4.", "eagle2": "It is 5."}}
    scores = score_run(write_run(run, "gsm8k", answers), write_files(data, gsm8k=SUMS))
    plain, eagle2 = scores["rows"]
    assert (plain["entrant"], plain["scores"], plain["num_differing"]) == ("plain", {"exact": 1.0}, 0)
    assert (eagle2["scores"], eagle2["plain_scores"]) == ({"exact": 0.5}, {"exact": 1.0})
    assert (eagle2["num_items"], eagle2["num_differing"]) == (2, 1)
    assert eagle2["differing"] == [
        {"prompt_id": 2, "turn": 0, "scores": {"exact": 0.0}, "plain_scores": {"exact": 1.0}}
    ]
    assert json.loads((run / "scores.json").read_text()) == scores


def test_questions_without_references_are_counted_and_not_scored(folders):
    run, data = folders
    answers = {1: {"plain": "2"}, 3: {"plain": "I am 4."}}
    scores = score_run(write_run(run, "gsm8k", answers), write_files(data, gsm8k=SUMS))
    assert (scores["tasks"]["gsm8k"]["num_items"], scores["tasks"]["gsm8k"]["num_items_without"]) == (1, 1)
    assert scores["rows"][0]["scores"] == {"exact": 1.0}


def test_temperatures_are_kept_apart_and_samples_of_an_item_averaged(folders):
    run, data = folders
    write_run(run, "gsm8k", {1: {"plain": "2"}})
    write_run(run, "gsm8k", {1: {"plain": ["2", "3", "3", "3"]}}, temperature=1.0)
    rows = score_run(run, write_files(data, gsm8k=SUMS))["rows"]
    assert [(row["temperature"], row["scores"]["exact"], row["num_answers"]) for row in rows] == [
        (0.0, 1.0, 1),
        (1.0, 0.25, 4),
    ]


def test_a_run_without_plain_is_scored_without_a_comparison(folders):
    run, data = folders
    row = score_run(write_run(run, "gsm8k", {1: {"hf-plain": "2"}}), write_files(data, gsm8k=SUMS))["rows"][0]
    assert (row["plain_scores"], row["num_differing"]) == (None, None)


@linux_only
def test_equal_texts_are_scored_once(folders, monkeypatch):
    run, data = folders
    ran = []
    monkeypatch.setattr(scorers, "run_tests", lambda job, **_: ran.append(job) or Outcome("2 * x" in job.code))
    answers = {1: {"plain": "    return 2 * x", "eagle2": "    return 2 * x", "medusa": "    return x"}}
    scores = score_run(write_run(run, "humaneval", answers), write_files(data, humaneval=CODE), run_code=True)
    assert len(ran) == 1 + 2  # the file's own solution, then two texts
    assert [row["scores"]["pass@1"] for row in scores["rows"]] == [1.0, 1.0, 0.0]
    assert scores["tasks"]["humaneval"]["num_texts"] == 2


@linux_only
def test_code_is_run_and_ten_samples_give_pass_at_10(folders):
    run, data = folders
    texts = ["```python\ndef double(x):\n    return 2 * x\n```"] + ["    return x"] * 10
    scores = score_run(
        write_run(run, "humaneval", {1: {"plain": texts}}), write_files(data, humaneval=CODE), run_code=True
    )
    assert scores["rows"][0]["scores"] == {"pass@1": pytest.approx(1 / 11), "pass@10": pytest.approx(10 / 11)}
    assert scores["tasks"]["humaneval"]["basis"] == "tests derived from the doctest examples in 1 prompts"


@linux_only
def test_derived_tests_that_the_files_own_solution_fails_are_left_out(folders):
    run, data = folders
    wrong = {"question_id": 2, "turns": [HEAD.replace("4", "5")], "reference": ["    return 2 * x\n"]}
    answers = {1: {"plain": "    return 2 * x"}, 2: {"plain": "    return 2 * x"}}
    scores = score_run(write_run(run, "humaneval", answers), write_files(data, humaneval=[*CODE, wrong]), run_code=True)
    assert scores["tasks"]["humaneval"]["num_items"] == 1
    assert "1 more left out, whose own solution fails them" in scores["tasks"]["humaneval"]["basis"]


def test_code_is_not_run_unasked(folders, monkeypatch):
    run, data = folders
    monkeypatch.setattr(scorers, "run_tests", lambda job, **_: pytest.fail("code was run"))
    write_run(run, "humaneval", {1: {"plain": "    return 2 * x"}})
    with pytest.raises(InputError, match="add --run-code"):
        score_run(run, write_files(data, humaneval=CODE))


def test_files_that_cannot_be_scored_are_named_beside_those_that_can(folders):
    run, data = folders
    write_run(run, "gsm8k", {1: {"plain": "2"}})
    write_run(run, "nq", {1: {"plain": "Rain."}})
    write_files(data, gsm8k=SUMS, nq=[{"question_id": 1, "turns": ["What falls?"]}])
    scores = score_run(run, data)
    assert list(scores["tasks"]) == ["gsm8k"]
    assert "neither references" in scores["unscored"]["nq"]
    with pytest.raises(InputError, match="neither references"):
        score_run(run, data / "nq.jsonl")


def test_the_files_of_another_run_are_refused(folders):
    run, data = folders
    write_run(run, "gsm8k", {7: {"plain": "2"}})
    with pytest.raises(InputError, match="question 7 of the run is not in the file of gsm8k"):
        score_run(run, write_files(data, gsm8k=SUMS))
    with pytest.raises(InputError, match="the run has answers to gsm8k, the data has questions of other"):
        score_run(run, write_files(data, other=SUMS) / "other.jsonl")


def questions(category="", **fields):
    return [Record(1, ("Say it.",), category, fields)]


@pytest.mark.parametrize(
    ("records", "metrics"),
    [
        (questions(reference=["so\n#### 2"]), {"exact"}),
        (questions(answer="so\n#### 2"), {"exact"}),
        (questions("math", reference=["2"]), {"exact"}),
        (questions("qa", reference=["Rain", "Snow"]), {"exact", "contains"}),
        (questions(answers=["Rain"]), {"exact", "contains"}),
        (questions("summarization", reference=["Rain fell."]), {"rouge1", "rouge2", "rougeL"}),
    ],
)
def test_the_scorer_is_told_by_the_fields(records, metrics):
    pytest.importorskip("rouge_score")
    assert set(find_scorer("task", records).score(records[0], 0, "Rain")) == metrics


def test_free_text_needs_a_choice():
    records = questions(reference=["Rain is water that falls."])
    with pytest.raises(InputError, match="choose it with --scorer: number, short, rouge, code"):
        find_scorer("alpaca", records)
    assert find_scorer("alpaca", records, "short").score(records[0], 0, "Rain")["exact"] == 0.0
    with pytest.raises(InputError, match="Did you mean 'rouge'"):
        find_scorer("alpaca", records, "rougue")


def test_each_turn_has_its_own_reference():
    record = Record(1, ("1 + 1?", "And one more?"), "math", {"reference": ["2", "3"]})
    scorer = find_scorer("task", [record])
    assert [scorer.score(record, turn, "3")["exact"] for turn in (0, 1)] == [0.0, 1.0]
