"""What positions forbid, asked of a family as the engine, drafters and certificates ask."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.target.families import Family
from slipstream.target.target import Target

FIXED = Family(context_length=50)
LONGROPE = Family(context_length=50, rolling_rope="longrope", rope_boundary=20)
DYNAMIC = Family(context_length=50, rolling_rope="dynamic", rope_boundary=20)
SCALED = Family(context_length=50, query_step=8)
ALL = {"fixed": FIXED, "longrope": LONGROPE, "dynamic": DYNAMIC, "scaled": SCALED}
each_family = pytest.mark.parametrize("family", ALL.values(), ids=ALL)


@pytest.mark.parametrize(
    ("family", "reaches"),
    [
        (FIXED, {1: 50, 20: 50, 21: 50}),
        (LONGROPE, {1: 20, 20: 20, 21: 50}),
        (DYNAMIC, {1: 20, 20: 20, 21: 20}),
        (Family(), {1: None, 99: None}),
        (Family(rolling_rope="longrope", rope_boundary=20), {20: 20, 21: None}),
        (Family(context_length=9, rolling_rope="dynamic", rope_boundary=20), {3: 9}),
    ],
)
def test_no_pass_reaches_into_other_frequencies(family, reaches):
    assert {length: family.reach(length) for length in reaches} == reaches


@each_family
@given(length=st.integers(1, 60), chunk=st.integers(1, 25))
def test_chunks_prefill_all_but_the_root_once(family, length, chunk):
    chunks = list(family.prefill_chunks(length, chunk))
    if not family.may_cut_passes:
        assert chunks == ([(0, length)] if length > 1 else []), "one pass, the root with it"
        return
    assert [place for first, end in chunks for place in range(first, end)] == list(range(length - 1))
    assert all(end - first <= chunk for first, end in chunks)


@each_family
def test_keys_are_made_anew_once_where_they_change(family):
    """Token by token: the text has just become longer than the boundary, and its root is yet to be run."""
    anew = [length for length in range(1, 50) if family.must_reprefill(length - 1, length)]
    assert anew == ([21] if family is LONGROPE else [])
    assert family.may_keep_keys is (family is not LONGROPE)


@each_family
@given(cached=st.integers(0, 60))
def test_the_rows_of_a_tree_stay_within_one_step_of_the_query_scale(family, cached):
    most = family.most_nodes(cached)
    if family.query_step is None:
        assert most is None
        return
    steps = [(slot + 1) // family.query_step for slot in range(cached, cached + most + 2)]  # the root's slot first
    assert set(steps[:-1]) == {steps[0]}
    assert steps[-1] == steps[0] + 1, "one more node would be scaled otherwise"


def test_texts_share_a_pass_only_where_slots_and_lengths_mean_nothing():
    assert {name: family.may_pack_texts for name, family in ALL.items()} == {
        "fixed": True,
        "longrope": False,
        "dynamic": False,
        "scaled": False,
    }


def test_a_family_is_read_off_the_config():
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 32}
    found = Family.find(SimpleNamespace(max_position_embeddings=128, rope_parameters=rope))
    assert found == Family(context_length=128, rolling_rope="longrope", rope_boundary=32)
    rope = {"rope_type": "dynamic", "factor": 4.0}
    found = Family.find(SimpleNamespace(max_position_embeddings=32, rope_parameters=rope))
    assert found == Family(context_length=128, rolling_rope="dynamic", rope_boundary=32)
    scaled = {"floor_scale": 8192, "attn_temperature_tuning": True}
    assert Family.find(SimpleNamespace(max_position_embeddings=9, **scaled)).query_step == 8192
    assert Family.find(SimpleNamespace(floor_scale=8192)).query_step is None


def test_a_target_knows_its_family(family_model):
    target = Target(family_model("longrope"))
    assert target.family.rolling_rope == "longrope"
    assert target.context_length == target.family.context_length
