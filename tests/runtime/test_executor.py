"""Sizes of passes: a few buckets, each at least what was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import slipstream
from families import build, prompt_ids
from slipstream.errors import InputError
from slipstream.runtime.buckets import Buckets
from slipstream.runtime.executor import FixedSizes, make_executor
from slipstream.target.passes import PassKey


@given(count=st.integers(1, 5000))
def test_buckets_hold_what_they_are_asked_to(count):
    buckets = Buckets()
    assert buckets.fit_rows(count) >= count
    assert buckets.fit_context(count) >= count
    assert buckets.fit_rows(buckets.fit_rows(count)) == buckets.fit_rows(count)
    assert buckets.fit_context(buckets.fit_context(count)) == buckets.fit_context(count)


def test_there_are_few_buckets():
    buckets = Buckets()
    assert sorted({buckets.fit_rows(count) for count in range(1, 200)}) == [1, 2, 4, 8, 16, 32, 64, 128, 192, 256]
    assert sorted({buckets.fit_context(slots) for slots in range(1, 2000)}) == [256, 512, 1024, 2048]


def test_exact_sizes_are_what_they_are_asked_to_be():
    executor = make_executor("exact")
    assert (executor.rows(27), executor.context(301)) == (27, 301)


def test_unknown_sizes_are_refused():
    with pytest.raises(InputError, match=r"unknown sizes 'fixd'; choose from exact, fixed\. Did you mean 'fixed'"):
        slipstream.load(build("llama"), "plain", sizes="fixd")


@pytest.mark.filterwarnings("ignore::slipstream.errors.ArtifactWarning")  # no tokenizers to compare
@pytest.mark.parametrize("sizes", ["exact", "fixed"])
def test_a_model_is_loaded_with_sizes_and_so_is_its_draft_model(sizes, monkeypatch):
    """Tokens are the same; passes have sizes of buckets where they were asked for."""
    target, draft = build("llama"), build("llama", num_hidden_layers=1)
    expected = slipstream.load(target, "plain").generate(prompt_ids(5), max_new_tokens=12).token_ids
    model = slipstream.load(target, "draft-model", sizes=sizes, draft=draft, total=6)
    keys = keys_of(model.target.executor, monkeypatch)
    assert model.generate(prompt_ids(5), max_new_tokens=12).token_ids == expected
    assert len({key.model for key in keys}) == 2, "both models"
    rows, contexts = {key.rows for key in keys}, {key.context for key in keys}
    assert (rows <= {1, 2, 4, 8} and contexts == {256}) is (sizes == "fixed")


def keys_of(executor, monkeypatch) -> list[PassKey]:
    """The keys of all passes from here on."""
    keys, right = [], executor.run

    def run(key, *others):
        keys.append(key)
        return right(key, *others)

    monkeypatch.setattr(executor, "run", run)
    return keys


def test_fixed_sizes_are_those_of_the_buckets():
    executor = FixedSizes(Buckets(rows=(3, 7), context=10))
    assert [executor.rows(count) for count in (1, 3, 4, 8, 15)] == [3, 3, 7, 14, 21]
    assert [executor.context(slots) for slots in (1, 10, 11, 41)] == [10, 10, 20, 80]
