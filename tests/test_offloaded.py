"""A target that accelerate spreads over places, the disk among them, decodes and trains heads as a resident one does.

`device="auto"` is this map as accelerate chooses it; with one CPU it would choose no disk, so the test says where.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import slipstream
from families import build, prompt_ids
from slipstream.methods.eagle.checkpoint import save_head
from slipstream.methods.eagle.head import EagleHead, HeadSizes
from slipstream.methods.eagle.settings import EagleSettings
from slipstream.methods.eagle3.settings import Eagle3Settings
from slipstream.target.target import Target
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.runs import train_eagle, train_eagle3

pytestmark = pytest.mark.filterwarnings("ignore::slipstream.errors.ArtifactWarning")  # its hash is of what is at hand

PLACES = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "lm_head": "disk",
}
TEXT = [5, 9, 13, 22] * 4
ASKED = ({"temperature": 0}, {"temperature": 0.8, "seed": 3})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's files, and a head's."""
    path = tmp_path_factory.mktemp("offloaded")
    model = build("llama", num_hidden_layers=3, weight_std=0.3)
    model.save_pretrained(path / "model")
    torch.manual_seed(0)
    target = Target(model)
    save_head(EagleHead(HeadSizes.like(target)), path / "head", target, {})
    return path


@pytest.fixture
def offloaded(folder: Path, tmp_path: Path) -> PreTrainedModel:
    """Two of its layers and the LM head lie on the disk."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float64, device_map=PLACES, offload_folder=tmp_path / "offload"
    )
    assert model.model.layers[1].mlp.up_proj.weight.is_meta
    return model


@pytest.mark.parametrize("method", ["plain", "prompt-lookup", "layer-skip", "eagle2", "auto"])
def test_tokens_are_those_of_a_resident_target(folder, offloaded, method):
    options = {"draft": str(folder / "head")} if method in ("eagle2", "auto") else {}
    resident = slipstream.load(folder / "model", method, dtype="float64", device="cpu", **options)
    spread = slipstream.load(folder / "model", method, dtype="float64", device="auto", **options)
    on_disk = slipstream.load(offloaded, method, **options)
    for settings in ASKED:
        outputs = [one.generate(TEXT, max_new_tokens=14, **settings).token_ids for one in (resident, spread, on_disk)]
        assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize(("train", "settings"), [(train_eagle, EagleSettings), (train_eagle3, Eagle3Settings)])
def test_heads_are_trained_as_for_a_resident_target(folder, offloaded, tmp_path, train, settings):
    from accelerate.state import AcceleratorState

    dialogues = [Dialogue(tuple(prompt_ids(9, seed=seed)), (False,) * 3 + (True,) * 6) for seed in range(6)]
    how: dict[str, Any] = {"steps": 3, "batch_size": 2, "learning_rate": 1e-3, "held_out": 0, "report_every": 3}
    weights = []
    for name, model in (("resident", build("llama", num_hidden_layers=3, weight_std=0.3)), ("on-disk", offloaded)):
        train(Target(model), dialogues, tmp_path / name, settings(**how))
        AcceleratorState._reset_state(reset_partial_state=True)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    resident, on_disk = weights
    for name, tensor in resident.items():
        assert torch.allclose(on_disk[name].double(), tensor.double(), atol=1e-6), name
