"""Scores of a run's answers, plain beside every other entrant, item by item.

An item is one turn of one question. Where a method's answers are plain's, token for token, its scores are plain's too:
an item that differs is worth a look. Equal texts are scored once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from slipstream.bench.quality.pass_at_k import pass_at_k
from slipstream.bench.quality.records import Record, load_records
from slipstream.bench.quality.scorers import Scorer, find_scorer
from slipstream.bench.settings import PLAIN
from slipstream.errors import InputError
from slipstream.records.journal import read_answers
from slipstream.records.run_files import JOURNAL_FILE, write_json
from slipstream.records.schema import Answer

SCORES_FILE = "scores.json"
MANY = 10
"""The k of pass@k beside 1, where there are that many answers an item."""

Item = tuple[int | str, int]
"""(question id, turn)"""
Scores = dict[str, float]
"""Metric: figure from 0 to 1."""


def score_run(
    folder: Path,
    data: Path,
    *,
    scorer: str | None = None,
    run_code: bool = False,
    confined: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score the answers of the run in `folder` by what the question files in `data` carry; also writes scores.json.

    scorer: for all files; None: found for each. run_code: run the code of answers, in the sandbox unless not
    confined.
    progress: called with the numbers of answers scored and in all.
    Raises InputError if nothing can be scored. Files that cannot be are named in "unscored", with the reason.
    """
    answers = list(read_answers(folder / JOURNAL_FILE))
    records = load_records(data)
    scorers, unscored = _scorers(records, {answer.task for answer in answers}, scorer, run_code, confined)
    scored = [answer for answer in answers if answer.task in scorers]
    figures = _Figures(records, scorers)
    for done, answer in enumerate(scored, 1):
        figures.score_answer(answer)
        if progress is not None:
            progress(done, len(scored))
    result = {
        "format": 1,
        "data": data.name,
        "tasks": {task: figures.described(task) for task in scorers},
        "unscored": unscored,
        "rows": [row for task in scorers for row in figures.rows(task)],
    }
    write_json(folder / SCORES_FILE, result)
    return result


def _scorers(
    records: Mapping[str, Mapping[int | str, Record]], ran: set[str], name: str | None, run_code: bool, confined: bool
) -> tuple[dict[str, Scorer], dict[str, str]]:
    """Task: its scorer; task: why it has none."""
    common = [task for task in records if task in ran]
    if not common:
        raise InputError(
            f"the run has answers to {', '.join(sorted(ran)) or 'no task'}, the data has questions of "
            f"{', '.join(records)}; give the question files of the run with --data"
        )
    scorers, unscored = {}, {}
    for task in common:
        try:
            scorers[task] = find_scorer(task, list(records[task].values()), name, run_code=run_code, confined=confined)
        except InputError as error:
            if len(common) == 1:
                raise
            unscored[task] = str(error)
    if not scorers:
        raise InputError("nothing can be scored. " + "; ".join(unscored.values()))
    return scorers, unscored


class _Figures:
    """Collects the scores of answers and compares them."""

    def __init__(self, records: Mapping[str, Mapping[int | str, Record]], scorers: Mapping[str, Scorer]) -> None:
        self.records, self.scorers = records, scorers
        self.known: dict[tuple[str, Item, str], Scores] = {}
        self.items: dict[str, dict[tuple[float, str], dict[Item, list[Scores]]]] = {task: {} for task in scorers}
        self.without: dict[str, set[Item]] = {task: set() for task in scorers}

    def score_answer(self, answer: Answer) -> None:
        """Score one answer of the journal. Raises InputError if its question is not in the file."""
        task, item = answer.task, (answer.prompt_id, answer.turn)
        record = self.records[task].get(item[0])
        if record is None:
            raise InputError(f"question {item[0]!r} of the run is not in the file of {task}; give the run's own files")
        if not self.scorers[task].can_score(record, item[1]):
            self.without[task].add(item)
            return
        scores = self._score(task, record, item, answer.text)
        entrants = self.items[task].setdefault((answer.temperature, answer.entrant), {})
        entrants.setdefault(item, []).append(scores)

    def _score(self, task: str, record: Record, item: Item, text: str) -> Scores:
        key = (task, item, text)
        if key not in self.known:
            self.known[key] = self.scorers[task].score(record, item[1], text)
        return self.known[key]

    def described(self, task: str) -> dict[str, Any]:
        """By what a task is scored, and how much of it."""
        items = {item for entrant in self.items[task].values() for item in entrant}
        return {
            "basis": self.scorers[task].basis,
            "num_items": len(items),
            "num_items_without": len(self.without[task]),
            "num_texts": sum(key[0] == task for key in self.known),
        }

    def rows(self, task: str) -> Iterable[dict[str, Any]]:
        """One row for each temperature and entrant, in the order of the run."""
        entrants = {
            key: {item: _of_item(found) for item, found in items.items()} for key, items in self.items[task].items()
        }
        for (temperature, entrant), items in entrants.items():
            plain = entrants.get((temperature, PLAIN), {})
            common = [item for item in items if item in plain]
            differing = [item for item in common if items[item] != plain[item]]
            yield {
                "task": task,
                "temperature": temperature,
                "entrant": entrant,
                "num_items": len(items),
                "num_answers": sum(map(len, self.items[task][temperature, entrant].values())),
                "scores": _mean(items.values()),
                "plain_scores": _mean(plain[item] for item in common) if common else None,
                "num_differing": len(differing) if common else None,
                "differing": [
                    {"prompt_id": item[0], "turn": item[1], "scores": items[item], "plain_scores": plain[item]}
                    for item in differing
                ],
            }


def _of_item(answers: list[Scores]) -> Scores:
    """The scores of an item from those of its answers: means, and pass@k where code was run."""
    if "passed" not in answers[0]:
        return _mean(answers)
    num_passed = sum(int(answer["passed"]) for answer in answers)
    ks = (1, MANY) if len(answers) >= MANY else (1,)
    return {f"pass@{k}": pass_at_k(len(answers), num_passed, k) for k in ks}


def _mean(scores: Iterable[Scores]) -> Scores:
    """Metric by metric, over those that have it."""
    found = list(scores)
    metrics = dict.fromkeys(metric for one in found for metric in one)
    return {metric: fmean(one[metric] for one in found if metric in one) for metric in metrics}
