"""Skip sets as data: the file format, what it refuses, and the built-in default."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.errors import ArtifactError, ArtifactWarning, SkipSetError
from slipstream.skipping.resolve import resolve_skip_set
from slipstream.skipping.skip_set import SkipSet
from slipstream.skipping.sublayers import SubLayers

VALID = {
    "format": "slipstream-skip-set",
    "version": 1,
    "target": "abc",
    "num_layers": 4,
    "attention": [1, 2],
    "mlp": [2],
    "provenance": {"trials": 3},
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def skip_sets(draw: st.DrawFn) -> SkipSet:
    num_layers = draw(st.integers(1, 100))
    layers = st.lists(st.integers(0, num_layers - 1), unique=True)
    return SkipSet(
        num_layers=num_layers,
        attention=tuple(draw(layers)),
        mlp=tuple(draw(layers)),
        target=draw(st.none() | st.text()),
        provenance=draw(st.dictionaries(st.text(), json_values, max_size=3)),
    )


@given(skip_sets())
def test_a_skip_set_survives_its_json(skip_set: SkipSet) -> None:
    assert SkipSet.from_json(skip_set.to_json()) == skip_set
    assert list(skip_set.attention) == sorted(skip_set.attention)


def test_a_skip_set_survives_its_file(tmp_path: Path) -> None:
    skip_set = SkipSet.from_json(json.dumps(VALID))
    skip_set.save(tmp_path / "set.json")
    assert SkipSet.load(tmp_path / "set.json") == skip_set
    assert json.loads((tmp_path / "set.json").read_text()) == VALID


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format": "other"}, ArtifactError, 'not a skip set, for it has no "format"'),
        ({"version": 2}, ArtifactError, "version 2 is not known"),
        ({"version": True}, ArtifactError, "version True is not known"),
        ({"colour": 1}, ArtifactError, "unknown key in the skip set: 'colour'"),
        ({"mlp": None}, SkipSetError, "mlp must be a list of layer indices, not None"),
        ({"mlp": "12"}, SkipSetError, "mlp must be a list of layer indices, not '12'"),
        ({"mlp": [1.5]}, SkipSetError, "mlp must list whole numbers, not 1.5"),
        ({"mlp": [True]}, SkipSetError, "mlp must list whole numbers, not True"),
        ({"mlp": [1, 3, 1]}, SkipSetError, "layer 1 stands twice in mlp"),
        ({"attention": [-1]}, SkipSetError, "layer -1 is in attention, but layers are counted from 0"),
        ({"attention": [4, 1, 9]}, SkipSetError, r"layer 9 is in the skip set.* has 4 layers \(0-3\).*remove 4, 9"),
        ({"num_layers": 0}, SkipSetError, "num_layers must be a whole number of at least 1, not 0"),
        ({"num_layers": "4"}, SkipSetError, "num_layers must be a whole number of at least 1, not '4'"),
        ({"target": 7}, ArtifactError, "target must be a hash"),
        ({"provenance": []}, ArtifactError, r"provenance must be an object, not \[\]"),
        ({"provenance": {"tau": float("nan")}}, ArtifactError, "not JSON .NaN is not a JSON value"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps({**VALID, **change}))
    with pytest.raises(error, match=message) as refusal:
        SkipSet.load(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["format", "version", "target", "num_layers", "attention", "mlp"])
def test_a_missing_key_is_refused(key: str) -> None:
    record = {name: value for name, value in VALID.items() if name != key}
    with pytest.raises(ArtifactError, match=key):
        SkipSet.from_json(json.dumps(record))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, '"slipstream-skip-set"'])
def test_text_that_is_no_skip_set_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"f\.json: not a skip set"):
        SkipSet.from_json(text, source="f.json")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot read the skip set .*absent\.json.*No such file"):
        SkipSet.load(tmp_path / "absent.json")
    with pytest.raises(ArtifactError, match="cannot read the skip set"):
        SkipSet.load(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="binary: not a JSON text file"):
        SkipSet.load(tmp_path / "binary")


@pytest.mark.parametrize("provenance", [{"when": object()}, {"tau": float("inf")}])
def test_provenance_that_json_cannot_hold_is_refused_before_it_is_written(provenance: dict[str, object]) -> None:
    with pytest.raises(SkipSetError, match="provenance of a skip set must hold finite JSON values"):
        SkipSet(num_layers=2, attention=(), mlp=(), provenance=provenance).to_json()


# The built-in default


def check_default(attention_bytes: list[int], mlp_bytes: list[int]) -> SkipSet:
    depth, total = len(mlp_bytes), sum(attention_bytes) + sum(mlp_bytes)
    skip_set = SkipSet.default(depth, attention_bytes, mlp_bytes)
    skipped = sum(attention_bytes[i] for i in skip_set.attention) + sum(mlp_bytes[i] for i in skip_set.mlp)
    assert skipped * 100 >= total * 40
    largest = max(a + m for a, m in zip(attention_bytes, mlp_bytes, strict=True))
    assert skipped * 100 < total * 40 + largest * 100
    assert 0 not in {*skip_set.attention, *skip_set.mlp}
    if depth >= 4:
        assert depth - 1 not in {*skip_set.attention, *skip_set.mlp}
    return skip_set


@pytest.mark.parametrize(("attention", "mlp"), [(4, 8), (2, 8), (1, 9), (1, 30), (5, 2), (0, 1), (1, 1)])
def test_the_default_skips_at_least_40_percent_and_keeps_both_ends(attention: int, mlp: int) -> None:
    for depth in range(2, 81):
        check_default([attention] * depth, [mlp] * depth)


@given(st.integers(8, 40), st.data())
def test_the_default_copes_with_layers_of_unlike_weight(depth: int, data: st.DataObject) -> None:
    attention = data.draw(st.lists(st.integers(50, 100), min_size=depth, max_size=depth))
    mlp = data.draw(st.lists(st.integers(100, 200), min_size=depth, max_size=depth))
    check_default(attention, mlp)


def test_the_default_overshoots_by_less_than_a_sublayer_of_a_deep_model() -> None:
    skip_set = check_default([1] * 16, [2] * 16)
    assert len(skip_set.attention) + 2 * len(skip_set.mlp) == 20  # 40 % of 48 is 19.2


@pytest.mark.parametrize(
    ("attention", "mlp"), [([1], [2]), ([9, 1, 1, 9], [9, 1, 1, 9])], ids=["1 layer", "heavy ends"]
)
def test_a_target_without_a_default_is_told_so(attention: list[int], mlp: list[int]) -> None:
    with pytest.raises(SkipSetError, match=f"no built-in skip set for this target of {len(mlp)} layer.*less than 40 %"):
        SkipSet.default(len(mlp), attention, mlp)


# What a user may give


@dataclass
class SixLayers:
    """A stand-in for the sub-layers of a target of six layers."""

    num_layers: int = 6
    attention_bytes: tuple[int, ...] = (1,) * 6
    mlp_bytes: tuple[int, ...] = (2,) * 6
    check = SubLayers.check


def test_a_skip_set_may_be_given_in_any_form(tmp_path: Path) -> None:
    expected = SkipSet(num_layers=6, attention=(1, 3), mlp=(2,))
    expected.save(tmp_path / "set.json")
    lists = {"attention": [3, 1], "mlp": [2]}
    for value in (expected, tmp_path / "set.json", str(tmp_path / "set.json"), lists, ([1, 3], [2]), [(3, 1), (2,)]):
        assert resolve_skip_set(value, SixLayers(), "abc") == expected
    assert resolve_skip_set({"mlp": [2]}, SixLayers()).attention == ()
    assert resolve_skip_set(None, SixLayers()) == SkipSet.default(6, (1,) * 6, (2,) * 6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"attention": [29]}, r"layer 29 is in the skip set, but this target has 6 layers \(0-5\).*remove 29"),
        ({"atention": [1]}, "unknown key 'atention'"),
        ([1, 2, 3], "a skip set is a path, a SkipSet, or lists of layers"),
        ([1, 2], "attention must be a list of layer indices, not 1"),
        (7, "not int"),
        (SkipSet(num_layers=24, attention=(1,), mlp=()), "for a target of 24 layers, but this one has 6"),
        (
            SkipSet(num_layers=24, attention=(1, 23), mlp=()),
            "layer 23 is in the skip set, but this target has 6 layers",
        ),
    ],
)
def test_what_does_not_fit_the_target_is_refused(value: object, message: str) -> None:
    with pytest.raises(SkipSetError, match=message):
        resolve_skip_set(value, SixLayers())


def test_a_skip_set_of_another_target_warns() -> None:
    skip_set = SkipSet(num_layers=6, attention=(1,), mlp=(), target="abc")
    with pytest.warns(ArtifactWarning, match="found for target abc, not for def"):
        resolve_skip_set(skip_set, SixLayers(), "def")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_skip_set(skip_set, SixLayers(), "abc") is skip_set
