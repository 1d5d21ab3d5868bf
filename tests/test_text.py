"""Text as it grows: whole characters, exact stop strings, the same whole whatever the pieces."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from slipstream.text import AnswerText, decode


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


LLAMA_2 = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
)
DECODERS: dict[str, tuple[Any, list[str]]] = {
    "ByteLevel": (decoders.ByteLevel(), ["Ġhello", "foo", "Ġ", "Ã", "©", "ÃŃ", "Ä"]),
    "Metaspace, always": (decoders.Metaspace(prepend_scheme="always"), ["▁hello", "▁foo", "▁", "▁▁", "x"]),
    "Metaspace, first": (decoders.Metaspace(prepend_scheme="first"), ["▁hello", "▁foo", "▁", "▁▁", "x"]),
    "Metaspace, never": (decoders.Metaspace(prepend_scheme="never"), ["▁hello", "▁foo", "▁", "▁▁", "x"]),
    "Llama-2": (LLAMA_2, ["▁hello", "▁foo", "▁", "▁▁", "x", "<0xC3>", "<0xA9>", "<0x20>"]),
    "Gemma": (
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
        ["▁hello", "▁foo", "▁", "x", "<0xC3>", "<0xA9>"],
    ),
    "ByteFallback": (decoders.ByteFallback(), ["a", " b", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]),
    "WordPiece": (decoders.WordPiece(), ["hello", "##ing", "foo", ".", "'", "n't"]),
    "WordPiece, no clean-up": (decoders.WordPiece(cleanup=False), ["hello", "##ing", "foo", "."]),
    "BPEDecoder": (decoders.BPEDecoder(), ["hel", "lo</w>", "foo</w>", "</w>"]),
    "CTC": (decoders.CTC(), ["a", "b", "|", "<pad>"]),
    "CTC, no clean-up": (decoders.CTC(cleanup=False), ["a", "b", "|", "<pad>", "."]),
    "none": (None, ["a", "b"]),
}
FIRST_SPECIAL = 8
SPECIALS = ["<s>", "</s>", "<|tool|>"]


def tokenizer_with(decoder: Any, pieces: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of these pieces as ids from 0, and of three special tokens as ids from 8."""
    filled = [*pieces, *(f"unused{i}" for i in range(len(pieces), FIRST_SPECIAL))]
    inner = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(filled)}, unk_token=pieces[0]))
    if decoder is not None:
        inner.decoder = decoder
    inner.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(tokenizer_object=inner)  # that its tokens are special, only its inside knows


def stream(tokenizer: Any, tokens: list[int], *stop: str) -> tuple[str, str, int]:
    """The pieces together, the text, and how many tokens it took."""
    answer, pieces = AnswerText(tokenizer, stop), ""
    for count, token in enumerate(tokens, start=1):
        if answer.append_token(token):
            return pieces + answer.release(final=True), answer.text, count
        pieces += answer.release()
    return pieces + answer.release(final=True), answer.text, len(tokens)


@pytest.mark.parametrize("decoder", ["Metaspace, always", "Metaspace, first", "Llama-2"])
@pytest.mark.parametrize("specials", [[8], [9, 8, 10]])
def test_the_space_after_a_special_token_is_there_and_ends_the_text_before_it(
    decoder: str, specials: list[int]
) -> None:
    tokenizer = tokenizer_with(*DECODERS[decoder])
    tokens = [*specials, 0, *specials, 1, *specials]  # ▁hello ▁foo
    assert stream(tokenizer, tokens)[:2] == ("hello foo", "hello foo")
    assert stream(tokenizer, tokens, "x")[:2] == ("hello foo", "hello foo")
    assert stream(tokenizer, tokens, " foo") == ("hello", "hello", len(tokens) - len(specials))


@pytest.mark.parametrize("decoder", DECODERS)
@settings(deadline=None)
@given(data=st.data())
def test_stream_text_and_decoding_at_once_agree_for_every_decoder(decoder: str, data: st.DataObject) -> None:
    pieces = DECODERS[decoder][1]
    tokenizer = tokenizer_with(*DECODERS[decoder])
    token = st.one_of(st.integers(0, len(pieces) - 1), st.integers(FIRST_SPECIAL, FIRST_SPECIAL + len(SPECIALS) - 1))
    tokens = data.draw(st.lists(token, max_size=12))
    whole = decode(tokenizer, tokens)
    assert stream(tokenizer, tokens) == (whole, whole, len(tokens))
    assert stream(tokenizer, tokens, "not in it") == (whole, whole, len(tokens))
    stop = data.draw(st.sampled_from([" ", " f", "o", "é", "b", "🙂"]))
    streamed, text, count = stream(tokenizer, tokens, stop)
    assert streamed == text == decode(tokenizer, tokens[:count]).partition(stop)[0]
    assert count == len(tokens) or stop in decode(tokenizer, tokens[:count])


def test_a_run_of_byte_tokens_is_shown_when_it_is_over_but_searched_at_once() -> None:
    tokenizer = tokenizer_with(*DECODERS["Llama-2"])
    c3, a9, x = 5, 6, 4
    answer = AnswerText(tokenizer)
    for token in (x, c3, a9, 8):
        answer.append_token(token)
    assert answer.release() == "x"
    answer.append_token(x)
    assert answer.release() == "éx"
    assert stream(tokenizer, [x, c3, a9, c3, x], "é") == ("x", "x", 3)
    assert stream(tokenizer, [x, c3, a9, c3, x])[0] == decode(tokenizer, [x, c3, a9, c3, x]) == "x���x"
