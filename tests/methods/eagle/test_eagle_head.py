"""Published EAGLE heads load unchanged, whatever their config claims, and compute what the layout means."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from doubles import decode
from families import build, prompt_ids
from methods.eagle.eagle_reference import reference_head
from oracle import oracle_generate
from slipstream.core.confidence import ConfidenceScale
from slipstream.drafting.artefact_files import artefact_kind, check_kind
from slipstream.engine.engine import Engine
from slipstream.errors import ArtifactError, ArtifactWarning
from slipstream.methods.eagle.checkpoint import load_head, save_head
from slipstream.methods.eagle.head import EagleHead, HeadSizes
from slipstream.methods.registry import build_drafter
from slipstream.target.masks import additive
from slipstream.target.target import Target

H, HEADS, HEAD_DIM, MLP, VOCAB = 32, 4, 8, 48, 64


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(build("llama", num_hidden_layers=1))


def published(
    *, kv_heads: int = HEADS, fc_bias: bool = True, qkv_bias: bool = False, embedding: bool = True
) -> dict[str, torch.Tensor]:
    """Random tensors under the names and with the shapes of a published checkpoint."""
    rng = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng) * 0.3

    attention = "layers.0.self_attn."
    tensors = {
        "fc.weight": rand(H, 2 * H),
        f"{attention}q_proj.weight": rand(HEADS * HEAD_DIM, H),
        f"{attention}k_proj.weight": rand(kv_heads * HEAD_DIM, H),
        f"{attention}v_proj.weight": rand(kv_heads * HEAD_DIM, H),
        f"{attention}o_proj.weight": rand(H, HEADS * HEAD_DIM),
        "layers.0.mlp.gate_proj.weight": rand(MLP, H),
        "layers.0.mlp.up_proj.weight": rand(MLP, H),
        "layers.0.mlp.down_proj.weight": rand(H, MLP),
        "layers.0.post_attention_layernorm.weight": 1 + rand(H),
    }
    if fc_bias:
        tensors["fc.bias"] = rand(H)
    if qkv_bias:
        tensors |= {f"{attention}{p}_proj.bias": rand(len(tensors[f"{attention}{p}_proj.weight"])) for p in "qkv"}
    if embedding:
        tensors["embed_tokens.weight"] = rand(VOCAB, H)
    return tensors


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": H,
    "intermediate_size": MLP,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 1,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
}

# name -> (tensors, config beyond CONFIG, file name)
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "vicuna-7b": ({}, {}, "pytorch_model.bin"),
    "vicuna-33b": ({}, {"num_key_value_heads": 3}, "pytorch_model.bin"),
    "llama2-70b": ({"kv_heads": 2}, {"num_key_value_heads": 2, "pretraining_tp": 1}, "pytorch_model.bin"),
    "llama3": (
        {"kv_heads": 2, "fc_bias": False},
        {"num_key_value_heads": 2, "rope_theta": 500000.0, "bias": False, "rope_scaling": None},
        "pytorch_model.bin",
    ),
    "llama3-config-forgets-bias": ({"kv_heads": 2, "fc_bias": False}, {"num_key_value_heads": 2}, "model.safetensors"),
    "qwen2": ({"kv_heads": 1, "qkv_bias": True}, {"num_key_value_heads": 1, "rope_theta": 1e6}, "model.safetensors"),
    "mixtral": ({"kv_heads": 2}, {"num_key_value_heads": HEADS, "rope_theta": 1e6}, "model.safetensors"),
    "without-embeddings": ({"embedding": False}, {"bias": False}, "model.safetensors"),
}


def write(folder: Path, tensors: dict[str, torch.Tensor], file: str = "model.safetensors", **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if file.endswith(".bin"):
        torch.save(tensors, folder / file)
    else:
        save_file(tensors, folder / file)
    return folder


def full_pass(head: EagleHead, embeddings: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    n = embeddings.shape[0]
    mask = additive(torch.ones(n, n).tril().bool()[None], embeddings.dtype)
    with torch.inference_mode():
        return head(embeddings[None], features[None], torch.arange(n)[None], mask)[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_head_loads_and_computes_its_layout(name, target, tmp_path):
    kinds, config, file = PUBLISHED[name]
    tensors = published(**kinds)
    head = load_head(write(tmp_path, tensors, file, **config), target)
    assert (head.dtype, head.sizes.num_kv_heads) == (torch.float64, kinds.get("kv_heads", HEADS))
    embeddings, features = torch.randn(2, 9, H, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = reference_head(
        {key: value.double() for key, value in tensors.items()},
        embeddings,
        features,
        head_dim=HEAD_DIM,
        eps=1e-5,
        theta=config.get("rope_theta", 10000.0),
    )
    assert torch.allclose(full_pass(head, embeddings, features), expected, atol=1e-4)  # rotary and norm are float32


# The target's family, and the published heads for it.
OF_FAMILY = {"llama": ("vicuna-7b", "vicuna-33b", "llama2-70b", "llama3"), "qwen2": ("qwen2",), "mixtral": ("mixtral",)}


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in OF_FAMILY.items() for name in names])
def test_a_published_head_drafts_for_its_family_and_changes_no_token(family, name, family_model, tmp_path):
    kinds, config, file = PUBLISHED[name]
    stored = {key: tensor.half() for key, tensor in published(**kinds).items()}  # as most of them are stored
    stored["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(HEAD_DIM // 2)  # as old versions saved it
    target = Target(family_model(family))
    head = write(tmp_path, stored, file, torch_dtype="float16", **config)
    prompt = prompt_ids(9)
    expected = oracle_generate(target.model, prompt, max_new_tokens=12)
    for method, sizes in (("eagle2", {"width": 4, "depth": 3, "total": 10}), ("eagle", {})):
        result = decode(
            Engine(target, build_drafter(method, target, {"draft": head, **sizes})), prompt, max_new_tokens=12
        )
        assert result.ids == expected
        assert sum(step.num_drafted for step in result.steps) > 0


def test_positions_go_beyond_the_context_of_old_configs(target, tmp_path):
    head = load_head(write(tmp_path, published(), max_position_embeddings=16), target)
    cos, _ = head.rotary(torch.zeros(1, 1, H), torch.tensor([[100_000]]))
    assert torch.allclose(cos[0, 0, 0], torch.tensor(100_000.0).cos())


def test_half_precision_keeps_the_rotary_frequencies(tmp_path):
    target = Target(build("llama", num_hidden_layers=1).to(torch.bfloat16))
    head = load_head(write(tmp_path, published()), target)
    assert head.dtype == torch.bfloat16
    assert head.rotary.inv_freq.dtype == torch.float32


def test_a_saved_head_is_the_same_head(target, tmp_path):
    first = load_head(write(tmp_path, published(kv_heads=2, qkv_bias=True), rope_theta=500000.0), target)
    save_head(first, tmp_path / "saved", target, {"steps": 3})
    again = load_head(tmp_path / "saved", target)
    assert again.sizes == first.sizes
    assert again.sizes.rope == first.sizes.rope
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert again.confidence == first.confidence == ConfidenceScale()  # published heads are not calibrated
    record = json.loads((tmp_path / "saved" / "config.json").read_text())
    scale = ConfidenceScale().to_dict()
    assert record["slipstream"] == {"target": target.hash, "confidence_scale": scale, "steps": 3}
    assert set(CONFIG) <= set(record)


def test_a_head_of_another_target_warns(target, tmp_path):
    head = load_head(write(tmp_path, published()), target)
    save_head(head, tmp_path / "saved", target)
    other = Target(build("llama", num_hidden_layers=1, seed=8))
    with pytest.warns(ArtifactWarning, match=target.hash):
        load_head(tmp_path / "saved", other)


def drop(name: str) -> Any:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def put(name: str, *shape: int) -> Any:
    return lambda tensors: {**tensors, name: torch.zeros(*shape)}


DAMAGED = {
    "lacks a tensor": (drop("layers.0.mlp.up_proj.weight"), r"lacks layers\.0\.mlp\.up_proj\.weight"),
    "lacks the fc": (drop("fc.weight"), r"lacks fc\.weight"),
    "misshapen value": (put("layers.0.self_attn.v_proj.weight", 16, H), r"v_proj\.weight has shape \(16, 32\)"),
    "misshapen bias": (put("layers.0.self_attn.q_proj.bias", 5), r"q_proj\.bias has shape \(5,\)"),
    "misshapen fc": (put("fc.weight", H, 3 * H), r"fc\.weight has shape \(32, 96\).*\(32, 64\)"),
    "keys of no whole head": (put("layers.0.self_attn.k_proj.weight", 12, H), "k_proj.weight"),
    "other hidden size": (put("fc.weight", 40, 80), "hidden size 40.*has 32"),
    "other embeddings": (put("embed_tokens.weight", VOCAB, 16), "width 16.*has 32"),
    "layer norms of a variant": (put("embed_layernorm.weight", H), r"embed_layernorm\.weight"),
    "an input layer norm": (put("layers.0.input_layernorm.weight", H), r"input_layernorm\.weight"),
    "numbers that are none": (
        lambda tensors: {**tensors, "fc.weight": torch.full_like(tensors["fc.weight"], float("nan"))},
        r"fc\.weight holds numbers that are not finite",
    ),
    "an EAGLE-3 head": (put("midlayer.self_attn.q_proj.weight", H, 2 * H), "EAGLE-3 head; use it with .*'eagle3'"),
    "one of speculators": (put("layers.0.hidden_norm.weight", H), "EAGLE-3 head; use it with method 'eagle3'"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_wrong_tensor_is_named(damage, target, tmp_path):
    change, message = DAMAGED[damage]
    with pytest.raises(ArtifactError, match=message):
        load_head(write(tmp_path, change(published())), target)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"num_attention_heads": 4, "head_dim": 16}, "num_attention_heads or head_dim"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"rms_norm_eps": "small"}, "small"),
        ({"slipstream": ["target"]}, "it must be an object"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(config, message, target, tmp_path):
    with pytest.raises(ArtifactError, match=message):
        load_head(write(tmp_path, published(), **config), target)


def test_folders_without_a_head_are_refused(target, tmp_path):
    with pytest.raises(ArtifactError, match=r"no readable config\.json"):
        load_head(tmp_path, target)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ArtifactError, match="not a JSON object"):
        load_head(tmp_path, target)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ArtifactError, match="weights of the EAGLE heads are missing"):
        load_head(tmp_path, target)
    with pytest.raises(ArtifactError, match="there is no folder"):
        load_head(str(tmp_path / "nowhere"), target)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_weights_are_refused(file, target, tmp_path):
    path = write(tmp_path, published(), file) / file
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=f"cannot read .*{file}"):
        load_head(tmp_path, target)


def test_a_pickle_with_code_in_it_is_not_run(target, tmp_path):
    write(tmp_path, published())
    (tmp_path / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"fc.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="cannot read"):
        load_head(tmp_path, target)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "falcon", "opt", "mixtral"])
def test_a_new_head_fits_its_target(name, family_model, tmp_path):
    target = Target(family_model(name))
    save_head(EagleHead(HeadSizes.like(target)), tmp_path, target)
    assert load_head(tmp_path, target).sizes == HeadSizes.like(target)


def test_a_hub_id_is_fetched(target, tmp_path, monkeypatch):
    asked = []

    def fetch(name: str, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((name, allow_patterns))
        return str(write(tmp_path, published()))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load_head("somebody/EAGLE-head", target).sizes.hidden_size == H
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "draft_vocabulary.safetensors"]
    assert asked == [("somebody/EAGLE-head", files)]


def test_a_hub_id_that_is_not_there_is_one_clear_line(target, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetch(name: str, allow_patterns: list[str], local_files_only: bool) -> str:
        raise LocalEntryNotFoundError("not in the cache, and no network\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(
        ArtifactError, match=r"'somebody/head' is no folder, and the hub does not give it: not in the .*k$"
    ):
        load_head("somebody/head", target)


@pytest.mark.parametrize("prefix", ["model.", "module.", "module.model."])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_what_a_training_loop_leaves_before_every_name_is_no_part_of_it(prefix, file, target, tmp_path):
    tensors = published()
    (tmp_path / "bare").mkdir()
    bare = load_head(write(tmp_path / "bare", tensors), target)
    folder = write(tmp_path, {prefix + name: tensor for name, tensor in tensors.items()}, file)
    assert artefact_kind(folder) in ("eagle", None)  # of a pickle it is not read
    check_kind(folder, "eagle")
    for name, tensor in load_head(folder, target).state_dict().items():
        assert torch.equal(tensor, bare.state_dict()[name])


def test_a_bias_that_the_config_names_must_be_there(target, tmp_path):
    with pytest.raises(ArtifactError, match=r"lacks fc\.bias"):
        load_head(write(tmp_path, published(fc_bias=False), bias=True), target)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"intermediate_size": [40, 56]}, {"intermediate_size": 40}),
        ({"num_attention_heads": [4, 2], "num_key_value_heads": [2, 1]}, {"num_heads": 4, "num_kv_heads": 2}),
        ({"rope_parameters": {"full_attention": None, "sliding_attention": {"rope_theta": 500.0}}}, {"theta": 500.0}),
        ({"rope_parameters": {"full_attention": {"rope_theta": 7e5}, "chunked": {"rope_theta": 5.0}}}, {"theta": 7e5}),
        ({"rope_parameters": {"full_attention": None}}, {"theta": 10000.0}),
    ],
)
def test_a_new_head_takes_sizes_of_one_layer_where_layers_differ(named, expected, target):
    config = SimpleNamespace(**{**target.config.to_dict(), **named})
    sizes = HeadSizes.like(SimpleNamespace(config=config, model=target.model))
    found = {**{name: getattr(sizes, name) for name in HeadSizes.__slots__}, "theta": sizes.rope["rope_theta"]}
    assert {name: found[name] for name in expected} == expected
