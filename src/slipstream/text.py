"""From token ids to text as it grows: whole characters only, and cut before a stop string."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

TEMPLATE_ERRORS = (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What a chat template, which is a program, may end with."""

_INCOMPLETE = "�"  # what decoding yields for a character whose last bytes are still to come
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token of one byte, where a tokenizer has them for rare characters


class AnswerText:
    """The text of an answer, token by token: what `decode` says of all its tokens.

    Text is held back while it ends inside a character, while the next token may still change it, or while it could be
    the beginning of a stop string.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._context = 0  # first token decoded for context: some tokenizers decode a token differently at the start
        self._settled = 0  # tokens whose text no later token changes
        self._text = ""  # theirs
        self._tail = ""  # of the tokens after them, as it reads now
        self._end: int | None = None  # where a stop string begins
        self._released = 0

    def append_token(self, token: int) -> bool:
        """Take the next token; true if the text now contains a stop string."""
        if token < 0:  # no token was left to choose, which is an error once the text is committed
            return False
        self._ids.append(token)
        before = self._decode(self._ids[self._context : self._settled])
        self._tail = self._decode(self._ids[self._context :])[len(before) :]
        if self._tail.endswith(_INCOMPLETE):
            return False
        self._find_stop()
        if not self._in_byte_run():
            self._settle()
        return self._end is not None

    def release(self, *, final: bool = False) -> str:
        """The text that has become certain since the last call; with `final` all that is left."""
        if final and self._end is None:
            self._find_stop()
            self._settle()
        until = len(self.text) if final or self._end is not None else len(self._text) - self._pending()
        piece = self.text[self._released : until]
        self._released = max(until, self._released)
        return piece

    @property
    def text(self) -> str:
        """The text so far, without the stop string and what follows it."""
        return self._text if self._end is None else (self._text + self._tail)[: self._end]

    def _settle(self) -> None:
        self._text += self._tail
        self._tail = ""
        if self._decode(self._ids[self._settled :]):  # special tokens alone are no context: what follows may be a start
            self._context = self._settled
        self._settled = len(self._ids)

    def _in_byte_run(self) -> bool:
        """Whether the last token is in a run of byte tokens: one that is no UTF-8 reads as so many unknown characters.

        A token without text, such as a special one, does not end a run.
        """
        name_of = getattr(self._tokenizer, "convert_ids_to_tokens", None)
        last = self._ids[-1]
        alone, name = self._decode([last]), name_of and name_of(last)
        if name and _BYTE.fullmatch(name) and alone != name:
            return True
        return not alone and self._settled < len(self._ids) - 1

    def _find_stop(self) -> None:
        longest = max(map(len, self._stop), default=0)
        first = max(0, len(self._text) - longest + 1)
        text = self._text + self._tail
        found = [at for stop in self._stop if (at := text.find(stop, first)) >= 0]
        if found and self._end is None:
            self._end = min(found)

    def _pending(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stop):
                return length
        return 0

    def _decode(self, ids: Sequence[int]) -> str:
        return decode(self._tokenizer, ids)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of token ids without special tokens, spaces as they are."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
