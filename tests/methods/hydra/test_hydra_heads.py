"""Published Hydra heads load unchanged in every layout, wrong ones are refused by name, and they mean what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from families import build
from methods.hydra.hydra_reference import reference_head, reference_logits, reference_prefix
from slipstream.core.confidence import ConfidenceScale
from slipstream.errors import ArtifactError, ArtifactWarning
from slipstream.methods.hydra.checkpoint import load_heads, save_heads
from slipstream.methods.hydra.head import HydraHeads, HydraSizes, PrefixSizes
from slipstream.target.masks import additive
from slipstream.target.target import Target

H, HEADS, KV, HEAD_DIM, MLP, VOCAB, NUM = 32, 4, 2, 8, 48, 64, 3
PREFIX = "prefix_embeding_layer."
ARCHITECTURES = ("mlp", "prefix-mlp")


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(build("llama", num_hidden_layers=1))


def published(architecture: str = "prefix-mlp", *, num_layers: int = 3, embeddings: bool = True) -> dict[str, Any]:
    """Random tensors under the names and with the shapes of the released code."""
    rng = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng) * 0.3

    def linear(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": rand(rows, columns), f"{name}.bias": rand(rows)}

    dropout = architecture == "prefix-mlp"
    tensors: dict[str, torch.Tensor] = {}
    for i in range(NUM):
        first = f"hydra_mlp.{i}.{int(dropout)}"
        tensors |= linear(f"{first}.linear", H, (i + 2) * H) | linear(f"{first}.res_connection", H, (i + 2) * H)
        further = linear("further", H, H)
        for j in range(1, num_layers):
            place = 2 * j + 1 if dropout else j
            tensors |= {
                f"hydra_mlp.{i}.{place}.linear.{kind}": further[f"further.{kind}"] for kind in ("weight", "bias")
            }
        tensors |= linear(f"hydra_lm_head.{i}.1" if dropout else f"hydra_lm_head.{i}", VOCAB, H)
    if architecture == "prefix-mlp":
        layer = f"{PREFIX}layers.0."
        for name, rows in {"q_proj": HEADS * HEAD_DIM, "k_proj": KV * HEAD_DIM, "v_proj": KV * HEAD_DIM}.items():
            tensors[f"{layer}self_attn.{name}.weight"] = rand(rows, H)
        tensors[f"{layer}self_attn.o_proj.weight"] = rand(H, HEADS * HEAD_DIM)
        tensors |= {f"{layer}mlp.{name}_proj.weight": rand(MLP, H) for name in ("gate", "up")}
        tensors[f"{layer}mlp.down_proj.weight"] = rand(H, MLP)
        tensors |= {f"{layer}{one}_layernorm.weight": 1 + rand(H) for one in ("input", "post_attention")}
        tensors[f"{PREFIX}norm.weight"] = 1 + rand(H)
    if embeddings:
        tensors["input_embed_fn.weight"] = rand(VOCAB, H)
        if architecture == "prefix-mlp":
            tensors[f"{PREFIX}embed_tokens.weight"] = rand(VOCAB, H)
            tensors[f"{PREFIX}layers.0.self_attn.rotary_emb.inv_freq"] = rand(HEAD_DIM // 2)
    return tensors


def config(architecture: str = "prefix-mlp", *, num_layers: int = 3, **changes: Any) -> dict[str, Any]:
    """As the released training code writes it."""
    return {
        "base_model_name_or_path": "lmsys/vicuna-7b-v1.3",
        "grounded_heads": True,
        "hidden_state_offset": 0,
        "hydra_head_arch": architecture,
        "hydra_num_heads": NUM,
        "hydra_num_layers": num_layers,
        "transformers_version": "4.34.1",
        **changes,
    }


def write(folder: Path, tensors: dict[str, Any], content: dict[str, Any], file: str = "hydra_lm_head.pt") -> Path:
    if file.endswith(".pt"):
        torch.save(tensors, folder / file)
    else:
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / file)
    (folder / "config.json").write_text(json.dumps(content))
    return folder


# -- loading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 2, 4])
@pytest.mark.parametrize("file", ["hydra_lm_head.pt", "model.safetensors"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_published_heads_load_and_compute_what_the_layout_means(architecture, file, num_layers, target, tmp_path):
    tensors = published(architecture, num_layers=num_layers)
    heads = load_heads(write(tmp_path, tensors, config(architecture, num_layers=num_layers), file), target)
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    features = torch.randn(6, H, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    embeddings = torch.randn(NUM, H, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    start = features
    with torch.inference_mode():
        if heads.prefix is not None:
            mask = additive(torch.ones(6, 6).tril().bool()[None], torch.float64)
            start = heads.prefix(features[None], torch.arange(6)[None], mask)[0]
            theta = target.config.rope_parameters["rope_theta"]
            expected = reference_prefix(tensors, features, heads=HEADS, eps=target.config.rms_norm_eps, theta=theta)
            assert torch.allclose(start, expected, atol=1e-6)
        for index in range(NUM):
            inputs = torch.cat((start[-1], embeddings[: index + 1].flatten()))
            hidden = reference_head(tensors, index, start[-1], embeddings[: index + 1])
            logits = heads.logits(index, inputs[None, None], target)[0, 0]
            assert torch.allclose(logits, reference_logits(tensors, index, hidden, target), atol=1e-9)
    assert heads.dtype == torch.float64
    assert not any(parameter.requires_grad for parameter in heads.parameters())


def test_the_rotary_embedding_is_the_targets(tmp_path):
    turned = Target(build("llama", rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}))
    heads = load_heads(write(tmp_path, published(), config()), turned)
    assert heads.sizes.prefix is not None
    assert heads.sizes.prefix.rope == {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt", "phi"])
def test_new_heads_are_saved_in_the_layout_and_load_again(name, prefix, own, family_model, tmp_path):
    target = Target(family_model(name))
    heads = fresh(target, prefix=prefix, own=own)
    heads.confidence = ConfidenceScale(floor=0.1, slope=0.9)
    save_heads(heads, tmp_path, target, {"steps": 3})
    assert [path.name for path in tmp_path.glob("*[!n]")] == ["hydra_lm_head.pt" if own else "model.safetensors"]
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["hydra_head_arch"] == ("prefix-mlp" if prefix else "mlp")
    assert (record["slipstream"]["steps"], record["slipstream"]["target"]) == (3, target.hash)
    again = load_heads(tmp_path, target)
    assert (again.sizes, again.confidence) == (heads.sizes, heads.confidence)
    for mine, loaded in zip(heads.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(mine.double(), loaded)


def fresh(target: Target, *, prefix: bool, own: bool) -> HydraHeads:
    torch.manual_seed(0)
    sizes = HydraSizes(
        hidden_size=target.config.hidden_size,
        embedding_size=target.model.get_input_embeddings().weight.shape[1],
        num_heads=2,
        num_layers=3,
        prefix=PrefixSizes.like(target, 24) if prefix else None,
        vocab_size=target.vocab_size if own else None,
    )
    return HydraHeads(sizes)


def test_heads_with_their_own_lm_heads_have_the_names_the_released_code_reads(target, tmp_path):
    heads = HydraHeads(replace(fresh(target, prefix=True, own=True).sizes, num_heads=NUM))
    save_heads(heads, tmp_path, target)
    saved = torch.load(tmp_path / "hydra_lm_head.pt", weights_only=True)
    expected = published(embeddings=False)
    expected |= {name: torch.zeros(24 if "down" not in name else H, H) for name in expected if ".mlp." in name}
    assert set(saved) == set(expected)


def test_heads_can_be_stored_in_half_the_bytes(target, tmp_path):
    heads = fresh(target, prefix=True, own=False)
    save_heads(heads, tmp_path, target, dtype=torch.bfloat16)
    weight = load_heads(tmp_path, target).state_dict()["mlps.0.first.res_connection.weight"]
    stored = heads.state_dict()["mlps.0.first.res_connection.weight"].bfloat16()
    assert torch.equal(weight, stored.double())


def test_saving_the_other_form_leaves_no_stale_file(target, tmp_path):
    for own in (True, False, True):
        save_heads(fresh(target, prefix=False, own=own), tmp_path, target)
        assert load_heads(tmp_path, target).sizes.vocab_size == (VOCAB if own else None)


def test_heads_of_another_target_warn(target, tmp_path):
    save_heads(fresh(target, prefix=True, own=False), tmp_path, target)
    with pytest.warns(ArtifactWarning, match="were trained for target"):
        load_heads(tmp_path, Target(build("llama", num_hidden_layers=1, seed=9)))


# -- refusing ------------------------------------------------------------------------------------------------------


def without(*names: str):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def replaced(name: str, *shape: int):
    return lambda tensors: {**tensors, name: torch.zeros(*shape)}


def untied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "hydra_mlp.1.5.linear.bias": tensors["hydra_mlp.1.5.linear.bias"] + 1}


def of_width(width: int):
    """The same checkpoint for a target of another hidden size."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: torch.zeros(*[width // H * s if s % H == 0 else s for s in t.shape]) for n, t in tensors.items()}

    return change


