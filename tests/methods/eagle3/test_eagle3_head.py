"""Heads of every origin load, compute what the description says, are refused in one line, and are written again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from families import VOCAB_SIZE, build, prompt_ids
from methods.eagle3.eagle3_reference import true_states
from methods.eagle3.published import DRAFTED, IDS, LAYERS, PUBLISHED, Published, T, eagle3_target, nested
from slipstream.core.confidence import ConfidenceScale
from slipstream.drafting.artefact_files import artefact_kind
from slipstream.errors import ArtifactError, ArtifactWarning, InputError
from slipstream.methods.eagle.head import HeadSizes
from slipstream.methods.eagle3.checkpoint import load_head, save_head
from slipstream.methods.eagle3.head import Eagle3Head, Eagle3Sizes, default_states
from slipstream.methods.eagle3.layouts import OFFICIAL, SPECULATORS
from slipstream.target.masks import additive
from slipstream.target.target import Target

PLAIN, SPECULATORS_PLAIN = PUBLISHED["SafeAILab"], PUBLISHED["speculators"]


@pytest.fixture(scope="module")
def target() -> Target:
    return eagle3_target()


def full_pass(head: Eagle3Head, embeddings: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    n = embeddings.shape[0]
    mask = additive(torch.ones(n, n).tril().bool()[None], embeddings.dtype)
    with torch.inference_mode():
        return head(embeddings[None], features[None], torch.arange(n)[None], mask)[0]


# -- every layout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_head_loads_and_computes_what_it_should(name, target, tmp_path):
    one = PUBLISHED[name]
    head = load_head(one.write(tmp_path), target)
    assert artefact_kind(tmp_path) == "eagle3"
    assert head.sizes.states == one.states
    assert head.dtype == torch.float64
    twin, tokens = one.reference(), prompt_ids(9)
    states = true_states(target, tokens[:-1], one.states)
    embeddings = twin.embeddings(tokens[1:], target).detach()
    with torch.inference_mode():
        fused = head.fuse(states.flatten(1))
        ours = full_pass(head, head.embedder(target)(torch.tensor(tokens[1:])), fused)
        logits = head.scorer(target)(head.before_lm_head(ours[None]))[0]
    expected = twin.outputs(twin.fused(states), embeddings)
    near = {"rtol": 1e-4, "atol": 1e-4}  # rotary and norms are float32
    torch.testing.assert_close(fused, twin.fused(states), **near)
    torch.testing.assert_close(ours, twin.fed_back(expected), **near)
    torch.testing.assert_close(logits, twin.logits(expected, target).detach(), **near)
    ids = torch.arange(VOCAB_SIZE) if head.ids is None else head.ids
    assert torch.equal(ids, twin.ids(target))


def test_embeddings_that_are_the_targets_are_not_kept(target, tmp_path):
    tensors = SPECULATORS_PLAIN.tensors()
    copied = target.model.get_input_embeddings().weight.detach().clone()
    tensors["embed_tokens.weight"] = torch.cat((copied, torch.zeros(8, T, dtype=torch.float64)))  # padded
    head = load_head(SPECULATORS_PLAIN.write(tmp_path, tensors), target)
    assert head.embed_tokens is None


def test_the_default_layers_are_those_of_the_published_codes():
    assert default_states(32) == (2, 16, 29)
    assert default_states(36) == (2, 18, 33)
    assert [default_states(layers) for layers in (2, 3, 4, 5)] == [(0, 1, 1), (0, 1, 2), (1, 2, 3), (1, 2, 4)]


@pytest.mark.parametrize("prefix", ["model.", "module."])
def test_what_a_training_loop_leaves_before_every_name_is_no_part_of_it(prefix, target, tmp_path):
    tensors = {prefix + name: one for name, one in PLAIN.tensors().items()}
    head = load_head(PLAIN.write(tmp_path, tensors), target)
    assert artefact_kind(tmp_path) == "eagle3"
    assert torch.equal(head.fc.weight.float(), PLAIN.tensors()["fc.weight"])


def test_half_precision_keeps_the_rotary_frequencies(tmp_path):
    target = Target(build("llama", num_hidden_layers=LAYERS).to(torch.bfloat16))
    head = load_head(PLAIN.write(tmp_path), target)
    assert (head.dtype, head.rotary.inv_freq.dtype) == (torch.bfloat16, torch.float32)
    assert {parameter.dtype for parameter in head.parameters()} == {torch.bfloat16}


def test_a_hub_id_is_fetched(target, tmp_path, monkeypatch):
    asked = []

    def fetch(name: str, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((name, allow_patterns))
        return str(PLAIN.write(tmp_path))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load_head("somebody/EAGLE3-head", target).sizes.draft_vocab_size == DRAFTED
    files = ["config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    assert asked == [("somebody/EAGLE3-head", files)]


def test_a_pickle_with_code_in_it_is_not_run(target, tmp_path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    with pytest.raises(ArtifactError, match="cannot read"):
        load_head(PLAIN.write(tmp_path, {"fc.weight": Evil()}), target)
    assert not (tmp_path / "ran").exists()


# -- what is refused -------------------------------------------------------------------------------------------------


def drop(*names: str) -> Any:
    return lambda tensors: {key: value for key, value in tensors.items() if key not in names}


def put(name: str, value: torch.Tensor) -> Any:
    return lambda tensors: {**tensors, name: value}


ATTENTION = "midlayer.self_attn."
DAMAGED = {
    "lacks the fusion": (drop("fc.weight"), r"lacks fc\.weight"),
    "lacks a norm": (drop("midlayer.hidden_norm.weight"), r"lacks layers\.0\.hidden_norm\.weight"),
    "lacks a projection": (drop("midlayer.mlp.up_proj.weight"), r"lacks layers\.0\.mlp\.up_proj\.weight"),
    "lacks the last norm": (drop("norm.weight"), r"lacks norm\.weight"),
    "unexpected tensor": (put("embed_layernorm.weight", torch.zeros(T)), r"do not have: embed_layernorm\.weight"),
    "misshapen query": (put(f"{ATTENTION}q_proj.weight", torch.zeros(32, T)), r"q_proj\.weight has shape \(32, 32\)"),
    "no matrix": (put("fc.weight", torch.zeros(T)), r"fc\.weight is no matrix, but has shape \(32,\)"),
    "misshapen LM head": (put("lm_head.weight", torch.zeros(39, T)), r"lm_head\.weight has shape \(39, 32\)"),
    "part of a hidden state": (put("fc.weight", torch.zeros(T, 100)), r"100 numbers of a token, which is no multiple"),
    "two layers": (put("fc.weight", torch.zeros(T, 64)), f"reads 2 hidden states, and config.json does not.*{IDS}"),
    "another target's": (put("fc.weight", torch.zeros(40, 120)), "width 40, but those of .* have 32"),
    "MLA": (put(f"{ATTENTION}kv_a_proj_with_mqa.weight", torch.zeros(8, T)), "multi-head latent attention"),
    "several tokens at once": (put("parallel_draft_heads.0.weight", torch.zeros(8, T)), "several tokens at once"),
    "no mapping": (drop("d2t"), f"drafts {DRAFTED} tokens of the {VOCAB_SIZE} of .*has no d2t"),
    "an unset mapping": (
        lambda tensors: {**drop("t2d")(tensors), "d2t": torch.zeros(DRAFTED, dtype=torch.int64)},
        "d2t is zero throughout",
    ),
    "unset marks": (put("t2d", torch.zeros(VOCAB_SIZE, dtype=torch.bool)), "t2d was never set"),
    "other marks": (put("t2d", torch.ones(VOCAB_SIZE, dtype=torch.bool)), "d2t and t2d name different tokens"),
    "a mapping of another vocabulary": (
        lambda tensors: {**drop("t2d")(tensors), "d2t": torch.full((DRAFTED,), 30)},
        "d2t names token 69, but .* has 64 tokens",
    ),
    "tokens out of order": (
        lambda tensors: {**drop("t2d")(tensors), "d2t": torch.arange(DRAFTED).flip(0)},
        "does not name tokens in ascending order",
    ),
    "numbers that are none": (put("fc.weight", torch.full((T, 96), float("nan"))), "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_wrong_tensor_is_named(damage, target, tmp_path):
    change, message = DAMAGED[damage]
    with pytest.raises(ArtifactError, match=message) as caught:
        load_head(PLAIN.write(tmp_path, change(PLAIN.tensors())), target)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG_CONFIGS = [
    ({"target_hidden_size": 40}, "width 40, but those of"),
    (nested(1, 3), "names 2 layers in .*reads 3 hidden states"),
    (nested(1, 3, 7), "entering layer 8, but .* has layers 0 to 7"),
    (nested(-2, 3, 4), "entering layer -1"),
    (nested(1, 3, 4, use_mtp_layernorm=True), "use_mtp_layernorm True in eagle_config"),
    ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state False"),
    ({"eagle_config": [1]}, "eagle_config in .* must be an object"),
    ({"architectures": ["Eagle3DeepseekV2ForCausalLM"]}, r"Eagle3DeepseekV2ForCausalLM is a head with .*\(MLA\)"),
    ({"speculators_model_type": "peagle"}, "'peagle'; method eagle3 takes eagle3"),
    ({"num_attention_heads": 5, "head_dim": None}, "num_attention_heads"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
    ({"rms_norm_eps": "small"}, "small"),
    ({"slipstream": ["target"]}, "it must be an object"),
    ({"norm_output": False}, "norm_output False"),
    ({"fc_norm": True}, r"lacks fc_norm\.0\.weight"),
]


@pytest.mark.parametrize(("config", "message"), WRONG_CONFIGS)
def test_a_config_that_cannot_be_is_refused(config, message, target, tmp_path):
    with pytest.raises(ArtifactError, match=message):
        load_head(PLAIN.write(tmp_path, **config), target)


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (Published(width=16, config={"target_hidden_size": T}), "needs embeddings of that width"),
        (Published(width=16, embeddings=True, lm_head=False, config={"target_hidden_size": T}), "no lm_head.weight"),
    ],
)
def test_a_head_of_another_width_needs_its_own_ends(one, message, target, tmp_path):
    with pytest.raises(ArtifactError, match=message):
        load_head(one.write(tmp_path), target)


def test_embeddings_of_too_few_tokens_are_refused(target, tmp_path):
    tensors = {**SPECULATORS_PLAIN.tensors(), "embed_tokens.weight": torch.zeros(50, T)}
    with pytest.raises(ArtifactError, match=f"embeddings of 50 tokens, but .* has {VOCAB_SIZE}"):
        load_head(SPECULATORS_PLAIN.write(tmp_path, tensors), target)


# -- writing ---------------------------------------------------------------------------------------------------------


def new_head(target: Target, **changes: Any) -> Eagle3Head:
    """A head as training begins with, without an LM head of its own."""
    layer = replace(HeadSizes.like(target), biases=frozenset())
    sizes = Eagle3Sizes(
        layer=layer, target_size=T, states=default_states(target.num_layers), draft_vocab_size=20, **changes
    )
    torch.manual_seed(0)
    return Eagle3Head(sizes, torch.arange(20) * 3).place(target.device, target.dtype).requires_grad_(False).eval()


WRITTEN = [
    (name, origin)
    for name, one in PUBLISHED.items()
    for origin in (OFFICIAL, SPECULATORS)
    if origin is SPECULATORS or (not one.head_norms and not one.norm_before_residual and not one.norm_before_fc)
]


@pytest.mark.parametrize(("name", "origin"), WRITTEN)
def test_a_head_of_any_origin_is_the_same_when_written_and_read_again(name, origin, target, tmp_path):
    """Bit for bit, in either layout."""
    head = load_head(PUBLISHED[name].write(tmp_path), target, stored=True)
    assert head.dtype == torch.float32
    save_head(head, tmp_path / "written", target, origin=origin)
    again = load_head(tmp_path / "written", target, stored=True)
    assert again.sizes == head.sizes
    assert again.sizes.layer.rope == head.sizes.layer.rope
    assert (head.ids is None and again.ids is None) or torch.equal(head.ids, again.ids)
    states = head.state_dict()
    assert states.keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in states.items())


@pytest.mark.parametrize("name", ["speculators", "speculators, Qwen3", "speculators, gpt-oss"])
def test_a_head_that_a_layout_has_no_words_for_is_not_written_in_it(name, target, tmp_path):
    head = load_head(PUBLISHED[name].write(tmp_path), target)
    with pytest.raises(InputError, match="has no words; write speculators"):
        save_head(head, tmp_path / "written", target)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("origin", [OFFICIAL, SPECULATORS])
def test_rows_of_the_targets_lm_head_are_stored_for_others_alone(origin, target, tmp_path):
    head = new_head(target)
    save_head(head, tmp_path / "small", target)
    save_head(head, tmp_path / "whole", target, origin=origin, whole=True)
    small, whole = (load_head(tmp_path / name, target) for name in ("small", "whole"))
    assert small.lm_head is None
    rows = target.model.get_output_embeddings().weight[head.ids]
    assert torch.equal(whole.lm_head.weight, rows.float().double())  # heads are read in float32
    some = torch.randn(1, 3, T, dtype=torch.float64)
    assert torch.allclose(small.scorer(target)(some), whole.scorer(target)(some), atol=1e-5)


def test_a_saved_head_records_its_target_and_says_how_it_was_made(target, tmp_path):
    save_head(new_head(target), tmp_path, target, {"steps": 3}, dtype=torch.bfloat16)
    record = json.loads((tmp_path / "config.json").read_text())
    scale = ConfidenceScale().to_dict()
    assert record["slipstream"] == {"target": target.hash, "confidence_scale": scale, "steps": 3}
    assert record["eagle_config"][IDS] == [1, 3, 4]
    assert record["torch_dtype"] == "bfloat16"
    assert load_head(tmp_path, target, stored=True).dtype == torch.bfloat16
    with pytest.warns(ArtifactWarning, match=target.hash):
        load_head(tmp_path, eagle3_target(seed=8))
