"""Packed weights: the same numbers, one packed form a weight, renewed with it and let go with it.

By oneDNN they are the same to the last bit; by our own product for few rows sums are in another order.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import slipstream
from families import build, prompt_ids
from slipstream.errors import InputError
from slipstream.runtime import packed, packed_passes
from slipstream.runtime.executor import check_runtime
from slipstream.runtime.few_rows import DTYPES, MOST_ROWS, few_rows
from slipstream.runtime.packed import PackedWeights
from slipstream.target.shadow import shadow

needs_bfloat16 = pytest.mark.skipif(not packed._packs_bfloat16(), reason="oneDNN packs no bfloat16 here")


@pytest.fixture(params=["oneDNN", "own"], autouse=True)
def library(request, monkeypatch):
    """What multiplies few rows."""
    own = few_rows()
    if request.param == "own" and own is None:
        pytest.skip("the product for few rows is not built here, or no faster")
    monkeypatch.setattr(
        packed, "few_rows", lambda dtype=torch.bfloat16: own if request.param == "own" and dtype in DTYPES else None
    )
    packed._BY_PLACE.clear()
    yield request.param
    packed._BY_PLACE.clear()


def same(found: Tensor, expected: Tensor, library: str) -> bool:
    if library == "oneDNN":
        return torch.equal(found, expected)
    return torch.allclose(found.float(), expected.float(), rtol=2**-7, atol=2e-3)


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 64).to(torch.bfloat16).requires_grad_(False)


def rows(count: int) -> Tensor:
    return torch.randn(1, count, 96, generator=torch.Generator().manual_seed(count)).to(torch.bfloat16)


@needs_bfloat16
@pytest.mark.parametrize("count", [1, 3, 16, 70])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_says_what_the_layer_says(layer, bias, count, library):
    if not bias:
        layer.bias = None
    weights = PackedWeights()
    twin = shadow(layer, weights.changes(layer))
    assert twin is not layer
    assert same(twin(rows(count)), layer(rows(count)), library)
    assert weights.nbytes == 96 * 64 * 2


@pytest.mark.parametrize("library", ["own"], indirect=True)
@pytest.mark.parametrize("count", [1, 3, 16, 70])
def test_a_layer_in_float32_is_packed_for_our_product(count, library):
    layer = nn.Linear(96, 64).requires_grad_(False)
    weights = PackedWeights()
    twin = shadow(layer, weights.changes(layer))
    found, expected = twin(rows(count).float()), layer(rows(count).float())
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(twin(rows(count).float()[:, :1]), found[:, :1]) or count > MOST_ROWS
    assert weights.nbytes == 96 * 64 * 4


@needs_bfloat16
@pytest.mark.parametrize("library", ["own"], indirect=True)
@pytest.mark.parametrize("takes_many", [True, False])
def test_many_rows_are_multiplied_by_ours_only_where_that_is_faster(layer, takes_many, library, monkeypatch):
    weights, own, asked = PackedWeights(), few_rows(), []
    linear = own.linear
    monkeypatch.setattr(own, "many", [torch.bfloat16] if takes_many else [torch.float32])
    monkeypatch.setattr(own, "linear", lambda *args: asked.append(args) or linear(*args))
    twin = shadow(layer, weights.changes(layer))
    assert same(twin(rows(70)), layer(rows(70)), library)
    assert len(asked) == takes_many
    twin(rows(64))
    assert len(asked) == takes_many + 1


@needs_bfloat16
def test_a_weight_that_changes_in_place_is_packed_anew(layer, library):
    weights = PackedWeights()
    twin = shadow(layer, weights.changes(layer))
    before = twin(rows(2))
    with torch.no_grad():
        layer.weight.mul_(2)
    assert same(twin(rows(2)), layer(rows(2)), library)
    assert not torch.equal(twin(rows(2)), before)


@needs_bfloat16
def test_shadows_share_a_packed_weight_and_the_last_holder_frees_it(layer):
    one, other = PackedWeights(), PackedWeights()
    for weights in (one, one, other):
        weights.changes(layer)
    held = packed._BY_PLACE[layer.weight.data_ptr()]
    assert list(one._held.values()) == list(other._held.values()) == [held]
    place = layer.weight.data_ptr()
    del held
    one.forget()
    assert place in packed._BY_PLACE
    other.forget()

    assert place not in packed._BY_PLACE


@needs_bfloat16
def test_memory_that_a_packed_weight_was_made_of_is_not_another_weights(layer):
    """`model.to(dtype)` puts new memory into a parameter; what comes to lie in the old one is no packed weight."""
    weights = PackedWeights()
    twin = shadow(layer, weights.changes(layer))
    place = layer.weight.data_ptr()
    held = packed._BY_PLACE[place]
    layer.float()
    assert layer.weight.data_ptr() != place
    assert held._weight.data_ptr() == place, "as long as the place has a packed form, nothing else can lie there"
    assert torch.equal(twin(rows(2).float()), layer(rows(2).float()))


@needs_bfloat16
@pytest.mark.parametrize("library", ["own"], indirect=True)
def test_rows_that_do_not_fit_get_pytorchs_error_or_its_autocast(layer, library):
    weights = PackedWeights()
    twin = shadow(layer, weights.changes(layer))
    for wrong in (rows(2).float(), rows(2)[..., :90]):
        with pytest.raises(RuntimeError):
            twin(wrong)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(twin(rows(2).float()), layer(rows(2).float()))
    assert weights.nbytes > 0


@needs_bfloat16
def test_without_its_packed_form_a_layer_runs_as_ever(layer):
    weights = PackedWeights()
    twin = shadow(layer, weights.changes(layer))
    weights.forget()
    assert torch.equal(twin(rows(2)), layer(rows(2)))


def test_other_layers_are_left_alone(layer):
    class Own(nn.Linear):
        """A layer that may do anything."""

    replaced = copy.deepcopy(layer)
    replaced.forward = lambda rows: rows
    others = nn.ModuleList([layer.half(), nn.Linear(2, 2).double(), Own(2, 2).to(torch.bfloat16), replaced])
    assert PackedWeights().changes(others) == {}


@needs_bfloat16
@torch.inference_mode()
def test_a_model_with_packed_weights_says_what_it_says(library):
    with torch.inference_mode(False):
        model = build("llama").to(torch.bfloat16)
    weights = PackedWeights()
    twin = shadow(model, weights.changes(model))
    ids = torch.tensor([prompt_ids(9)])
    found, expected = twin(input_ids=ids).logits, model(input_ids=ids).logits
    assert torch.equal(found, expected) if library == "oneDNN" else torch.allclose(found, expected, atol=0.05)
    linears = [one for one in model.modules() if isinstance(one, nn.Linear)]
    assert weights.nbytes == sum(one.weight.numel() * 2 for one in linears)


class TestPackedPasses:
    """Passes of a whole model with packed weights: `runtime="packed"`, and what "auto" makes of it."""

    @pytest.fixture
    def model(self):
        return build("llama").to(torch.bfloat16)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_answers_are_plain_decodings_whatever_drafts(self, model, dtype, library):
        """Rows know nothing of each other in our product: a tree's numbers are those of one token at a time."""
        plain, drafted = (
            slipstream.load(model.to(dtype), method, runtime="packed", **options)
            for method, options in (("plain", {}), ("layer-skip", {"width": 3, "depth": 3, "total": 6}))
        )
        assert plain.target.executor.name == "packed"
        assert (plain.target.executor.packed_bytes > 0) == (library == "own" or dtype == torch.bfloat16)
        assert plain.target.executor.rows(13) == 13
        answers = [one.generate(prompt_ids(9), max_new_tokens=24).token_ids for one in (plain, drafted)]
        assert len(answers[0]) == 24
        if library == "own" or dtype == torch.float32:
            assert answers[0] == answers[1]

    def test_auto_packs_where_it_is_faster_and_memory_is_plenty(self, model, library, monkeypatch):
        monkeypatch.setattr(packed_passes, "few_rows", packed.few_rows)
        names = [slipstream.load(model, "plain").target.executor.name]
        packed._BY_PLACE.clear()
        monkeypatch.setattr(packed_passes, "_available_memory", lambda: 1000)
        names.append(slipstream.load(model, "plain").target.executor.name)
        names.append(slipstream.load(model, "plain", runtime="eager").target.executor.name)
        assert names == ["packed" if library == "own" else "eager", "eager", "eager"]

    def test_auto_packs_float32_too_and_no_other_numbers(self, model, library, monkeypatch):
        monkeypatch.setattr(packed_passes, "few_rows", packed.few_rows)
        names = [slipstream.load(model.to(one), "plain").target.executor.name for one in (torch.float32, torch.float64)]
        assert names == ["packed" if library == "own" else "eager", "eager"]

    def test_other_numbers_are_left_as_they_are(self, model):
        expected = slipstream.load(model.double(), "plain").generate(prompt_ids(9), max_new_tokens=12).token_ids
        packed = slipstream.load(model, "plain", runtime="packed")
        assert packed.generate(prompt_ids(9), max_new_tokens=12).token_ids == expected
        assert packed.target.executor.packed_bytes == 0

    def test_it_is_for_a_cpu(self):
        with pytest.raises(
            InputError, match="runtime='packed' is for a CPU, and the model is on cuda:0; use 'captured'"
        ):
            check_runtime("packed", torch.device("cuda:0"))
