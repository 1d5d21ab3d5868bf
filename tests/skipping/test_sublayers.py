"""Skipping sub-layers, on a tiny random model of every family that layer-skip promises to work with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from families import FAMILIES, family
from slipstream.errors import LayerSkipUnsupportedError, SkipSetError
from slipstream.skipping.skip_set import SkipSet
from slipstream.skipping.sublayers import SubLayers

GPT2_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
FALCON_SIZES = {"hidden_size": 32, "ffn_hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VARIANTS = {
    "gpt_neox-sequential": family("gpt_neox", use_parallel_residual=False),
    "stablelm-parallel": family("stablelm", use_parallel_residual=True),
    "falcon-sequential": family("falcon", sizes=FALCON_SIZES, alibi=False, parallel_attn=False),
    "gptj-attention-weights": family("gptj", sizes=GPT2_SIZES, rotary_dim=4, attention="eager"),
    "granitemoeshared": family(
        "granitemoeshared", num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=24
    ),
}
SKIPPABLE = {**FAMILIES, **VARIANTS}
IDS = torch.tensor([[3, 14, 15, 9, 26, 5]])


@pytest.fixture(params=list(SKIPPABLE))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return SKIPPABLE[request.param]()


@pytest.fixture
def llama() -> PreTrainedModel:
    return family("llama", num_hidden_layers=3)()


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits  # [1, seq, vocab]


def skip_set(num_layers: int, attention: Iterable[int], mlp: Iterable[int]) -> SkipSet:
    return SkipSet(num_layers=num_layers, attention=tuple(attention), mlp=tuple(mlp))


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The layers by name: where each family keeps them."""
    decoder = model.model if hasattr(model, "model") else getattr(model, model.base_model_prefix)
    decoder = getattr(decoder, "decoder", decoder)
    return decoder.layers if hasattr(decoder, "layers") else decoder.h


ATTENTION_NAMES = {"self_attn", "attn", "attention", "self_attention"}
MLP_NAMES = {"mlp", "feed_forward", "block_sparse_moe", "shared_mlp", "fc2"}


@contextmanager
def zeroed_by_hooks(model: PreTrainedModel, attention: Iterable[int], mlp: Iterable[int]) -> Iterator[None]:
    """The oracle: sub-layers known by name run as ever, and a hook multiplies what they return by nothing."""

    def zero(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> object:
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)

    with ExitStack() as hooks:
        for names, indices in ((ATTENTION_NAMES, attention), (MLP_NAMES, mlp)):
            for i in indices:
                parts = [part for name, part in layers_of(model)[i].named_children() if name in names]
                assert parts
                for part in parts:
                    hooks.enter_context(part.register_forward_hook(zero))
        yield


def test_skipping_equals_zeroing_the_sublayers_by_hooks(model: PreTrainedModel) -> None:
    sublayers = SubLayers.find(model)
    depth = sublayers.num_layers
    subsets = [[], [0], [depth - 1], list(range(depth))]
    for attention, mlp in itertools.product(subsets, subsets):
        with zeroed_by_hooks(model, attention, mlp):
            expected = logits(model)
        skipped = logits(sublayers.plan(skip_set(depth, attention, mlp)).model)
        assert torch.equal(skipped, expected), (attention, mlp)


def test_a_layer_without_sublayers_returns_its_input(model: PreTrainedModel) -> None:
    sublayers = SubLayers.find(model)
    everything = range(sublayers.num_layers)
    calls: list[tuple[Tensor, Tensor]] = []

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        calls.append((args[0], output[0] if isinstance(output, tuple) else output))

    with ExitStack() as hooks:
        for layer in layers_of(model):
            hooks.enter_context(layer.register_forward_hook(record))
        logits(sublayers.plan(skip_set(sublayers.num_layers, everything, everything)).model)
    assert len(calls) == sublayers.num_layers
    assert all(torch.equal(before, after) for before, after in calls)


