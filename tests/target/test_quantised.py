"""Quantised targets: loading a method changes nothing in them, and what cannot be decoded is refused for its reason."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import slipstream
from families import randomise
from methods.learned import near, save_artefacts
from slipstream.errors import UnsupportedTargetError
from slipstream.methods.registry import METHODS
from slipstream.skipping.sublayers import SubLayers
from slipstream.target.target import Target
from slipstream.target.weights import weights_hash

SIZES = {"width": 4, "depth": 3, "total": 8}
PROMPT = torch.arange(2, 22)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model wide enough for blocks of 64 weights."""
    path = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=96,
        max_position_embeddings=128,
        dtype=torch.bfloat16,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    randomise(model, 0.15, 3)
    model.save_pretrained(path)
    return path


def nf4(folder: Path) -> PreTrainedModel:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
    return LlamaForCausalLM.from_pretrained(folder, quantization_config=how, device_map="cpu")


def llm_int8(folder: Path) -> PreTrainedModel:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.5)
    return LlamaForCausalLM.from_pretrained(folder, quantization_config=how, device_map="cpu")


def torchao(name: str) -> Callable[[Path], PreTrainedModel]:
    def load(folder: Path) -> PreTrainedModel:
        quantization = pytest.importorskip("torchao.quantization")
        from transformers import TorchAoConfig

        how = TorchAoConfig(getattr(quantization, name)())
        return LlamaForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.bfloat16, device_map="cpu")

    return load


KINDS: dict[str, Callable[[Path], PreTrainedModel]] = {
    "nf4": nf4,
    "torchao-int8": torchao("Int8WeightOnlyConfig"),
}


def fingerprint(model: PreTrainedModel) -> str:
    with torch.inference_mode():
        logits = model(input_ids=PROMPT, use_cache=False).logits.float()
    assert logits.isfinite().all()
    return hashlib.sha256(logits.numpy().tobytes()).hexdigest()


@pytest.mark.filterwarnings("ignore::slipstream.errors.ArtifactWarning")  # made for the unquantised weights
@pytest.mark.parametrize("kind", KINDS)
def test_loading_a_method_leaves_the_target_as_it_was(kind, folder, tmp_path):
    untouched = fingerprint(KINDS[kind](folder))
    model = KINDS[kind](folder)
    named = weights_hash(model)
    draft = near(LlamaForCausalLM.from_pretrained(folder))
    save_artefacts(Target(draft), tmp_path)
    for method, about in METHODS.items():
        options: dict[str, Any] = {} if about.artefact is None else {"draft": tmp_path / about.artefact}
        options |= SIZES if "width" in about.options else {}
        loaded = slipstream.load(model, method, **options)
        assert fingerprint(model) == untouched, method
        plain = slipstream.load(model, "plain").generate(PROMPT, max_new_tokens=10, temperature=0.0)
        assert len(loaded.generate(PROMPT, max_new_tokens=10, temperature=0.0).token_ids) == len(plain.token_ids)
        assert fingerprint(model) == untouched, method
    assert weights_hash(model) == named, "the name of the weights outlives passes"


@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_have_another_name(kind, folder, tmp_path):
    other = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(-1).add_(0.1)
    other.save_pretrained(tmp_path)
    names = {weights_hash(KINDS[kind](place)) for place in (folder, tmp_path)}
    names.add(weights_hash(LlamaForCausalLM.from_pretrained(folder)))
    assert len(names) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_counted_as_they_are_stored(kind, folder):
    model = KINDS[kind](folder)
    before = fingerprint(model)
    full = SubLayers.find(LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)).mlp_bytes[0]
    assert SubLayers.find(model).mlp_bytes[0] < 0.6 * full
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    "load", [llm_int8, torchao("Int8DynamicActivationInt8WeightConfig")], ids=["llm-int8", "torchao"]
)
def test_quantised_activations_are_refused_for_their_reason_or_work(load, folder):
    """Where outliers or scales are found over all rows of a pass, a row's result depends on the others."""
    model = load(folder)
    with torch.inference_mode():
        alone, among = (model(input_ids=PROMPT[:, :count], use_cache=False).logits[0, :6] for count in (6, 9))
    if (alone - among).abs().max() < 0.1 * alone.std():
        slipstream.load(model, "plain")
        return
    with pytest.raises(UnsupportedTargetError, match="a token's logits change with the tokens after it in the same"):
        slipstream.load(model, "plain")
