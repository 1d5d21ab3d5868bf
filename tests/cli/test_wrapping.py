from __future__ import annotations

import textwrap

import pytest

from slipstream.cli.wrapping import WordWrapper


def wrapped(text: str, columns: int, size: int) -> str:
    """A text that comes in pieces of so many characters."""
    shown: list[str] = []
    wrapper = WordWrapper(lambda text, drafted: shown.append(text), columns)
    for start in range(0, len(text), size):
        wrapper.write(text[start : start + size])
    wrapper.end()
    return "".join(shown)


TEXT = "The quick brown fox jumps over the lazy dog and runs far away into the dark woods"


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("columns", [12, 20, 33])
def test_words_stay_whole_however_the_text_comes(size, columns):
    assert wrapped(TEXT, columns, size).split("\n") == textwrap.wrap(TEXT, columns)


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_line_breaks_and_indentation_stay(size):
    text = "def f(x):\n    return x + 1\n\n  # end\n"
    assert wrapped(text, 40, size) == text


def test_a_word_longer_than_a_line_is_left_to_the_terminal():
    assert wrapped("a " + "b" * 30 + " c", 10, 4).replace("\n", " ") == "a " + "b" * 30 + " c"


def test_scripts_without_spaces_are_broken_between_characters():
    assert wrapped("\u732b" * 7, 6, 1).split("\n") == ["\u732b" * 3, "\u732b" * 3, "\u732b"]


def test_the_last_word_is_held_back_until_it_is_whole():
    shown: list[str] = []
    wrapper = WordWrapper(lambda text, drafted: shown.append(text), 10)
    wrapper.write("one tw")
    assert "".join(shown) == "one"
    wrapper.write("o three")
    assert "".join(shown) == "one two"


@pytest.mark.parametrize("columns", [12, 20, 33])
def test_drafted_characters_stay_marked_however_lines_are_broken(columns):
    shown: list[tuple[str, bool]] = []
    wrapper = WordWrapper(lambda text, drafted: shown.extend((character, drafted) for character in text), columns)
    given = [(character, place % 7 < 3) for place, character in enumerate(TEXT)]
    for character, drafted in given:
        wrapper.write(character, drafted)
    wrapper.end()
    assert "".join(character for character, _ in shown).split("\n") == textwrap.wrap(TEXT, columns)
    assert [one for one in shown if not one[0].isspace()] == [one for one in given if not one[0].isspace()]
