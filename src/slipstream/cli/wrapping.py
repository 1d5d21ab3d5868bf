"""Streamed text on a terminal, broken between words."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter

from slipstream.cli.marking import marked

_Characters = list[tuple[str, bool]]
"""Characters, and whether each was drafted."""


class WordWrapper:
    """Passes text on piece by piece, with a line break wherever the next word would not fit into the line.

    The last word of a piece is held back until it is known to be whole.
    """

    def __init__(self, write: Callable[[str, bool], object], columns: int) -> None:
        """write: given text, and whether it was drafted."""
        self._write, self._columns = write, columns
        self._column = 0
        self._space: _Characters = []  # held back: a word, and the white space before it
        self._word: _Characters = []

    def write(self, text: str, drafted: bool = False) -> None:
        """The next piece, and whether it was drafted."""
        for character in text:
            if character == "\n":
                self.end()
                self._write("\n", False)
                self._column = 0
            elif character.isspace():
                self._end_word()
                self._space.append((character, drafted))
            else:
                if _width(character) == 2:  # scripts without spaces may be broken anywhere
                    self._end_word()
                self._word.append((character, drafted))

    def end(self) -> None:
        """Pass on what is held back."""
        self._end_word()
        self._pass_on(self._space)
        self._space = []

    def _end_word(self) -> None:
        if not self._word:
            return
        if self._column > 0 and self._column + _width_of(self._space) + _width_of(self._word) > self._columns:
            self._write("\n", False)
            self._space, self._column = [], 0
        self._pass_on(self._space + self._word)
        self._space, self._word = [], []

    def _pass_on(self, characters: _Characters) -> None:
        for drafted, run in groupby(characters, key=itemgetter(1)):
            self._write("".join(character for character, _ in run), drafted)
        self._column += _width_of(characters)


def _width_of(characters: _Characters) -> int:
    return _width("".join(character for character, _ in characters))


def _width(text: str) -> int:
    """Columns that a text takes; a tab up to eight."""
    from rich.cells import cell_len

    return cell_len(text) + 8 * text.count("\t")


class Screen:
    """Where answers are shown: words are kept whole on a terminal, and text is passed on as it is elsewhere.

    Drafted text is marked on both.
    """

    def __init__(self) -> None:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        self._wrapper = WordWrapper(_show, columns) if columns else None

    def write(self, text: str, drafted: bool = False) -> None:
        """The next piece, and whether to mark it as drafted."""
        if self._wrapper is None:
            _show(text, drafted)
        else:
            self._wrapper.write(text, drafted)
        sys.stdout.flush()

    def end(self) -> None:
        """The answer is over."""
        if self._wrapper is not None:
            self._wrapper.end()
        print(flush=True)


def _show(text: str, drafted: bool) -> None:
    sys.stdout.write(marked(text) if drafted else text)
