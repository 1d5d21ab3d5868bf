"""Files of prompts: what a row may be, and one clear line for what it may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slipstream.errors import InputError
from slipstream.jobs.prompts import Row, read_rows, rows_hash


def file(folder: Path, text: str) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_have_their_id_or_their_number(tmp_path):
    text = (
        '{"id": "a", "prompt": "x"}\n\n{"prompt": [{"role": "user", "content": "y"}], "note": 1}\n{"token_ids": [3]}\n'
    )
    assert read_rows(file(tmp_path, text)) == [
        Row("a", "x"),
        Row(2, [{"role": "user", "content": "y"}]),
        Row(3, [3]),
    ]


def test_seeds_hang_on_the_id_and_the_jobs_seed():
    assert Row("a", "x").seed(0) == Row("a", "other").seed(0)
    assert len({Row(name, "x").seed(seed) for name in ("a", "b", 1, "1") for seed in (0, 1)}) == 8
    assert 0 <= Row("a", "x").seed(0) < 2**63


def test_the_hash_is_of_ids_and_prompts():
    assert rows_hash([Row(1, "x")]) == rows_hash([Row(1, "x")])
    assert len({rows_hash([Row(1, "x")]), rows_hash([Row(2, "x")]), rows_hash([Row(1, "y")])}) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no prompts"),
        ("{", "line 1 is not valid JSON"),
        ("[1]", "row 1 is no object"),
        ('{"id": 1}', "row 1 has no prompt; give one of prompt, messages, token_ids"),
        ('{"prompt": "x", "token_ids": [1]}', "row 1 has prompt and token_ids"),
        ('{"prompt": ""}', "prompt is ''"),
        ('{"messages": "x"}', "messages is 'x'"),
        ('{"id": true, "prompt": "x"}', "id is True"),
        ('{"id": 2, "prompt": "x"}\n{"prompt": "y"}', "rows 1 and 2 have the same id 2"),
    ],
)
def test_bad_rows_are_one_clear_line(text, said, tmp_path):
    with pytest.raises(InputError, match=said):
        read_rows(file(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_rows(tmp_path / "none.jsonl")


def test_parquet_is_read_as_json_lines_are(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow.parquet import write_table

    records = [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"}]
    write_table(pyarrow.Table.from_pylist(records), tmp_path / "prompts.parquet")
    text = "".join(json.dumps(one) + "\n" for one in records)
    assert read_rows(tmp_path / "prompts.parquet") == read_rows(file(tmp_path, text))
