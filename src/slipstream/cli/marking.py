"""Marks on drafted text, as the server's page has them: coloured, and underlined for who sees no colour."""

from __future__ import annotations

import sys
from collections import deque
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slipstream.engine.sequence import Step
    from slipstream.text import AnswerText

_DRAFTED = "green underline"


class DraftMarks:
    """Says of an answer's text which of it was drafted. A character of several tokens goes by the last of them."""

    def __init__(self, text: AnswerText) -> None:
        """text: without stop strings; steps hold the text that is cut before one."""
        self._text = text
        self._ahead: deque[bool] = deque()  # of characters that steps still hold back

    def parts(self, step: Step) -> list[tuple[str, bool]]:
        """The step's text in parts, and whether each was drafted. To be asked of every step of the answer in order."""
        for place, token in enumerate(step.token_ids):
            self._text.append_token(token)
            is_end = step.finish_reason is not None and place == len(step.token_ids) - 1
            self._ahead.extend([place < step.num_accepted] * len(self._text.release(final=is_end)))
        marks = [self._ahead.popleft() for _ in step.text]
        runs = groupby(zip(step.text, marks, strict=True), key=itemgetter(1))
        return [("".join(character for character, _ in run), drafted) for drafted, run in runs]


def marked(text: str) -> str:
    """Drafted text as a terminal shows it."""
    from rich.color import ColorSystem
    from rich.style import Style

    return Style.parse(_DRAFTED).render(text, color_system=ColorSystem.STANDARD)


def can_mark() -> bool:
    """Whether stdout is a terminal that shows colours, and NO_COLOR does not ask for none."""
    from rich.console import Console

    console = Console()
    shows_colours = console.color_system is not None and not console.legacy_windows
    return sys.stdout.isatty() and shows_colours and not console.no_color
