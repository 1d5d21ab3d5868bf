"""Which scorer fits a file, and each scorer behind one call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from slipstream.bench.quality.code_tests import CodeTests, code_tests, solution
from slipstream.bench.quality.final_answer import exact_match
from slipstream.bench.quality.records import Record, no_references
from slipstream.bench.quality.rouge import rouge
from slipstream.bench.quality.sandbox import check_sandbox, run_tests
from slipstream.bench.quality.short_answers import short_match
from slipstream.errors import InputError, unknown_choice

SCORERS = {
    "number": "exact match of the final number (GSM8K)",
    "short": "exact match and containment of short answers (SQuAD's normalisation)",
    "rouge": "ROUGE-1, -2 and -L F1 of summaries",
    "code": "pass@1 and pass@10 by running tests; needs --run-code",
}
"""Name: what it does."""

CATEGORIES = {
    "number": {"math", "maths", "math_reasoning"},
    "rouge": {"summarization", "summarisation", "summary", "articles"},
    "short": {"qa", "questions"},
}
"""The words for a question's kind that settle the scorer, if all questions with references have one of them."""


class Scorer(Protocol):
    """Scores the answers to one task's questions."""

    @property
    def basis(self) -> str:
        """By what, in words."""

    def can_score(self, record: Record, turn: int) -> bool:
        """Whether the question brings what is needed."""

    def score(self, record: Record, turn: int, answer: str) -> dict[str, float]:
        """Metric: figure from 0 to 1, for one answer."""


def find_scorer(
    task: str,
    records: Collection[Record],
    name: str | None = None,
    *,
    run_code: bool = False,
    confined: bool = True,
) -> Scorer:
    """The scorer called `name`, or the one that the fields of the questions tell.

    confined: False runs code without isolation. Raises InputError where the questions have nothing to score by, where
    they do not tell, and for code unless `run_code`.
    """
    if name is not None and name not in SCORERS:
        raise unknown_choice("scorer", name, SCORERS)
    name = name or _told_by(task, records)
    if name == "code":
        return _code_scorer(task, records, run_code, confined)
    if not any(_has_references(record) for record in records):
        raise no_references(task)
    return ByReference({"number": exact_match, "short": short_match, "rouge": rouge}[name], SCORERS[name])


def _told_by(task: str, records: Collection[Record]) -> str:
    if any(record.fields.get(key) for record in records for key in ("test", "tests", "test_list")):
        return "code"
    with_references = [record for record in records if _has_references(record)]
    if any("####" in text for record in with_references for text in record.references(0)):
        return "number"
    if any(code_tests(record) for record in records):
        return "code"
    for name, words in CATEGORIES.items():
        if with_references and all(record.category.lower() in words for record in with_references):
            return name
    if with_references and all("answers" in record.fields for record in with_references):
        return "short"
    if not with_references:
        raise no_references(task)
    raise InputError(
        f"{task}: neither fields nor category of its questions tell how to compare with their references; if one of "
        f"these fits, choose it with --scorer: {', '.join(SCORERS)}"
    )


def _has_references(record: Record) -> bool:
    return any(record.references(turn) for turn in range(len(record.turns)))


@dataclass(frozen=True, slots=True)
class ByReference:
    """Compares texts."""

    compare: Callable[[str, list[str]], dict[str, float]]
    basis: str

    def can_score(self, record: Record, turn: int) -> bool:
        return bool(record.references(turn))

    def score(self, record: Record, turn: int, answer: str) -> dict[str, float]:
        return self.compare(answer, record.references(turn))


@dataclass(frozen=True, slots=True)
class ByTests:
    """Runs code."""

    tests: Mapping[int | str, CodeTests]
    """By question id; questions that are not here cannot be scored."""
    basis: str
    confined: bool = True

    def can_score(self, record: Record, turn: int) -> bool:
        return turn == 0 and record.id in self.tests

    def score(self, record: Record, turn: int, answer: str) -> dict[str, float]:
        outcome = run_tests(self.tests[record.id].job(answer), confined=self.confined)
        return {"passed": float(outcome.passed)}


def _code_scorer(task: str, records: Collection[Record], run_code: bool, confined: bool) -> ByTests:
    found = {record.id: tests for record in records if (tests := code_tests(record)) is not None}
    if not found:
        raise InputError(
            f"{task}: no question carries tests (test with entry_point, test_list, tests) or has doctest examples with "
            "a literal result in its prompt; add one of these fields to score code"
        )
    if not run_code:
        raise InputError(
            f"{task}: scoring code means running what a model wrote on this machine, in a sandbox, so it has to be "
            "asked for: add --run-code"
        )
    if confined:
        check_sandbox()
    derived = {record.id for record in records if record.id in found and found[record.id].origin != "the file's tests"}
    wrong = {
        record.id
        for record in records
        if record.id in derived and not _solution_passes(record, found[record.id], confined)
    }
    kept = {number: tests for number, tests in found.items() if number not in wrong}
    if not kept:
        raise InputError(f"{task}: the file's own solutions pass none of the tests derived from its prompts")
    return ByTests(kept, _basis(len(kept), len(derived - wrong), len(wrong)), confined)


def _solution_passes(record: Record, tests: CodeTests, confined: bool) -> bool:
    """Whether derived tests are right, as far as a solution can tell; without a solution they are taken as they are."""
    text = solution(record)
    return text is None or run_tests(tests.job(text), confined=confined).passed


def _basis(num_tested: int, num_derived: int, num_wrong: int) -> str:
    parts = []
    if num_tested > num_derived:
        parts.append(f"the file's tests of {num_tested - num_derived} questions")
    if num_derived:
        parts.append(f"tests derived from the doctest examples in {num_derived} prompts")
    if num_wrong:
        parts.append(f"{num_wrong} more left out, whose own solution fails them")
    return "; ".join(parts)