def test_each_sublayer_alone_changes_the_output(model: PreTrainedModel) -> None:
    sublayers = SubLayers.find(model)
    whole = logits(model)
    for i in range(sublayers.num_layers):
        for attention, mlp in (((i,), ()), ((), (i,))):
            plan = sublayers.plan(skip_set(sublayers.num_layers, attention, mlp))
            assert not torch.equal(logits(plan.model), whole), (attention, mlp)


def state_of(model: PreTrainedModel) -> list[object]:
    """Everything that could be left hanging on a model: attributes, hooks, storages, flags."""
    modules = [
        (
            name,
            sorted(module.__dict__),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            len(module._buffers),
            module.training,
        )
        for name, module in model.named_modules()
    ]
    return [*modules, *((name, p.data_ptr()) for name, p in model.named_parameters())]


def test_skipping_leaves_the_model_as_it_was_and_adds_no_weights(model: PreTrainedModel) -> None:
    before, state = logits(model), state_of(model)
    sublayers = SubLayers.find(model)
    plan = sublayers.plan(SkipSet.default(sublayers.num_layers, sublayers.attention_bytes, sublayers.mlp_bytes))
    addresses = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in plan.model.parameters()} <= addresses
    logits(plan.model)
    assert state_of(model) == state
    assert torch.equal(logits(model), before)


def test_bytes_are_those_of_the_weights() -> None:
    model = family("llama")().to(torch.bfloat16)
    sublayers = SubLayers.find(model)
    layer = model.model.layers[0]
    assert sublayers.attention_bytes[0] == 2 * sum(p.numel() for p in layer.self_attn.parameters())
    assert sublayers.mlp_bytes[0] == 2 * sum(p.numel() for p in layer.mlp.parameters())
    one = skip_set(2, (), (1,))
    assert sublayers.skipped_fraction(one) == sublayers.mlp_bytes[1] / (
        sum(sublayers.attention_bytes) + sum(sublayers.mlp_bytes)
    )


def test_bytes_of_packed_weights_count_what_is_stored(llama: PreTrainedModel) -> None:
    for layer in llama.model.layers:
        layer.mlp.register_buffer("cached_mask", torch.ones(100, 100), persistent=False)
        layer.mlp.register_buffer("packed", torch.ones(10, 6, dtype=torch.uint8))
    sublayers = SubLayers.find(llama)
    parameters = sum(p.numel() * 8 for p in llama.model.layers[0].mlp.parameters())
    assert sublayers.mlp_bytes == [parameters + 60] * 3


def test_plans_stand_beside_each_other_and_can_be_used_again(llama: PreTrainedModel) -> None:
    sublayers, whole = SubLayers.find(llama), logits(llama)
    one, other = sublayers.plan(skip_set(3, (0,), ())), sublayers.plan(skip_set(3, (0, 1), (1, 2)))
    without_first = logits(one.model)
    assert not torch.equal(logits(other.model), without_first)
    assert torch.equal(logits(one.model), without_first)
    assert torch.equal(logits(llama), whole)


def test_a_forward_that_someone_else_had_put_there_stays(llama: PreTrainedModel) -> None:
    attention = llama.model.layers[1].self_attn
    own, num_calls = attention.forward, 0

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal num_calls
        num_calls += 1
        return own(*args, **kwargs)

    attention.forward = counted
    sublayers = SubLayers.find(llama)
    num_calls = 0
    logits(sublayers.plan(skip_set(3, (1,), ())).model)
    assert num_calls == 0
    logits(sublayers.plan(skip_set(3, (), (1,))).model)
    assert num_calls == 1
    assert attention.__dict__["forward"] is counted


def test_works_under_accelerate_with_offloaded_weights(llama: PreTrainedModel) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    chosen = skip_set(3, (0, 1), (1, 2))
    resident = SubLayers.find(llama)
    expected = logits(resident.plan(chosen).model)
    accelerate.cpu_offload(llama, execution_device=torch.device("cpu"))
    assert llama.model.layers[0].mlp.up_proj.weight.is_meta
    offloaded, state = SubLayers.find(llama), state_of(llama)
    assert offloaded.mlp_bytes == resident.mlp_bytes
    assert torch.equal(logits(offloaded.plan(chosen).model), expected)
    assert state_of(llama) == state


