"""Norms and rotary embeddings by the library: what transformers' own give, wherever ours is put in their place."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.cohere import modeling_cohere
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.glm import modeling_glm
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3 import modeling_qwen3

from families import FAMILIES, build, prompt_ids
from slipstream.runtime import few_rows_layers as module
from slipstream.runtime.few_rows import DTYPES, FewRows
from slipstream.runtime.few_rows_layers import layer_changes
from slipstream.runtime.packed_passes import PackedPasses
from slipstream.target.shadow import shadow


@pytest.fixture
def used(library: FewRows, monkeypatch: pytest.MonkeyPatch) -> FewRows:
    monkeypatch.setattr(module, "few_rows", lambda dtype: library if dtype in DTYPES else None)
    return library


def normal(seed: int, *size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm_of(
    size: int, kind: Callable[..., nn.Module] = LlamaRMSNorm, dtype: torch.dtype = torch.bfloat16, **more: Any
) -> nn.Module:
    norm = kind(size, **more).to(dtype).requires_grad_(False)
    norm.weight.copy_(normal(9, size))
    return norm


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 70),
    size=st.integers(1, 700),
    eps=st.sampled_from([1e-6, 1e-2]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
@torch.inference_mode()
def test_a_norm_is_llamas_and_its_rows_know_nothing_of_each_other(
    library: FewRows, rows: int, size: int, eps: float, scale: float, dtype: torch.dtype, seed: int
) -> None:
    norm, x = norm_of(size, eps=eps, dtype=dtype), normal(seed, rows, size, dtype=dtype) * scale
    found, expected = library.rms_norm(x, norm.weight, eps), norm(x)
    apart = (found.double() - expected.double()).abs()
    assert (apart <= 4 * torch.finfo(dtype).eps * expected.double().abs()).all()
    if rows * size > 1000 and dtype == torch.bfloat16:
        assert (found != expected).double().mean() < 0.01, "only sums in another order may differ"
    assert torch.equal(library.rms_norm(x[-1:], norm.weight, eps), found[-1:])


def test_a_norm_of_many_rows_is_that_of_each(library: FewRows) -> None:
    x, weight = normal(0, 400, 576), normal(1, 576)
    alone = torch.cat([library.rms_norm(row[None], weight, 1e-5) for row in x])
    assert torch.equal(library.rms_norm(x, weight, 1e-5), alone)
    strided = x.T.contiguous().T
    assert torch.equal(library.rms_norm(strided, weight, 1e-5), alone)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 20),
    key_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    width=st.sampled_from([32, 64, 96, 128]),
    together=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_heads_are_turned_as_by_llama_to_the_last_bit(
    library: FewRows, rows: int, key_heads: int, group: int, width: int, together: bool, dtype: torch.dtype, seed: int
) -> None:
    sizes = ((1, rows, key_heads * group, width), (1, rows, key_heads, width), (1, rows, width), (1, rows, width))
    q, k, cos, sin = (normal(seed + at, *size, dtype=dtype) for at, size in enumerate(sizes))
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    if together:
        q, k = q.contiguous(), k.contiguous()
    found, expected = library.rotary(q, k, cos, sin), modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
    assert all(map(torch.equal, found, expected))


def kinds_changed(model: nn.Module) -> Counter[str]:
    return Counter(type(one).__name__ for one in layer_changes(model))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {"LlamaRMSNorm", "LlamaAttention"}),
        ("qwen3", {"Qwen3RMSNorm", "Qwen3Attention"}),
        ("mistral", {"MistralRMSNorm", "MistralAttention"}),
        ("gemma2", {"Gemma2Attention"}),  # its norms add 1 to their weight
        ("gpt2", set()),
    ],
)
def test_what_is_changed_of_a_family(name: str, expected: set[str], dtype: torch.dtype, used: FewRows) -> None:
    assert set(kinds_changed(FAMILIES[name]().to(dtype))) == expected
    assert kinds_changed(FAMILIES[name]().double()) == {}


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.06), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_says_what_it_says(name: str, dtype: torch.dtype, tolerance: float, used: FewRows) -> None:
    with torch.inference_mode(False):
        model = FAMILIES[name]().to(dtype)
    changes = layer_changes(model)
    if not changes:
        pytest.skip("nothing of it is ours")
    twin = shadow(model, changes)
    ids = torch.tensor([prompt_ids(12)])
    found, expected = (one(input_ids=ids).logits.float() for one in (twin, model))
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_other_norms_and_embeddings_are_left_alone(used: FewRows) -> None:
    others = [
        norm_of(64, GemmaRMSNorm),
        norm_of(64, nn.LayerNorm),
        Gated(64).to(torch.bfloat16),
    ]
    assert layer_changes(nn.ModuleList(others)) == {}
    assert set(layer_changes(nn.ModuleList([*others, ours := norm_of(64)]))) == {ours}
    for theirs in (modeling_cohere, modeling_glm):  # neighbours are turned, not halves
        assert not module._is_same(used, theirs.apply_rotary_pos_emb)
    assert module._is_same(used, modeling_qwen3.apply_rotary_pos_emb)


class Gated(nn.Module):
    """Has a weight and an epsilon, and wants more than rows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), 1e-6

    def forward(self, rows: Tensor, gate: Tensor) -> Tensor:
        return rows * gate


