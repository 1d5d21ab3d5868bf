"""Certificates are read back as they were written; those of other versions are read, or said to be older or newer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shipped_records import RECORDS, lost
from slipstream.errors import InputError
from slipstream.records.certificate import FORMAT, certificate_json, load_certificate, write_certificate

OLDER = RECORDS / "certify-demo-bf16.json"
"""Written before there was a format."""


def test_an_older_certificate_is_read_and_written_again_without_loss(tmp_path: Path) -> None:
    old = json.loads(OLDER.read_text(encoding="utf-8"))
    assert "format" not in old
    record = load_certificate(OLDER)
    write_certificate(record, tmp_path / "again.json")
    assert load_certificate(tmp_path / "again.json") == record
    new = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert new == json.loads(json.dumps(certificate_json(record)))
    assert new["format"] == FORMAT
    assert lost(old, new) == []
    assert record.greedy[2].rulings["identical"] == 12
    assert record.distribution.num_tokens == 3


def test_the_readme_says_what_the_certificate_of_the_real_model_says() -> None:
    record = load_certificate(RECORDS / "certify-smollm2-bf16.json")
    said = " ".join((RECORDS.parents[1] / "README.md").read_text(encoding="utf-8").split())
    assert f"in bfloat16 it says *{record.verdict}*" in said
    compared = [*record.greedy, *record.seeded]
    same_shape, by_row = (
        [one for one in compared if one.reference == reference] for reference in ("same shape", "row by row")
    )
    count = sum(one.num_answers for one in same_shape)
    assert sum(one.rulings["identical"] for one in same_shape) == count
    assert record.floor.hidden == 0
    same = sum(one.rulings["identical"] for one in by_row)
    assert f"in all {count} answers not one bit differs from plain decoding in passes of the same shape" in said
    assert f"and {same} of the {count} have the tokens of plain decoding row by row" in said


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data.pop("doubts"), "has no 'doubts': the record is damaged or of another format; it is older"),
        (lambda data: data["answers"][2].pop("seed"), "answers[2] has no 'seed'"),
        (lambda data: data.update(format=FORMAT, greedy={}), "greedy is {}; it must be a list"),
        (lambda data: data.update(format=2), "of format 2, newer than this version reads (1); update slipstream"),
        (lambda data: data.update(verdict="perfect"), "verdict is 'perfect'; it must be one of lossless, "),
        (lambda data: data.pop("verdict"), "is no certificate; `slipstream certify --out FILE` writes one"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_says_why(
    tmp_path: Path, damage: Callable[[dict[str, Any]], Any], says: str
) -> None:
    data = json.loads(OLDER.read_text(encoding="utf-8"))
    damage(data)
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_certificate(path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_and_no_json_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    with pytest.raises(InputError, match="there is no certificate"):
        load_certificate(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is damaged"):
        load_certificate(path)
