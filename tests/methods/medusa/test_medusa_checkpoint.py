"""Medusa checkpoints of every published layout load unchanged and mean what they say; others are refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from families import VOCAB_SIZE, build
from methods.medusa.medusa_reference import reference_head
from slipstream.errors import ArtifactError, ArtifactWarning, InputError
from slipstream.methods.medusa.checkpoint import PICKLE, load_heads, save_heads
from slipstream.methods.medusa.head import MedusaHeads
from slipstream.target.target import Target

H = 32


@pytest.fixture(scope="module")
def target(family_model) -> Target:
    return Target(family_model("llama"))


@pytest.fixture(scope="module")
def capped(family_model) -> Target:
    """Its LM head soft-caps logits."""
    return Target(family_model("gemma2"))


def published(num_heads: int = 3, *, own: bool = True, num_layers: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Tensors under the official names, in the precision of published files."""
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for head in range(num_heads):
        weight, bias = (torch.randn(*shape, generator=rng).half() * 0.3 for shape in ((H, H), (H,)))
        for place in range(num_layers):
            tensors |= {f"{head}.{place}.linear.weight": weight, f"{head}.{place}.linear.bias": bias}
        if own:
            tensors[f"{head}.{num_layers}.weight"] = torch.randn(VOCAB_SIZE, H, generator=rng).half()
    return tensors


def folder(path: Path, tensors: dict[str, Tensor], name: str = PICKLE, **config: object) -> Path:
    """A checkpoint with a config as published: its number of heads is wrong."""
    (path / "config.json").write_text(
        json.dumps({"medusa_num_heads": 2, "medusa_num_layers": 1, "base_model_name_or_path": "a/b", **config})
    )
    if name.endswith(".pt"):
        torch.save(tensors, path / name)
    else:
        save_file({key: value.clone() for key, value in tensors.items()}, path / name)
    return path


@pytest.mark.parametrize("own", [True, False], ids=["own-lm-heads", "shared-lm-head"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("file", [PICKLE, "medusa_lm_head.safetensors", "model.safetensors"])
def test_published_layouts_load_and_say_what_the_formula_says(file, num_layers, own, target, capped, tmp_path):
    tensors = published(own=own, num_layers=num_layers)
    for one in (target, capped):
        heads = load_heads(folder(tmp_path, tensors, file), one)
        assert (heads.sizes.num_heads, heads.sizes.num_layers) == (3, num_layers)
        features = torch.randn(2, H, dtype=torch.float64)
        exact = {name: tensor.double() for name, tensor in tensors.items()}
        for feature in features:
            expected = [reference_head(exact, head, num_layers, feature, one) for head in range(3)]
            torch.testing.assert_close(heads.all_logits(feature[None], one), torch.stack(expected), rtol=0, atol=1e-10)
            torch.testing.assert_close(
                heads.all_logits(feature[None], one, 2), torch.stack(expected[:2]), rtol=0, atol=1e-10
            )
        hidden = heads.hidden(features)
        assert hidden.shape == (3, 2, H)
        torch.testing.assert_close(heads.logits(1, hidden[1], one)[1:], expected[1][None], rtol=0, atol=1e-10)


def test_shared_lm_heads_keep_the_targets_own_capping(capped, tmp_path):
    loud = {name: 100 * tensor for name, tensor in published(own=False).items()}
    heads = load_heads(folder(tmp_path, loud), capped)
    assert heads.all_logits(torch.randn(1, H).double(), capped).abs().max() <= 3.0, "gemma2's cap in these tests is 3"


def test_names_under_medusa_head_are_read(target, tmp_path):
    tensors = published()
    plain = load_heads(folder(tmp_path, tensors), target)
    prefixed = load_heads(folder(tmp_path, {f"medusa_head.{name}": one for name, one in tensors.items()}), target)
    assert all(torch.equal(one, prefixed.state_dict()[name]) for name, one in plain.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("1.0.linear.bias"), "lacks 1.0.linear.bias; these Medusa heads are not complete"),
        (lambda t: t.pop("2.1.weight"), "lacks 2.1.weight"),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("1.")], "lacks 1.0.linear.bias, 1.0.linear.wei"),
        (lambda t: [t.pop(name) for name in list(t) if "linear" in name], "lacks 0.0.linear.weight"),
        (lambda t: t.update({"0.2.weight": torch.zeros(1)}), "has tensors .* do not have: 0.2.weight"),
        (lambda t: t.update({"fc.weight": torch.zeros(1)}), "has tensors .* do not have: fc.weight"),
        (lambda t: t.update({"1.1.weight": torch.zeros(65, H)}), r"1.1.weight has shape \(65, 32\).* \(64, 32\)"),
        (lambda t: t.update({"1.0.linear.bias": torch.zeros(3)}), r"1.0.linear.bias has shape \(3,\)"),
        (lambda t: t.update({"0.0.linear.weight": torch.zeros(48, 48)}), "hidden size 48, but .* has 32"),
        (lambda t: t["2.1.weight"][3].fill_(torch.nan), "2.1.weight holds numbers that are not finite"),
        (lambda t: t["0.0.linear.bias"][0].fill_(torch.inf), "0.0.linear.bias holds numbers that are not finite"),
    ],
)
def test_wrong_checkpoints_are_refused_by_name(change, message, target, tmp_path):
    tensors = published()
    change(tensors)
    with pytest.raises(ArtifactError, match=message):
        load_heads(folder(tmp_path, tensors), target)


