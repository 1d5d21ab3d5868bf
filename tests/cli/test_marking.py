from __future__ import annotations

from types import SimpleNamespace

from slipstream.cli.marking import DraftMarks
from slipstream.engine.sequence import Step
from slipstream.text import AnswerText

BYTES = SimpleNamespace(decode=lambda ids, **_: bytes(ids).decode("utf-8", errors="replace"))


def step(token_ids, accepted, text, finish_reason=None):
    tokens = tuple(token_ids)
    return Step(token_ids=tokens, num_drafted=4, num_accepted=accepted, text=text, finish_reason=finish_reason)


def test_the_first_tokens_of_a_step_are_drafted_and_the_last_is_the_models():
    marks = DraftMarks(AnswerText(BYTES))
    assert marks.parts(step(b"abc", 2, "abc")) == [("ab", True), ("c", False)]
    assert marks.parts(step(b"de", 2, "de", "length")) == [("de", True)]


def test_a_character_of_several_tokens_goes_by_the_last():
    marks = DraftMarks(AnswerText(BYTES))
    assert marks.parts(step(b"a\xc3", 1, "a")) == [("a", True)]
    assert marks.parts(step(b"\xa9b", 1, "\xe9b", "length")) == [("\xe9", True), ("b", False)]


def test_text_that_a_stop_string_may_begin_is_marked_when_it_is_shown():
    marks, cut = DraftMarks(AnswerText(BYTES)), AnswerText(BYTES, ["END"])
    for token in b"abEN":
        cut.append_token(token)
    held = step(b"abEN", 3, cut.release())
    assert marks.parts(held) == [("ab", True)]
    for token in b"dEND":
        cut.append_token(token)
    assert marks.parts(step(b"dEND", 0, cut.release(final=True), "stop")) == [("E", True), ("Nd", False)]
