from __future__ import annotations

import pytest

from slipstream.bench.truncation import encode_within
from slipstream.errors import ContextLengthError


def test_what_fits_is_left_alone(byte_plain) -> None:
    messages = [{"role": "user", "content": "short"}]
    assert encode_within(byte_plain, messages, 100) == (byte_plain.encode(messages), 0)
    assert encode_within(byte_plain, messages, None) == (byte_plain.encode(messages), 0)


def test_the_longest_message_loses_its_end(byte_plain) -> None:
    messages = [
        {"role": "user", "content": "x" * 50},
        {"role": "assistant", "content": "abcdef" * 20},
        {"role": "user", "content": "y" * 10},
    ]
    whole = byte_plain.encode(messages)
    ids, num_cut = encode_within(byte_plain, messages, len(whole) - 30)
    assert (len(ids), num_cut) == (len(whole) - 30, 30)
    text = byte_plain.tokenizer.decode(ids)
    assert "x" * 50 in text
    assert "y" * 10 in text
    assert "abcdef" * 15 + "<|end|>" in text
    assert messages[1]["content"] == "abcdef" * 20


def test_no_character_is_split_beyond_the_limit(byte_plain) -> None:
    messages = [{"role": "user", "content": "\u00e4\u20ac" * 30}]  # characters of several tokens
    whole = byte_plain.encode(messages)
    for limit in range(20, len(whole)):
        ids, num_cut = encode_within(byte_plain, messages, limit)
        assert len(ids) <= limit
        assert num_cut > 0


def test_a_limit_below_the_template_is_refused(byte_plain) -> None:
    with pytest.raises(ContextLengthError, match="cannot be cut to 2 tokens"):
        encode_within(byte_plain, [{"role": "user", "content": "short"}], 2)