def test_a_record_that_is_no_object_is_refused(target, tmp_path):
    with pytest.raises(ArtifactError, match=r"config\.json: slipstream is 'yes'; it must be an object"):
        load_heads(folder(tmp_path, published(), slipstream="yes"), target)
    with pytest.raises(ArtifactError, match=r"config\.json: confidence_scale is 3"):
        load_heads(folder(tmp_path, published(), slipstream={"confidence_scale": 3}), target)


def test_heads_whose_layers_differ_are_another_kind(target, tmp_path):
    tensors = published(num_layers=2)
    tensors["1.1.linear.weight"] = tensors["1.1.linear.weight"] + 1
    with pytest.raises(ArtifactError, match=r"1\.1\.linear\.weight differs from 1\.0\.linear\.weight"):
        load_heads(folder(tmp_path, tensors), target)


def test_a_folder_without_weights_or_with_code_in_them_is_refused(target, tmp_path):
    with pytest.raises(ArtifactError, match="there is no folder"):
        load_heads(tmp_path / "none", target)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="holds no medusa_lm_head"):
        load_heads(tmp_path, target)
    torch.save({"0.0.linear.weight": print}, tmp_path / PICKLE)
    with pytest.raises(ArtifactError, match="cannot read"):
        load_heads(tmp_path, target)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_saved_heads_have_the_official_names_and_load_again(own, num_layers, target, tmp_path):
    heads = MedusaHeads.like(target, num_heads=2, num_layers=num_layers, own_lm_heads=own)
    save_heads(heads, tmp_path, target, {"steps": 3})
    saved = torch.load(tmp_path / PICKLE, weights_only=True)
    assert set(saved) == set(published(2, own=own, num_layers=num_layers))
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["medusa_num_heads"], config["medusa_num_layers"]) == (2, num_layers)
    assert (config["slipstream"]["target"], config["slipstream"]["steps"]) == (target.hash, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_heads(tmp_path, target)
    assert all(torch.allclose(one.double(), again.state_dict()[name]) for name, one in heads.state_dict().items())


def test_heads_of_another_target_warn(target, tmp_path):
    save_heads(MedusaHeads.like(target, num_heads=2), tmp_path, target)
    with pytest.warns(ArtifactWarning, match=f"trained for target {target.hash}"):
        load_heads(tmp_path, Target(build("llama", seed=8)))


@pytest.mark.parametrize("own", [True, False])
def test_fresh_heads_say_what_the_target_says(own, target):
    heads = MedusaHeads.like(target, num_heads=2, own_lm_heads=own).double()
    feature = torch.randn(1, H, dtype=torch.float64)
    said = target.head(feature[None])[0]
    torch.testing.assert_close(heads.all_logits(feature, target), said.expand(2, -1), rtol=1e-5, atol=1e-5)


def test_heads_of_no_layers_are_refused(target):
    with pytest.raises(InputError, match="num_heads of Medusa heads is 0"):
        MedusaHeads.like(target, num_heads=0)


@pytest.mark.parametrize("pieces", [1, 2])
def test_the_heads_of_a_medusa_2_checkpoint_are_read_from_beside_its_model(pieces, target, tmp_path):
    """One file, or pieces of which only those with heads are needed."""
    tensors = published()
    heads = {f"medusa_head.{name}": tensor for name, tensor in tensors.items()}
    model = {name: torch.full((2, 2), float("inf")) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    if pieces == 1:
        folder(tmp_path, {**model, **heads}, "model.safetensors")
    else:
        half = len(heads) // 2
        places = dict.fromkeys(model, "model-00001-of-00003.safetensors")  # which is not there
        for number, names in enumerate((list(heads)[:half], list(heads)[half:]), start=2):
            file = f"model-0000{number}-of-00003.safetensors"
            folder(tmp_path, {name: heads[name] for name in names} | {f"model.{number}": model["lm_head.weight"]}, file)
            places |= dict.fromkeys(names, file)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = load_heads(tmp_path, target)
    (tmp_path / "plain").mkdir()
    expected = load_heads(folder(tmp_path / "plain", tensors), target)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    if pieces == 2:
        (tmp_path / "model-00003-of-00003.safetensors").unlink()
        with pytest.raises(ArtifactError, match=r"model-00003-of-00003\.safetensors"):
            load_heads(tmp_path, target)
