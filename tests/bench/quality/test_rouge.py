"""ROUGE is that of the rouge-score package, by hand on small texts; without the package one line says what to do."""

from __future__ import annotations

import sys

import pytest

from slipstream.bench.quality import rouge as module
from slipstream.bench.quality.rouge import rouge
from slipstream.errors import InputError


def test_equal_texts_score_one_and_unlike_texts_nothing():
    pytest.importorskip("rouge_score")
    assert rouge("rain fell on the sea", ["rain fell on the sea"]) == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    assert rouge("rain", ["wind blew"]) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def test_scores_equal_those_counted_by_hand():
    pytest.importorskip("rouge_score")
    scores = rouge("police killed the gunman", ["the gunman police killed"])
    assert scores == {"rouge1": 1.0, "rouge2": pytest.approx(2 / 3), "rougeL": pytest.approx(1 / 2)}


def test_the_best_of_several_references_counts():
    pytest.importorskip("rouge_score")
    assert rouge("rain fell", ["wind blew", "rain fell"])["rouge1"] == 1.0


def test_a_missing_package_is_one_line_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    module._scorer.cache_clear()
    with pytest.raises(InputError, match=r"pip install rouge-score"):
        rouge("rain", ["rain"])
    module._scorer.cache_clear()
