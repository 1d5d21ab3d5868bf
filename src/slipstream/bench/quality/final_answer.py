r"""Exact match of final numbers, for questions whose reference ends in "#### 109" (GSM8K, arXiv:2110.14168).

The rule, for answer and reference alike. The final answer is the number in the last of these that there is:

1. after the last "####"
2. inside the last `\boxed{...}`
3. after the last "answer is", "answer:" or "answer =", in its sentence
4. the text as a whole, of which the last number counts

In 1-3 the first number counts ("109 years, not 108"); a number that is the right side of an equation there comes last
("5 + 4 = 9"), so after "=" counts what follows the last one. Numbers may be negative, have thousands separators, a
decimal part, an exponent, be written as a fraction ("3/4", `\frac{3}{4}`), stand after a currency sign or before a
percent sign (both ignored) and be followed by a full stop. They are compared as exact fractions: 2.50, 2.5 and 5/2 are
the same answer. An answer without a number is wrong.
"""

from __future__ import annotations

import re
from fractions import Fraction

NUMBER = re.compile(
    r"""
    (?<![\w.])                                  # not the 3 of x3, nor the 5 of 2.5
    (?P<sign>[-\u2212](?:\s?(?=[$\u00a3\u20ac]))?)?[$\u00a3\u20ac]?\s?(?P<inner>[-\u2212])?
    (?: \\[dt]?frac\{\s*(?P<over>\d+)\s*\}\{\s*(?P<under>\d+)\s*\}
      | (?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<part>\.\d+)?(?P<exponent>[eE][-+]?\d{1,3}(?!\w))?
        (?:\s?/\s?(?P<divisor>\d+)(?![\d/]))?
    )
    """,
    re.VERBOSE,
)
STATED = (
    re.compile(r"####(?P<answer>[^\n]*)"),
    re.compile(r"\\boxed\s*\{(?P<answer>(?:[^{}]|\{[^{}]*\})*)\}"),
    re.compile(r"\banswer(?:\s+is\b|\s*:|\s*=)(?P<answer>(?:[^\n.!?]|\.(?=\d))*)", re.IGNORECASE),
)


def final_number(text: str) -> Fraction | None:
    """The number that a text ends up with, by the rule above; None if it has none."""
    for pattern in STATED:
        stated = list(pattern.finditer(text))
        if stated and (found := numbers(stated[-1]["answer"].rpartition("=")[2])):
            return found[0]
    found = numbers(text)
    return found[-1] if found else None


def numbers(text: str) -> list[Fraction]:
    """All numbers of a text in their order."""
    return [value for match in NUMBER.finditer(text) if (value := _value(match)) is not None]


def _value(match: re.Match[str]) -> Fraction | None:
    """None for what only looks like a number: a lone sign, a division by zero."""
    if match["over"]:
        above, below = match["over"], match["under"]
    elif match["whole"] or match["part"]:
        whole = (match["whole"] or "0").replace(",", "")
        above, below = whole + (match["part"] or "") + (match["exponent"] or ""), match["divisor"] or "1"
    else:
        return None
    if int(below) == 0:
        return None
    value = Fraction(above) / int(below)
    return -value if match["sign"] or match["inner"] else value


def exact_match(answer: str, references: list[str]) -> dict[str, float]:
    """1 if the answer's final number is that of a reference, else 0."""
    found = final_number(answer)
    return {"exact": float(found is not None and found in map(final_number, references))}
