"""The probe reaches past windows, and what it refuses it refuses for the true reason."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

import slipstream
from families import CONTEXT, WINDOWED, build, prompt_ids, transformers_greedy
from slipstream.errors import UnsupportedTargetError
from slipstream.target.features import Features
from slipstream.target.probe import probe
from slipstream.target.target import Target
from slipstream.target.windows import SHORT

LONG = CONTEXT - 2
"""A window that no short text reaches."""


def attributes(model: torch.nn.Module) -> list[Any]:
    return [(sorted(vars(module)), id(vars(module).get("config"))) for module in model.modules()]


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_of_every_family_are_followed_when_they_are_short(name, family_model):
    model = family_model(name)
    target, before, config = Target(model), attributes(model), model.config.to_dict()
    short = target.with_short_windows()
    assert short is not None
    reaches = [reach for reach in short._masks.reaches.values() if reach.window or reach.chunk]
    assert reaches
    assert all(SHORT in (reach.window, reach.chunk) for reach in reaches)
    text = torch.tensor([prompt_ids(12)])
    with torch.inference_mode():
        assert not torch.equal(short.model(text).logits, model(text).logits)
    probe(target)
    assert (attributes(model), model.config.to_dict()) == (before, config), "the model is left as it was"


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_models_without_windows_are_probed_as_they_are(name, family_model):
    assert Target(family_model(name)).with_short_windows() is None


def test_a_model_that_ignores_the_window_of_its_config_is_refused():
    """Its code attends to all tokens: plain decoding would see what our masks hide."""
    model = build("llama")
    model.config.sliding_window = LONG
    with pytest.raises(UnsupportedTargetError, match=r"does not follow the windows .*sliding_window set to null"):
        slipstream.load(model, "plain")
    model.config.sliding_window = None
    prompt = prompt_ids(30)
    answer = slipstream.load(model, "plain").generate(prompt, max_new_tokens=9, temperature=0.0, eos_token_id=[])
    assert answer.token_ids == transformers_greedy(model, prompt, 9)


def test_a_model_that_follows_a_long_window_is_accepted():
    model = build("mistral", sliding_window=LONG)
    slipstream.load(model, "plain")
    assert model.config.sliding_window == LONG


def test_the_probe_takes_no_longer_for_a_window_of_thousands():
    model = build("mistral", sliding_window=4096, max_position_embeddings=32768)
    target = Target(model)
    began = time.perf_counter()
    probe(target)
    assert time.perf_counter() - began < 5.0


def test_what_sees_later_tokens_is_refused_for_that_reason():
    model = build("llama")
    for layer in model.model.layers:
        own = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, own=own, **kwargs: _mixed(own(*args, **kwargs))
    with pytest.raises(UnsupportedTargetError, match="a token's logits change with the tokens after it"):
        slipstream.load(model, "plain")


def _mixed(output: Any) -> Any:
    return (output[0] + output[0].mean(dim=1, keepdim=True), *output[1:])


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        ("xlm", {"sizes": {"emb_dim": 32, "n_layers": 2, "n_heads": 4}}, "cannot run a draft tree: it does not take"),
        (
            "openai-gpt",
            {"sizes": {"n_embd": 32, "n_layer": 2, "n_head": 4}},
            "cannot run a draft tree: it does not take",
        ),
        ("bert", {}, "is an encoder"),
    ],
)
def test_old_families_are_refused_in_one_line(model_type, settings, reason):
    model = build(model_type, attention="eager", **settings)
    with pytest.raises(UnsupportedTargetError, match=reason) as caught:
        slipstream.load(model, "plain")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attention", ["flex_attention", "flash_attention_2"])
def test_attention_without_a_4d_mask_is_refused_for_that_reason(attention, family_model):
    model = build("llama")
    model.config._attn_implementation_internal = attention
    with pytest.raises(UnsupportedTargetError, match=f"{attention}': it takes no 4-D mask"):
        Target(model)


# -- what heads read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("rembert", {"is_decoder": True, "input_embedding_size": 32, "output_embedding_size": 48}),
        ("bert", {"is_decoder": True}),
        ("hrm_text", {}),
        ("llama4", {}),
    ],
)
def test_the_last_hidden_states_give_the_logits_through_the_head(model_type, settings):
    target = Target(build_any(model_type, **settings))
    assert target.model.get_output_embeddings() not in set(target.base.modules())
    target.check_features(Features(last_hidden=True))
    rows = torch.arange(5)
    with torch.inference_mode():
        output = target.forward(rows, rows, target.causal(5), target.new_cache(5), features=Features(last_hidden=True))
        ours = target.head(output.features)
    torch.testing.assert_close(ours, output.logits, rtol=0, atol=1e-6)


def build_any(model_type: str, **settings: Any) -> Any:
    if model_type != "llama4":
        return build(model_type, attention="eager", **settings)
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    from families import randomise

    inner = build("llama4_text", **WINDOWED["llama4"].keywords).config
    sight = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
             "image_size": 28, "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32,
             "projector_output_dim": 32}  # fmt: skip
    model = Llama4ForConditionalGeneration(Llama4Config(text_config=inner.to_dict(), vision_config=sight)).double()
    randomise(model, 0.5, 3)
    model.set_experts_implementation("eager")
    return model.eval()


def test_a_family_whose_features_heads_cannot_read_is_refused_at_load(tmp_path):
    """OPT-350m projects its last hidden states to the width of its embeddings."""
    model = build("opt", ffn_dim=48, word_embed_proj_dim=16)
    with pytest.raises(UnsupportedTargetError, match=r"cannot be drafted for by heads.* width 16, not 32"):
        Target(model).check_features(Features(last_hidden=True))
    slipstream.load(model, "prompt-lookup")
