"""Heads are written as other codes read them, and load bit for bit as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from methods.eagle.test_eagle import random_head as eagle_head
from methods.eagle3.published import PUBLISHED
from methods.eagle3.test_eagle3 import random_head as eagle3_head
from methods.medusa.test_medusa import random_heads as medusa_heads
from slipstream.cli.app import app
from slipstream.drafting.artefact_files import artefact_kind
from slipstream.errors import ArtifactError, InputError
from slipstream.methods.eagle import checkpoint as eagle
from slipstream.methods.eagle3 import checkpoint as eagle3
from slipstream.methods.export import export_head
from slipstream.methods.medusa.checkpoint import save_heads
from slipstream.target.target import Target


@pytest.fixture(scope="module")
def target(family_model) -> Target:
    return Target(family_model("llama"))


@pytest.mark.parametrize("layout", ["eagle3", "speculators"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_eagle3_head_goes_through_a_layout_bit_for_bit(layout, dtype, target, tmp_path):
    eagle3.save_head(eagle3_head(target), tmp_path / "head", target, dtype=dtype)
    export_head(tmp_path / "head", tmp_path / "out", target, layout)
    before, after = (eagle3.load_head(tmp_path / name, target, stored=True) for name in ("head", "out"))
    assert after.dtype == dtype
    assert after.sizes == before.sizes
    assert torch.equal(after.ids, before.ids)
    states = before.state_dict()
    assert states.keys() == after.state_dict().keys()
    assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in states.items())


def test_files_have_the_names_of_their_layout(target, tmp_path):
    eagle3.save_head(eagle3_head(target), tmp_path / "head", target)
    for layout, name, key in (
        ("eagle3", "midlayer.", "eagle_config"),
        ("speculators", "layers.0.", "speculators_config"),
    ):
        out = tmp_path / layout
        export_head(tmp_path / "head", out, target, layout)
        tensors = load_file(out / "model.safetensors")
        assert f"{name}hidden_norm.weight" in tensors
        assert {"d2t", "t2d", "lm_head.weight", "fc.weight", "norm.weight"} <= tensors.keys()
        assert (tensors["d2t"].dtype, tensors["t2d"].dtype) == (torch.int64, torch.bool)
        assert key in json.loads((out / "config.json").read_text())
        assert artefact_kind(out) == "eagle3"


def test_an_eagle_head_goes_through_its_layout_bit_for_bit(target, tmp_path):
    head = eagle_head(target).place(target.device, torch.bfloat16)
    eagle.save_head(head, tmp_path / "head", target)
    export_head(tmp_path / "head", tmp_path / "out", target, "eagle")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("head", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}


def written(kind: str, target: Target, folder: Path) -> Path:
    if kind == "eagle":
        eagle.save_head(eagle_head(target), folder, target)
    elif kind == "eagle3":
        eagle3.save_head(eagle3_head(target), folder, target)
    else:
        save_heads(medusa_heads(target), folder, target)
    return folder


WRONG = [
    ("eagle", "speculators", "holds an EAGLE head, which has no layout 'speculators'; write it as eagle$"),
    ("eagle3", "eagle", "holds an EAGLE-3 head, which has no layout 'eagle'; write it as eagle3 or speculators$"),
    ("medusa", "eagle", "holds Medusa heads.*only EAGLE and EAGLE-3 heads are written anew"),
]


@pytest.mark.parametrize(("kind", "layout", "message"), WRONG)
def test_a_layout_of_another_kind_of_head_is_refused(kind, layout, message, target, tmp_path):
    with pytest.raises(ArtifactError, match=message):
        export_head(written(kind, target, tmp_path / "head"), tmp_path / "out", target, layout)
    assert not (tmp_path / "out").exists()


def test_an_unknown_layout_is_one_clear_line(target, tmp_path):
    with pytest.raises(InputError, match="unknown format 'gguf'"):
        export_head(tmp_path, tmp_path / "out", target, "gguf")


def test_the_command_writes_a_head(tmp_path):
    """Of the shipped model: the head that ships, and one in another layout."""
    done = CliRunner().invoke(app, ["heads", "export", "-m", "tiny", "--format", "eagle", "--out", str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    assert "the head in layout eagle, 3.3 MB" in done.stdout
    refused = CliRunner().invoke(
        app, ["heads", "export", "-m", "tiny", "--format", "speculators", "--out", str(tmp_path / "b")]
    )
    assert refused.exit_code == 2
    assert "no such head ships" in refused.stderr
    head = PUBLISHED["SpecForge"].write(tmp_path / "head")
    wrong = ["heads", "export", "-m", "tiny", "--draft", str(head), "--format", "eagle3", "--out", str(tmp_path / "c")]
    refused = CliRunner().invoke(app, wrong)
    assert refused.exit_code == 2
    assert "width 32, but those of" in refused.stderr