DAMAGED = {
    "no-lm-head": (without("hydra_lm_head.1.1.weight"), r"lacks hydra_lm_head\.1\.1\.weight"),
    "no-residual": (without("hydra_mlp.2.1.res_connection.weight"), r"lacks hydra_mlp\.2\.1\.res_connection\.weight"),
    "no-further-block": (without("hydra_mlp.0.3.linear.bias"), r"lacks hydra_mlp\.0\.3\.linear\.bias"),
    "no-norm": (without(f"{PREFIX}norm.weight"), r"lacks prefix_embeding_layer\.norm\.weight"),
    "no-query": (
        without(f"{PREFIX}layers.0.self_attn.q_proj.weight"),
        r"layers\.0\.self_attn\.q_proj\.weight is missing",
    ),
    "unknown": (replaced("hydra_mlp.0.9.linear.weight", H, H), r"do not have: hydra_mlp\.0\.9\.linear\.weight"),
    "unknown-layer": (replaced(f"{PREFIX}layers.1.mlp.up_proj.weight", H, H), r"do not have: prefix.*layers\.1\."),
    "vocabulary": (replaced("hydra_lm_head.0.1.weight", 99, H), r"hydra_lm_head\.0\.1\.weight has shape \(99, 32\)"),
    "narrow-input": (replaced("hydra_mlp.1.1.linear.weight", H, 2 * H), r"hydra_mlp\.1\.1\.linear\.weight has shape"),
    "untied": (untied, r"hydra_mlp\.1\.3\.linear\.bias and hydra_mlp\.1\.5\.linear\.bias differ"),
    "other-target": (of_width(64), r"heads for targets of hidden size 64, but .* has 32"),
    "other-embedding": (replaced("input_embed_fn.weight", VOCAB, 8), r"input_embed_fn\.weight has width 8"),
    "not-finite": (
        lambda tensors: {**tensors, "hydra_lm_head.0.1.bias": torch.full((VOCAB,), torch.nan)},
        "not finite",
    ),
    "not-a-tensor": (lambda tensors: {**tensors, "epoch": 3}, "not a dictionary of tensors"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_heads_are_refused_by_name(damage, target, tmp_path):
    change, message = DAMAGED[damage]
    with pytest.raises(ArtifactError, match=message):
        load_heads(write(tmp_path, change(published()), config()), target)


CONFIGS = {
    "another-architecture": ({"hydra_head_arch": "cross-attn"}, "'cross-attn' is not supported; choose from mlp"),
    "ungrounded": ({"grounded_heads": False}, "grounded_heads is not true"),
    "more-heads": ({"hydra_num_heads": 4}, r"lacks .*hydra_mlp\.3\.1\.linear"),
    "fewer-heads": ({"hydra_num_heads": 2}, r"do not have: .*hydra_mlp\.2"),
    "more-layers": ({"hydra_num_layers": 4}, r"lacks hydra_mlp\.0\.7\.linear"),
    "no-heads": ({"hydra_num_heads": 0}, "num_heads of Hydra heads is 0"),
    "no-number": ({"hydra_num_layers": "four"}, "hydra_num_layers is 'four' in config.json; it must be a whole number"),
    "no-offset": ({"hidden_state_offset": None}, "hidden_state_offset is None in config.json"),
    "no-record": ({"slipstream": "yes"}, "slipstream is 'yes'; it must be an object"),
    "activation": ({"slipstream": {"prefix": {"hidden_act": "silly"}}}, "unknown hidden_act 'silly'.*Did you mean"),
    "plain-heads": ({"hydra_head_arch": "mlp"}, r"do not have: prefix_embeding_layer"),
    "offset": ({"hidden_state_offset": 9}, "hidden_state_offset is 9"),
    "shared": ({"slipstream": {"shared_lm_head": True}}, r"do not have: hydra_lm_head\.0\.1\.bias"),
    "heads-of-prefix": ({"slipstream": {"prefix": {"num_heads": 5}}}, "q_proj and k_proj have 32 and 16 rows"),
    "confidence": (
        {"slipstream": {"confidence_scale": {"floor": "x", "slope": 1, "greedy": 1}}},
        "confidence scale floor is 'x'",
    ),
    "rolling-rope": (
        {"slipstream": {"prefix": {"rope": {"rope_type": "dynamic", "rope_theta": 1e4}}}},
        "rope_type 'dynamic' is not supported",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_contradicts_the_tensors_is_refused(case, target, tmp_path):
    changes, message = CONFIGS[case]
    with pytest.raises(ArtifactError, match=message):
        load_heads(write(tmp_path, published(), config(**changes)), target)


def test_lm_heads_are_not_left_out_by_accident(target, tmp_path):
    """Only a config that says so makes the target's LM head serve: elsewhere heads without it are damaged."""
    tensors = {name: tensor for name, tensor in published("mlp").items() if "lm_head" not in name}
    with pytest.raises(ArtifactError, match=r"lacks hydra_lm_head\.0\.bias"):
        load_heads(write(tmp_path, tensors, config("mlp")), target)
    shared = config("mlp", slipstream={"shared_lm_head": True})
    assert load_heads(write(tmp_path, tensors, shared), target).lm_heads is None


def test_folders_without_heads_are_refused(target, tmp_path):
    with pytest.raises(ArtifactError, match=r"no readable config\.json"):
        load_heads(tmp_path, target)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ArtifactError, match="not a JSON object"):
        load_heads(tmp_path, target)
    content = config()
    del content["hydra_num_heads"]
    with pytest.raises(ArtifactError, match=r"config\.json names no hydra_num_heads"):
        load_heads(write(tmp_path, published(), content), target)
    (tmp_path / "hydra_lm_head.pt").unlink()
    with pytest.raises(ArtifactError, match=r"no model\.safetensors or hydra_lm_head\.pt"):
        load_heads(tmp_path, target)
    with pytest.raises(ArtifactError, match="there is no folder"):
        load_heads(str(tmp_path / "nowhere"), target)


@pytest.mark.parametrize("file", ["model.safetensors", "hydra_lm_head.pt"])
def test_truncated_weights_are_refused(file, target, tmp_path):
    path = write(tmp_path, published(), config(), file) / file
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=f"cannot read .*{file}"):
        load_heads(tmp_path, target)


def test_a_pickle_with_code_in_it_is_not_run(target, tmp_path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    write(tmp_path, {"hydra_mlp.0.1.linear.weight": Evil()}, config())
    with pytest.raises(ArtifactError, match="cannot read"):
        load_heads(tmp_path, target)
    assert not (tmp_path / "ran").exists()


def test_a_hub_id_is_fetched(target, tmp_path, monkeypatch):
    asked = []

    def fetch(name: str, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((name, allow_patterns))
        return str(write(tmp_path, published(), config()))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load_heads("ankner/hydra-vicuna-7b-v1.3", target).sizes.num_heads == NUM
    assert asked == [("ankner/hydra-vicuna-7b-v1.3", ["config.json", "model.safetensors", "hydra_lm_head.pt"])]


def test_a_hub_id_that_is_not_there_is_one_clear_line(target, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetch(name: str, allow_patterns: list[str], local_files_only: bool) -> str:
        raise LocalEntryNotFoundError("not in the cache, and no network\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(ArtifactError, match=r"the hub does not give it: not in the cache, and no network$"):
        load_heads("somebody/heads", target)
