"""`warp` against transformers' own warpers: same values, same removed tokens, on ties and -inf entries too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from slipstream.core.logits import warp, warping
from slipstream.errors import InputError


def transformers_warp(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    return warpers(torch.zeros(logits.shape[0], 1, dtype=torch.int64), logits)


@st.composite
def logit_rows(draw: st.DrawFn, vocab: st.SearchStrategy[int]) -> Tensor:
    """[1-4, vocab] logits, sometimes coarse (many ties), sometimes with -inf entries."""
    rows, size = draw(st.integers(1, 4)), draw(vocab)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(rows, size, generator=generator, dtype=torch.float64) * draw(st.sampled_from([0.5, 3.0, 12.0]))
    if draw(st.booleans()):
        logits = logits.round()
    if draw(st.booleans()):
        gone = torch.rand(rows, size, generator=generator) < 0.6
        gone[:, 0] = False
        logits = logits.masked_fill(gone, -float("inf"))
    return logits.to(draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])))


TEMPERATURES = st.sampled_from([0.1, 0.7, 1.0, 1.3])
TOP_P = st.sampled_from([0.0, 1e-7, 0.1, 0.5, 0.9, 0.999, 1.0]) | st.floats(0, 1)
MIN_P = st.sampled_from([0.0, 1e-4, 0.1, 1.0]) | st.floats(0, 1)


@settings(max_examples=150, deadline=None)
@given(logit_rows(st.integers(1, 12)), TEMPERATURES, st.integers(0, 20), TOP_P, MIN_P)
def test_warp_equals_transformers(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    warped = warp(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = transformers_warp(logits, temperature, top_k, top_p, min_p)
    assert warped.dtype == logits.dtype
    assert torch.equal(warped, expected)


@settings(max_examples=80, deadline=None)
@given(logit_rows(st.sampled_from([600, 1500])), TEMPERATURES, st.sampled_from([0, 5, 400]), TOP_P)
@example(torch.zeros(2, 600), 1.0, 0, 0.5)
@example(torch.tensor([4.0, 4.0, 4.0, 2.0] + [-9.0] * 596)[None], 1.0, 0, 0.6)  # border among three equals
def test_top_p_of_large_vocabularies_equals_transformers(
    logits: Tensor, temperature: float, top_k: int, top_p: float
) -> None:
    warped = warp(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert torch.equal(warped, transformers_warp(logits, temperature, top_k, top_p, 0.0))


def test_rounding_at_the_border_of_the_nucleus_is_left_to_the_sort() -> None:
    row = torch.full((1, 600), -float("inf"))
    row[0, :4] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    top_p = float((0.4 + 0.3) * (1 + 1e-7))
    assert not warping._nucleus_floor(row, top_p)[1].any()
    assert torch.equal(warp(row, top_p=top_p), transformers_warp(row, 1.0, 0, top_p, 0.0))


def test_peaked_rows_are_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(logits: Tensor, top_p: float) -> Tensor:
        raise AssertionError("sorted")

    logits = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0)) * 8
    monkeypatch.setattr(warping, "_keep_nucleus_sorting", refuse)
    assert (warp(logits, top_p=0.9).isfinite().sum(dim=1) < 100).all()
    with pytest.raises(AssertionError, match="sorted"):
        warp(torch.zeros(1, 1000), top_p=0.9)


def test_logits_are_not_changed() -> None:
    logits = torch.randn(3, 700)
    before = logits.clone()
    warp(logits, temperature=0.5, top_k=9, top_p=0.5, min_p=0.2)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_only_a_positive_temperature_warps(temperature: float) -> None:
    with pytest.raises(InputError, match="temperature is"):
        warp(torch.zeros(1, 4), temperature=temperature)
