"""Reading, the held-out split, weighting and packing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slipstream.errors import InputError
from slipstream.training.data.corpus import (
    MIX,
    TASKS,
    Documents,
    Example,
    PackedStream,
    build_pass,
    is_held_out,
    read_examples,
    source_paths,
)


def documents(*lengths: int, first: int = 0) -> Documents:
    return Documents.of(np.full(length, first + i, np.uint16) for i, length in enumerate(lengths))


def test_reads_conversations_and_plain_text(data: Path) -> None:
    talk = next(read_examples(data / "talk.jsonl"))
    assert [role for role, _ in talk.segments] == ["user", "assistant"]
    assert next(read_examples(data / "book.jsonl")).segments[0][0] == "text"


def test_bad_line_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n{"prompt": 1}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl line 2"):
        list(read_examples(path))


def test_missing_sources_are_listed(data: Path) -> None:
    with pytest.raises(InputError, match="gsm8k_train"):
        source_paths(data)


def test_held_out_rate_is_kept_and_the_split_never_moves() -> None:
    examples = [Example((("user", f"question {i}"), ("assistant", "answer"))) for i in range(20_000)]
    held = [is_held_out(e) for e in examples]
    assert 150 < sum(held) < 250
    assert held == [is_held_out(e) for e in examples]


def test_all_answers_to_one_prompt_fall_on_one_side() -> None:
    for i in range(2000):
        sides = {is_held_out(Example((("user", f"Q{i}  x"), ("assistant", answer)))) for answer in "abc"}
        sides.add(is_held_out(Example((("user", f"q{i} X"), ("assistant", "d")))))
        assert len(sides) == 1


def test_pass_repeats_documents_by_their_copies() -> None:
    stream = build_pass({"a": documents(1, 1, 1, 1), "b": documents(1, 1, first=9)}, {"a": 2.5, "b": 0}, (0,))
    assert len(stream) == 10
    assert set(stream) == {0, 1, 2, 3}
    assert np.bincount(stream).min() == 2


def test_pass_depends_on_the_seed_only() -> None:
    sources = {"a": documents(*range(1, 30))}
    assert (build_pass(sources, {"a": 1}, (1, 0)) == build_pass(sources, {"a": 1}, (1, 0))).all()
    assert (build_pass(sources, {"a": 1}, (1, 0)) != build_pass(sources, {"a": 1}, (1, 1))).any()


def test_rows_continue_each_other_and_overlap_by_the_label() -> None:
    stream = PackedStream({"a": documents(*[3] * 20)}, {"a": 1}, (0,))
    rows = stream.take(3, 8)
    assert rows.shape == (3, 9)
    assert (rows[:-1, -1] == rows[1:, 0]).all()


def test_stream_seeks_to_where_another_stood_even_in_a_later_pass() -> None:
    sources = {"a": documents(*[5] * 10)}
    first, second = (PackedStream(sources, {"a": 1}, (0,)) for _ in range(2))
    for _ in range(7):
        first.take(2, 8)
    assert first.pass_number > 0
    second.seek(first.pass_number, first.position)
    assert (first.take(4, 8) == second.take(4, 8)).all()


def test_a_pass_shorter_than_a_row_is_an_error_not_a_hang() -> None:
    with pytest.raises(InputError, match="fewer than a row"):
        PackedStream({"a": documents(3)}, {"a": 1}, (0,)).take(1, 8)


def test_an_empty_mix_is_an_error() -> None:
    with pytest.raises(InputError, match="empty"):
        build_pass({"a": documents(3)}, {"a": 0}, (0,))


def test_every_source_of_the_demo_mix_has_a_known_task() -> None:
    assert {source.task for source in MIX.values()} == set(TASKS)
