"""Streamed text on a terminal, broken between words."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable


class WordWrapper:
    """Passes text on piece by piece, with a line break wherever the next word would not fit into the line.

    The last word of a piece is held back until it is known to be whole.
    """

    def __init__(self, write: Callable[[str], object], columns: int) -> None:
        self._write, self._columns = write, columns
        self._column = 0
        self._space, self._word = "", ""  # held back: a word, and the white space before it

    def write(self, text: str) -> None:
        """The next piece."""
        for character in text:
            if character == "\n":
                self.end()
                self._write("\n")
                self._column = 0
            elif character.isspace():
                self._end_word()
                self._space += character
            else:
                if _width(character) == 2:  # scripts without spaces may be broken anywhere
                    self._end_word()
                self._word += character

    def end(self) -> None:
        """Pass on what is held back."""
        self._end_word()
        self._write(self._space)
        self._column += _width(self._space)
        self._space = ""

    def _end_word(self) -> None:
        if not self._word:
            return
        if self._column > 0 and self._column + _width(self._space) + _width(self._word) > self._columns:
            self._space, self._column = "\n", 0
        self._write(self._space + self._word)
        self._column += _width(self._space.strip("\n")) + _width(self._word)
        self._space, self._word = "", ""


def _width(text: str) -> int:
    """Columns that a text takes; a tab up to eight."""
    from rich.cells import cell_len

    return cell_len(text) + 8 * text.count("\t")


class Screen:
    """Where answers are shown: words are kept whole on a terminal, and text is passed on as it is elsewhere."""

    def __init__(self) -> None:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        self._wrapper = WordWrapper(sys.stdout.write, columns) if columns else None

    def write(self, text: str) -> None:
        """The next piece."""
        if self._wrapper is None:
            sys.stdout.write(text)
        else:
            self._wrapper.write(text)
        sys.stdout.flush()

    def end(self) -> None:
        """The answer is over."""
        if self._wrapper is not None:
            self._wrapper.end()
        print(flush=True)
