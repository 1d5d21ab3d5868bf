"""Writers and readers share one schema: what is written is read back as it was, old records included."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shipped_records import RECORDS, lost
from slipstream.errors import InputError
from slipstream.records.certificate import AdjustedTest, CertificateRecord, CertifiedAnswer, Total
from slipstream.records.journal import Journal, answer_line, read_answers
from slipstream.records.record import json_text, load_record, parse_record, record_json
from slipstream.records.schema import Answer, CycleMs, Picture, Record, Row, Setup, TreeCounts
from slipstream.records.shapes import read_shape

SHAPES = (Answer, Setup, Row, TreeCounts, Picture, CertifiedAnswer, AdjustedTest, Total)
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # other work may have the cores


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of an annotated kind, short."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return st.one_of(st.none(), st.integers(), st.text(max_size=3))
    if origin is UnionType:
        return st.one_of(*map(values, inner))
    if origin is list:
        return st.lists(values(inner[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(st.text(max_size=3), values(inner[1]), max_size=2)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{one.name: values(hints[one.name]) for one in fields(kind)})
    return {
        NoneType: st.none(),
        bool: st.booleans(),
        int: st.integers(-9, 10**12),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=4),
    }[kind]


@pytest.mark.parametrize("shape", SHAPES)
@UNHURRIED
@given(data=st.data())
def test_what_is_written_is_read_back_as_it_was(shape: type, data: st.DataObject) -> None:
    one = data.draw(values(shape))
    assert read_shape(shape, json.loads(json.dumps(asdict(one))), "here") == one


@pytest.mark.parametrize("shape", [*SHAPES, Record, CertificateRecord])
def test_the_first_missing_field_is_named(shape: type) -> None:
    with pytest.raises(InputError, match=f"here has no '{fields(shape)[0].name}'"):
        read_shape(shape, {}, "here")


@pytest.mark.parametrize("path", sorted(RECORDS.glob("bench-*.json")), ids=lambda path: path.stem)
def test_the_committed_records_are_read_and_written_again_without_loss(path: Path) -> None:
    record = load_record(path)
    written = json.loads(json_text(record_json(record)))
    assert parse_record(written) == record
    assert lost(json.loads(path.read_text()), written) == []


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"verdict": "lossless"}, "is older or of another kind; run the benchmark anew"),
        ({"format": 0}, "is older or of another kind"),
        ({"format": 2}, "of format 2, newer than this version reads (1); update slipstream"),
        ({"format": 1, "verdict": "lossless"}, "is a certificate of `slipstream certify`, not a benchmark's record"),
        ([], "is no benchmark record"),
    ],
)
def test_a_record_of_another_time_or_kind_is_refused_in_one_line(data: Any, says: str) -> None:
    with pytest.raises(InputError) as error:
        parse_record(data, "old.json")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@UNHURRIED
@given(answers=st.lists(values(Answer), max_size=3))
def test_answers_of_the_journal_are_read_as_they_were_written(answers: list[Answer], tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("journal") / "answers.jsonl"
    Journal(path).finish("qa", 1, map(answer_line, answers), 1.0)
    assert list(read_answers(path)) == answers


def test_a_damaged_answer_is_named_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    Journal(path).finish("qa", 1, [{"task": "qa"}], 1.0)
    with pytest.raises(InputError, match=r"answer 1 has no 'prompt_id'"):
        list(read_answers(path))


def test_parts_of_a_cycle_are_those_of_the_clock() -> None:
    from slipstream.runtime.clock import PARTS

    assert tuple(one.name for one in fields(CycleMs)) == tuple(PARTS)
