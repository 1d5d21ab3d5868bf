"""Exact match and containment for short answers, normalised as SQuAD's evaluation does (arXiv:1606.05250, section 6.1).

Lower case, no punctuation, no articles (a, an, the), single spaces. "contains" asks whether a reference stands in the
answer as whole words, for models that answer in sentences. An item's references are alternatives; the best one counts.
"""

from __future__ import annotations

import re
import string

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """The text in the form that is compared."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def short_match(answer: str, references: list[str]) -> dict[str, float]:
    """`exact`: equal to a reference; `contains`: a reference stands in it. A reference of no words matches neither."""
    given = normalised(answer)
    wanted = [text for text in map(normalised, references) if text]
    return {
        "exact": float(given in wanted),
        "contains": float(any(f" {text} " in f" {given} " for text in wanted)),
    }
