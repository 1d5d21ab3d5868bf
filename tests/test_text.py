"""Text as it grows: whole characters, exact stop strings, the same whole whatever the pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.text import AnswerText


class ByteTokenizer:
    """One token a UTF-8 byte; tokens from 256 on are special and have no text."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert skip_special_tokens
        assert not clean_up_tokenization_spaces
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")


def play(text: str | list[int], *stop: str) -> tuple[list[str], AnswerText, int]:
    """The pieces released token by token, the answer, and how many tokens it took."""
    answer = AnswerText(ByteTokenizer(), stop)
    tokens = list(text.encode()) if isinstance(text, str) else text
    pieces = []
    for count, token in enumerate(tokens, start=1):
        if answer.append_token(token):
            return [*pieces, answer.release(final=True)], answer, count
        pieces.append(answer.release())
    return [*pieces, answer.release(final=True)], answer, len(tokens)


@given(st.text(max_size=30))
def test_pieces_add_up_to_the_text_and_never_split_a_character(text: str) -> None:
    pieces, answer, _ = play(text)
    assert "".join(pieces) == text == answer.text
    assert "�" in text or all("�" not in piece for piece in pieces)


@given(st.text(alphabet="abé", max_size=30), st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_where_the_first_completed_stop_string_begins(text: str, stop: list[str]) -> None:
    pieces, answer, count = play(text, *stop)
    ends = [text.find(one) + len(one) for one in stop if one in text]
    if not ends:
        assert "".join(pieces) == text
        return
    completed = text[: min(ends)]  # what has been said when the first stop string is complete
    assert count == len(completed.encode())
    assert answer.text == completed[: min(completed.find(one) for one in stop if one in completed)]
    assert "".join(pieces) == answer.text


def test_nothing_that_may_turn_out_to_be_a_stop_string_is_released_early() -> None:
    pieces, _, _ = play("one ENx END more", "END")
    assert "".join(pieces) == "one ENx "
    assert all("E" not in piece or "x" in piece for piece in pieces)


def test_an_unfinished_character_is_shown_at_the_end() -> None:
    pieces, _, _ = play([*b"ab", 0xC3])
    assert "".join(pieces) == "ab�"


@pytest.mark.parametrize("stop", [(), ("x",)])
def test_special_tokens_have_no_text(stop: tuple[str, ...]) -> None:
    pieces, answer, _ = play([*b"a", 300, *b"b", 301], *stop)
    assert "".join(pieces) == "ab" == answer.text
