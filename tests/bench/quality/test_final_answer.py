"""The final number of an answer is found by one stated rule."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.bench.quality.final_answer import exact_match, final_number

REFERENCE = ["He is 99 years old, in 10 years 99+10 = <<99+10=109>>109 years old\n#### 109"]


@pytest.mark.parametrize(
    "answer",
    [
        "The answer is 109.",
        "the ANSWER is: **109**",
        "Answer: 109 years, not 108",
        "so \\boxed{109}",
        "so $\\boxed{109 \\text{ years}}$ and nothing else of the 7",
        "#### 109",
        "10 more than 99 makes 109.",
        "109 years",
        "$109.00",
        "The answer is 99 + 10 = 109 years.",
        "The answer is 218/2",
        "The answer is 1. No, wait. The answer is 109.",
    ],
)
def test_the_right_answer_is_right_however_it_is_written(answer):
    assert exact_match(answer, REFERENCE) == {"exact": 1.0}


@pytest.mark.parametrize(
    "answer",
    ["", "I do not know.", "The answer is 108.", "-109", "The answer is 108, far from 109", "1109", "109.5", "#### 10"],
)
def test_a_wrong_answer_is_wrong(answer):
    assert exact_match(answer, REFERENCE) == {"exact": 0.0}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("$1,234.00", 1234),
        ("12,345,678.", 12345678),
        ("-5", -5),
        ("\u22125", -5),
        ("-$5", -5),
        ("$-5", -5),
        ("10-3", 3),
        ("3/4", Fraction(3, 4)),
        ("\\boxed{\\frac{3}{4}}", Fraction(3, 4)),
        ("-\\dfrac{1}{2}", Fraction(-1, 2)),
        ("1.5e3", 1500),
        ("0.50", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("50%", 50),
        ("ages 7:11", 11),
        ("1/0", None),
        ("x3", None),
        ("-", None),
    ],
)
def test_numbers_are_read_as_people_write_them(text, number):
    assert final_number(text) == number


@given(st.integers(-(10**9), 10**9))
def test_every_whole_number_is_read_with_and_without_separators(number):
    assert final_number(f"The answer is {number:,}.") == final_number(f"it is {number}") == number


@given(st.text(alphabet="0123456789.,/-$e \\{}#answeri=", max_size=40))
def test_no_text_makes_it_fail(text):
    final_number(text)
