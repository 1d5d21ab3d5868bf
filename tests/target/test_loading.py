"""Loading what people have: image-text models, adapters, wrapped models, folders without a tokenizer or weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    BertConfig,
    JambaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MambaConfig,
    RwkvConfig,
    T5Config,
    ViTConfig,
)

import slipstream
from byte_model import save_byte_model
from families import build, prompt_ids, randomise, transformers_greedy
from slipstream.errors import ArtifactError, InputError, UnsupportedTargetError
from slipstream.target.adapters import unwrapped
from slipstream.target.loading import load_model

SETTINGS = {"max_new_tokens": 8, "temperature": 0.0, "eos_token_id": []}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image-text model on disk, which `AutoModelForCausalLM` does not know."""
    folder = tmp_path_factory.mktemp("llava")
    sight = {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, "projection_dim": 32}
    config = LlavaConfig(
        text_config={"model_type": "llama", "max_position_embeddings": 128, **TEXT},
        vision_config={**sight, **{name: size for name, size in TEXT.items() if name != "vocab_size"}},
        image_token_index=63,
    )
    model = LlavaForConditionalGeneration(config)
    randomise(model, 0.5, 3)
    model.save_pretrained(folder)
    return folder


def test_an_image_text_model_is_used_for_its_text(llava):
    model = slipstream.load(llava, "layer-skip", dtype="float64", device="cpu", width=4, depth=3, total=8)
    assert isinstance(model.target.model, LlavaForConditionalGeneration)
    prompt = prompt_ids(7) * 3
    assert model.generate(prompt, **SETTINGS).token_ids == transformers_greedy(model.target.model, prompt, 8)


def test_a_folder_without_a_tokenizer_is_for_token_ids(llava):
    model = slipstream.load(llava, "plain", dtype="float64", device="cpu")
    assert model.tokenizer is None
    assert len(model.generate([5, 6], **SETTINGS).token_ids) == 8
    with pytest.raises(InputError, match="text prompts need a tokenizer, and none is at hand"):
        model.generate("Hi")


def test_a_tokenizer_may_be_given_by_its_folder(llava, tmp_path):
    other = save_byte_model(tmp_path)
    model = slipstream.load(other, "plain", device="cpu", tokenizer=str(other))
    assert model.encode("Hi") == slipstream.load(other, "plain", device="cpu").encode("Hi")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(num_hidden_layers=2), "keeps a recurrent state, which cannot be rolled back"),
        (RwkvConfig(num_hidden_layers=2), "keeps a recurrent state, which cannot be rolled back"),
        (JambaConfig(num_hidden_layers=2), "keeps a recurrent state, which cannot be rolled back"),
        (BertConfig(num_hidden_layers=2), "is an encoder, whose tokens see those after them"),
        (T5Config(num_layers=2), "is a 't5' model, for which transformers has no class that continues text"),
        (ViTConfig(num_hidden_layers=2), "is a 'vit' model, for which transformers has no class that continues text"),
        (AutoConfig.for_model("blip"), "cannot continue text alone: it needs pixel_values as well"),
        (AutoConfig.for_model("blt"), "names no num_hidden_layers"),
        (AutoConfig.for_model("bloom"), "uses ALiBi"),
        (AutoConfig.for_model("deepseek_v32"), "has layers of type 'indexed_attention', whose attention follows more"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_model_that_cannot_work_is_refused_before_its_weights_are_missed(tmp_path, config, reason):
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedTargetError, match=reason) as caught:
        slipstream.load(tmp_path, "plain", device="cpu")
    assert "\n" not in str(caught.value)


def test_a_mixture_of_experts_is_loaded_in_float64(tmp_path):
    build("mixtral", num_local_experts=4, num_experts_per_tok=2).float().save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype="float64", device="cpu", attention=None)
    assert model(input_ids=torch.tensor([[5, 6]])).logits.dtype == torch.float64


def test_a_loaded_mixture_that_has_no_float64_is_refused_with_the_reason():
    model = build("gpt_oss", attention="eager", num_local_experts=4, num_experts_per_tok=2)
    model.set_experts_implementation("grouped_mm")
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([[5, 6]]))
    except RuntimeError:
        with pytest.raises(
            UnsupportedTargetError, match=r"cannot run a token in float64: .*set_experts_implementation"
        ):
            slipstream.load(model, "plain")
    else:
        assert slipstream.load(model, "plain"), "this torch has such a kernel"


# -- wrappers ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, on import of its compiler
def test_a_compiled_model_is_used_as_what_was_compiled(family_model):
    model = family_model("llama")
    compiled = torch.compile(model)
    assert unwrapped(compiled) is model
    prompt = prompt_ids(9)
    loaded = slipstream.load(compiled, "prompt-lookup")
    assert loaded.generate(prompt, **SETTINGS).token_ids == transformers_greedy(model, prompt, 8)


def test_what_is_no_model_is_refused_in_one_line(family_model):
    for wrong in (nn.DataParallel(family_model("llama")), nn.Linear(2, 2), None, 7, {"model": 1}):
        with pytest.raises(
            InputError, match=rf"^model is a {type(wrong).__name__}; give a hub id, a folder or"
        ) as caught:
            slipstream.load(wrong, "plain")
        assert ("give the model inside it" in str(caught.value)) is isinstance(wrong, nn.DataParallel)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("base"))


def adapted(base: Path, folder: Path) -> LlamaForCausalLM:
    """PEFT's wrapper around the model, with a LoRA adapter that matters, saved to a folder."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    wrapper = peft.get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    wrapper.save_pretrained(folder)
    return wrapper.eval()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_lora_adapter_is_used_wrapped_and_from_its_folder(base, tmp_path):
    wrapper = adapted(base, tmp_path / "adapter")
    prompt = list(b"Hello")
    ids = torch.tensor([prompt])
    expected = wrapper.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
    expected = expected[0, len(prompt) :].tolist()
    plain = slipstream.load(base, "plain", device="cpu")
    assert plain.generate(prompt, **SETTINGS).token_ids != expected, "the adapter changes nothing"
    sizes = {"width": 4, "depth": 3, "total": 8}
    for model in (wrapper, torch.compile(wrapper), tmp_path / "adapter", str(tmp_path / "adapter")):
        place = {} if isinstance(model, nn.Module) else {"device": "cpu"}
        loaded = slipstream.load(model, "layer-skip", **sizes, **place)
        assert loaded.generate(prompt, **SETTINGS).token_ids[: len(expected)] == expected
        assert (loaded.tokenizer is None) is isinstance(model, nn.Module)
        assert loaded.target.hash != plain.target.hash


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_that_adds_tokens_is_refused(base):
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    wrapper = peft.get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    with pytest.raises(
        UnsupportedTargetError, match=r"this PEFT adapter \(PROMPT_TUNING\) is no change of weights alone"
    ):
        slipstream.load(wrapper, "plain")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not the configuration"),
        ("{}", "is not the configuration"),
        ('{"base_model_name_or_path": null}', "names no"),
    ],
)
def test_a_damaged_adapter_folder_is_one_line(tmp_path, content, reason):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ArtifactError, match=f"adapter_config.json {reason}"):
        slipstream.load(tmp_path, "plain", device="cpu")


def test_without_peft_an_adapter_says_what_to_install(base, tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ArtifactError, match="is a PEFT adapter; to load it: pip install peft"):
        load_model(tmp_path, dtype=None, device="cpu", attention=None)