def test_the_probe_leaves_training_flags_and_random_state(llama: PreTrainedModel) -> None:
    llama.train()
    llama.model.layers[0].eval()
    state, random_state = state_of(llama), torch.get_rng_state()
    SubLayers.find(llama)
    assert state_of(llama) == state
    assert torch.equal(torch.get_rng_state(), random_state)


def test_works_in_bfloat16(model: PreTrainedModel) -> None:
    sublayers = SubLayers.find(model.to(torch.bfloat16))
    everything = range(sublayers.num_layers)
    assert logits(sublayers.plan(skip_set(sublayers.num_layers, everything, ())).model).dtype == torch.bfloat16


def test_a_skipped_attention_writes_nothing_to_the_kv_cache(llama: PreTrainedModel) -> None:
    sublayers = SubLayers.find(llama)
    with torch.no_grad():
        cache = sublayers.plan(skip_set(3, (1,), ())).model(input_ids=IDS, use_cache=True).past_key_values
    assert [cache.get_seq_length(i) for i in range(3)] == [6, 0, 6]


def llama_with_a_scaled_layer() -> PreTrainedModel:
    """A llama whose second layer scales the residual stream."""
    model = family("llama")()
    layer = model.model.layers[1]
    own = layer.forward
    layer.forward = lambda hidden, **kwargs: own(hidden, **kwargs) * 1.5
    return model


def llama_with_a_useless_mlp() -> PreTrainedModel:
    model = family("llama")()
    for layer in model.model.layers:
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def llama_whose_config_shares_keys() -> PreTrainedModel:
    """As Gemma 4 does: skipping the layer that lends its keys would leave the borrowers without."""
    model = family("llama")()
    model.config.num_kv_shared_layers = 1
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            family("bloom", sizes={"hidden_size": 32, "n_layer": 2, "n_head": 4}, attention="eager"),
            "layer 0 .BloomBlock",
        ),
        (family("mpt", sizes={"d_model": 32, "n_layers": 2, "n_heads": 4}, attention="eager"), "layer 0 .MptBlock"),
        (family("opt", ffn_dim=48, word_embed_proj_dim=32, do_layer_norm_before=False), "layer 0 .OPTDecoderLayer"),
        (
            family(
                "gemma3n_text",
                num_kv_shared_layers=0,
                layer_types=["full_attention", "full_attention"],
                laurel_rank=4,
                hidden_size_per_layer_input=8,
                vocab_size_per_layer_input=64,
                activation_sparsity_pattern=[0.0, 0.0],
            ),
            "layer 0 .Gemma3nTextDecoderLayer",
        ),
        (
            family("mamba", sizes={"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, attention="eager"),
            "layer 0 .MambaBlock",
        ),
        (llama_with_a_scaled_layer, "layer 1 .LlamaDecoderLayer. changes its input"),
        (llama_with_a_useless_mlp, "only its MLP is left"),
        (llama_whose_config_shares_keys, "its last 1 layers use the keys and values of earlier ones"),
    ],
    ids=["bloom", "mpt", "opt-post-norm", "gemma3n", "mamba", "scaled-residual", "useless-mlp", "shared-keys"],
)
def test_a_model_whose_sublayers_cannot_be_skipped_is_refused_with_the_reason(build, reason: str) -> None:
    model = build()
    state = state_of(model)
    with pytest.raises(LayerSkipUnsupportedError, match=reason) as refusal:
        SubLayers.find(model)
    assert "\n" not in str(refusal.value)
    assert state_of(model) == state


def test_a_skip_set_for_another_depth_is_refused(llama: PreTrainedModel) -> None:
    sublayers = SubLayers.find(llama)
    with pytest.raises(
        SkipSetError, match=r"layer 5 is in the skip set, but this target has 3 layers \(0-2\).*remove 5"
    ):
        sublayers.plan(skip_set(8, (1, 5), ()))
    with pytest.raises(SkipSetError, match=r"for a target of 8 layers, but this one has 3"):
        sublayers.plan(skip_set(8, (1,), ()))
