"""Dtypes by short and long names, and advice that rests on a measurement."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slipstream.errors import InputError
from slipstream.target import dtypes
from slipstream.target.dtypes import (
    Faster,
    cpu_multiplies_bfloat16,
    faster_dtype,
    multiplies_faster_in_bfloat16,
    resolve_dtype,
)


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (("float32", "fp32"), torch.float32),
        (("float64", "fp64"), torch.float64),
        (("bfloat16", "bf16"), torch.bfloat16),
        (("float16", "fp16"), torch.float16),
    ],
)
def test_a_dtype_has_two_names(names, dtype):
    assert {resolve_dtype(name) for name in (*names, dtype)} == {dtype}


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match=r"unknown dtype 'bf8'; choose from .* Did you mean 'bf16'\?"):
        resolve_dtype("bf8")


@pytest.mark.parametrize(
    ("found", "expected"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)]
)
def test_instructions_are_those_of_the_processor(monkeypatch, found, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert cpu_multiplies_bfloat16() == expected


@pytest.mark.parametrize(("found", "expected"), [({"avx512_bf16": True}, False), ({"amx_bf16": True}, True)])
def test_dot_products_alone_make_bfloat16_no_faster(monkeypatch, found, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert multiplies_faster_in_bfloat16(torch.device("cpu")) == expected


@pytest.fixture
def layers(monkeypatch) -> nn.Module:
    """A model just large enough to be measured, in float32."""
    monkeypatch.setattr(dtypes, "_LEAST", 1_000)
    return nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8)))


def taking(monkeypatch, seconds: dict[torch.dtype, list[float]]) -> None:
    """Let products take so long, turn by turn; the first turn warms up."""
    turns = {dtype: iter([9.0, *times]) for dtype, times in seconds.items()}
    monkeypatch.setattr(dtypes, "_time", lambda weights: next(turns[weights[0].dtype]))


@pytest.mark.parametrize(
    ("own", "other", "named"),
    [
        ([3.0, 3.3, 3.0], [1.0, 1.0, 1.5], True),
        ([3.0, 3.3, 3.0], [1.0, 1.0, 2.9], False),  # once the other was as slow: noise
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], False),
    ],
)
def test_a_dtype_is_named_if_it_is_faster_every_time(monkeypatch, layers, own, other, named):
    taking(monkeypatch, {torch.float32: own, torch.bfloat16: other})
    assert faster_dtype(layers) == (Faster("float32", "bfloat16", 3.0) if named else None)


def test_a_machine_too_busy_to_tell_gives_no_advice(monkeypatch, layers):
    monkeypatch.setattr(dtypes, "_PATIENCE_S", 0.0)
    taking(monkeypatch, {torch.float32: [3.0], torch.bfloat16: [1.0]})
    assert faster_dtype(layers) is None


def test_no_more_than_a_share_of_the_weights_is_copied(layers):
    sample = dtypes._sample(layers)
    assert sum(part.numel() for part in sample) == 2 * 64 * 64
    assert sample[0].data_ptr() == layers[0].weight.data_ptr(), "the model's own weights are copied"


def test_small_and_mixed_models_are_not_measured(layers):
    assert faster_dtype(nn.Linear(4, 4)) is None
    layers[0].to(torch.float16)
    assert faster_dtype(layers) is None


@pytest.mark.parametrize(
    ("own", "other", "rounds"),
    [("bfloat16", "float32", False), ("float16", "float32", False), ("float32", "bfloat16", True)],
)
def test_the_line_says_if_the_weights_would_be_rounded(own, other, rounds):
    line = str(Faster(own, other, 1.84))
    assert line.startswith(f"{other} would be about 1.8 times as fast as {own} on this CPU")
    assert ("another model" in line) == rounds