def test_what_ours_does_not_take_goes_to_the_modules_own(used: FewRows, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = norm_of(64)
    twin = shadow(nn.ModuleList([norm]), layer_changes(nn.ModuleList([norm])))[0]
    x = normal(0, 3, 64)
    asked = []
    monkeypatch.setattr(FewRows, "rms_norm", lambda *given: asked.append("ours") or norm(given[1]))
    assert torch.equal(twin(x), norm(x))
    assert asked == ["ours"]
    assert twin(x.float()).dtype == torch.float32
    assert twin(x.clone().requires_grad_()).requires_grad
    assert twin(x[:0]).shape == (0, 64)
    assert asked == ["ours"]


def test_what_the_library_does_not_turn_goes_to_their_own(used: FewRows) -> None:
    asked = []
    rotary = module._rotary(used, lambda *given, **named: asked.append("theirs"))
    q, cos = normal(0, 1, 4, 3, 64), normal(1, 1, 3, 64)
    rotary(q, q, cos, cos)
    assert asked == []
    rotary(q, q, cos, cos, unsqueeze_dim=2)
    rotary(q.float(), q, cos, cos)
    rotary(q, q, cos.float(), cos.float())
    rotary(q, q, cos[..., :32], cos[..., :32])
    rotary(*(normal(0, 2, 4, 3, 64),) * 2, *(normal(1, 2, 3, 64),) * 2)
    rotary(*(normal(0, 1, 4, 3, 48),) * 2, *(normal(1, 1, 3, 48),) * 2)
    rotary(q.clone().requires_grad_(), q, cos, cos)
    rotary(q.transpose(2, 3).contiguous().transpose(2, 3), q, cos, cos)
    assert asked == ["theirs"] * 8


def test_a_weight_that_is_replaced_is_read(used: FewRows) -> None:
    norm = norm_of(64)
    holder = nn.ModuleList([norm])
    twin = shadow(holder, layer_changes(holder))[0]
    x = normal(0, 3, 64)
    norm.weight = nn.Parameter(torch.full((64,), 2.0, dtype=torch.bfloat16), requires_grad=False)
    assert torch.allclose(twin(x).float(), norm(x).float(), rtol=2**-7)


def test_transformers_own_modules_and_functions_stay_as_they_are(used: FewRows) -> None:
    own = modeling_llama.apply_rotary_pos_emb
    model = FAMILIES["llama"]().to(torch.bfloat16)
    shadow(model, layer_changes(model))
    assert modeling_llama.apply_rotary_pos_emb is own
    attention = next(one for one in model.modules() if type(one).__name__ == "LlamaAttention")
    assert attention.forward.__func__ is modeling_llama.LlamaAttention.forward


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_packed_passes_run_by_all_of_it_and_are_as_close_as_eager_ones(
    name: str, dtype: torch.dtype, library: FewRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("packed", "few_rows_attention", "few_rows_layers"):
        monkeypatch.setattr(f"slipstream.runtime.{place}.few_rows", lambda dtype: library if dtype in DTYPES else None)
    asked: Counter[str] = Counter()
    for part in ("linear", "attention", "rms_norm", "rotary"):
        own = getattr(library, part)
        count = lambda *given, own=own, part=part: (asked.update([part]), own(*given))[1]  # noqa: E731
        monkeypatch.setattr(library, part, count)
    model = build(name, head_dim=32, attention="sdpa").to(dtype).requires_grad_(False)
    executor = PackedPasses()
    twin = executor.prepare(model)
    asked.clear()  # of trials
    ids = torch.tensor([prompt_ids(12)])
    hidden = ~torch.ones(12, 12).tril().bool()
    mask = torch.zeros(1, 1, 12, 12, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    found, theirs = (one(input_ids=ids, attention_mask=mask).logits.double() for one in (twin, model))
    exact = copy.deepcopy(model).double()(input_ids=ids, attention_mask=mask.double()).logits
    errors = [float((one - exact).square().mean().sqrt()) for one in (found, theirs)]
    assert errors[0] <= 1.5 * errors[1]
    layers = model.config.num_hidden_layers
    linears, norms = (
        sum(type(one).__name__.endswith(kind) for one in model.modules()) for kind in ("Linear", "RMSNorm")
    )
    assert asked == {"linear": linears, "attention": layers, "rms_norm": norms, "rotary": layers}
