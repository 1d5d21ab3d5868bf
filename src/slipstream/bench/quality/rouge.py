"""ROUGE-1, ROUGE-2 and ROUGE-L F1 of summaries (Lin 2004, aclanthology.org/W04-1013), by the rouge-score package.

With stemming, as papers on CNN/DailyMail report it; ROUGE-L over the text as one sequence, not by sentence. Figures are
fractions from 0 to 1. An item's references are alternatives; the best one counts, metric by metric.
"""

from __future__ import annotations

import functools
from typing import Any

from slipstream.errors import InputError

METRICS = ("rouge1", "rouge2", "rougeL")
INSTALL = "pip install rouge-score"


def rouge(answer: str, references: list[str]) -> dict[str, float]:
    """The three F1 scores. Raises InputError where the package is missing."""
    scorer = _scorer()
    scores = [scorer.score(reference, answer) for reference in references]
    return {metric: max(float(score[metric].fmeasure) for score in scores) for metric in METRICS}


@functools.cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError(f"ROUGE needs the rouge-score package: {INSTALL}") from error
    return RougeScorer(list(METRICS), use_stemmer=True)
