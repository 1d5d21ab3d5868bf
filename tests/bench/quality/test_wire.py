"""Plain data survives the way between the two processes; nothing else gets across."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.bench.quality.confined.wire import MAX_LINE, WireError, decode, encode, receive, send

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
HASHABLE = st.recursive(ATOMS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HASHABLE, inner, max_size=3) | st.sets(HASHABLE),
    max_leaves=8,
)


def no_object(value: object) -> int:
    raise AssertionError(f"{value!r} is plain data")


def same(value: object, other: object) -> bool:
    return value == other and type(value) is type(other)


@given(VALUES)
def test_plain_data_arrives_as_it_was(value):
    pipe = io.BytesIO()
    send(pipe, encode(value, no_object))
    pipe.seek(0)
    assert same(decode(receive(pipe), no_object), value)


def test_a_subclass_arrives_as_its_base():
    class Liar(list):
        def __eq__(self, other: object) -> bool:
            return True

    class Wrong(int):
        def __eq__(self, other: object) -> bool:
            return True

    arrived = decode(encode([Liar([1]), Wrong(3)], no_object), no_object)
    assert arrived == [[1], 3]
    assert [type(item) for item in arrived] == [list, int]


def test_an_endless_iterator_is_cut():
    def endless():
        while True:
            yield 1

    assert len(encode(endless(), no_object)[1]) == 100_000


@pytest.mark.parametrize(
    "data",
    [["list"], ["set", [["list", []]]], ["dict", [1]], ["object", "x"], ["bytes", "xyz"], ["eval", "1"], {}, [], ["a"]],
)
def test_what_is_no_value_is_refused(data):
    with pytest.raises(WireError):
        decode(data, no_object)


@pytest.mark.parametrize("line", [b"", b"[1", b"nonsense\n", b"[" * 100_000 + b"\n", b"1" * (MAX_LINE + 1) + b"\n"])
def test_a_line_that_is_no_message_is_refused(line):
    with pytest.raises(WireError):
        receive(io.BytesIO(line))


def test_a_message_that_is_too_long_is_not_sent():
    pipe = io.BytesIO()
    with pytest.raises(WireError, match="too large"):
        send(pipe, "x" * MAX_LINE)
    assert pipe.getvalue() == b""
