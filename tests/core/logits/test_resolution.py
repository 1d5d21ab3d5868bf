"""What plain decoding would apply: precedence, defaults, and refusals that name the setting."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from slipstream.core.logits import SETTING_NAMES, ProcessingSettings, resolve, warp
from slipstream.errors import InputError, UnsupportedSettingError


def resolved(config: dict[str, Any] | None = None, **overrides: Any) -> ProcessingSettings:
    return resolve(
        GenerationConfig(**(config or {})), overrides, prompt_length=3, max_new_tokens=10, eos_token_ids=[7, 2, 7]
    )


QWEN = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}


def test_nothing_set_is_greedy_without_processing() -> None:
    assert resolved() == ProcessingSettings(prompt_length=3, max_length=13, eos_token_ids=(2, 7))


def test_the_model_decides_what_the_caller_leaves_open() -> None:
    settings = resolved(QWEN, top_p=0.5, top_k=None)
    assert (settings.temperature, settings.top_k, settings.top_p) == (0.6, 20, 0.5)
    assert settings.repetition_penalty == 1.05


def test_library_wide_defaults_are_not_applied() -> None:
    assert resolved({"do_sample": True}).top_k == 0
    assert resolved({"do_sample": True}).temperature == 1.0
    assert resolved(temperature=0.5).top_k == 0


def test_a_temperature_decides_between_greedy_and_sampling() -> None:
    sampling = resolved({"top_k": 4}, temperature=1)
    assert (sampling.temperature, sampling.top_k, sampling.is_greedy) == (1.0, 4, False)
    greedy = resolved(QWEN, temperature=0.0)
    assert (greedy.is_greedy, greedy.top_k, greedy.top_p, greedy.repetition_penalty) == (True, 0, 1.0, 1.05)


def test_do_sample_false_turns_truncations_off_as_in_generate() -> None:
    settings = resolved(QWEN, do_sample=False)
    assert (settings.temperature, settings.top_k, settings.top_p) == (0.0, 0, 1.0)
    assert resolved({"temperature": 0.6, "do_sample": False}).is_greedy


def test_a_caller_can_turn_the_models_settings_off() -> None:
    settings = resolved(QWEN, top_k=0, top_p=1, repetition_penalty=1)
    assert (settings.top_k, settings.top_p, settings.repetition_penalty) == (0, 1.0, 1.0)


def test_min_new_tokens_goes_before_min_length() -> None:
    assert resolved(min_length=5).min_length == 5
    assert resolved({"min_new_tokens": 4}, min_length=12).min_length == 7


def test_lists_of_json_files_are_read_like_the_python_forms() -> None:
    settings = resolved(
        {"sequence_bias": [[[4, 5], 1.5]], "suppress_tokens": [], "forced_eos_token_id": 2},
        bad_words_ids=[[1], [2, 3]],
        exponential_decay_length_penalty=[4, 1.1],
    )
    assert settings.sequence_bias == (((4, 5), 1.5),)
    assert settings.sequence_bias == resolved(sequence_bias={(4, 5): 1.5}).sequence_bias
    assert (settings.suppress_tokens, settings.forced_eos_token_id) == ((), (2,))
    assert settings.bad_words_ids == ((1,), (2, 3))
    assert settings.exponential_decay_length_penalty == (4, 1.1)


REFUSED = {
    "num_beams": 4,
    "num_beam_groups": 2,
    "num_return_sequences": 2,
    "diversity_penalty": 0.5,
    "constraints": [object()],
    "force_words_ids": [[3]],
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "guidance_scale": 1.5,
    "watermarking_config": object(),
    "token_healing": True,
    "encoder_repetition_penalty": 1.5,
    "encoder_no_repeat_ngram_size": 2,
    "max_time": 5.0,
    "is_assistant": True,
    "assistant_ensemble_weight": 0.5,
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_without_a_lossless_form_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedSettingError, match=rf"^{name}\b.* has no lossless form here: .*; remove it"):
        resolved(**{name: REFUSED[name]})
    config = GenerationConfig()
    setattr(config, name, REFUSED[name])
    with pytest.raises(UnsupportedSettingError, match=rf"^{name}\b"):
        resolve(config, {}, prompt_length=3, max_new_tokens=10, eos_token_ids=[])


@pytest.mark.parametrize(
    "name",
    [
        *(
            "logits_processor",
            "prefix_allowed_tokens_fn",
            "stopping_criteria",
            "custom_generate",
            "negative_prompt_ids",
        ),
        *("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "speculation_type"),
    ],
)
def test_arguments_that_cannot_be_applied_at_every_node_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedSettingError, match=rf"^{name}\b"):
        resolved(**{name: 3})


def test_settings_that_ask_for_nothing_are_not_refused() -> None:
    neutral = {"num_beams": 1, "guidance_scale": 1.0, "diversity_penalty": 0.0, "num_return_sequences": 1}
    assert resolved(neutral, **neutral) == resolved()
    assert resolved({"use_cache": False, "num_assistant_tokens": 5, "chat_format": "x"}) == resolved()


def test_an_unknown_setting_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'repetition_penality'.*Did you mean 'repetition_penalty'\?"):
        resolved(repetition_penality=1.1)


OUT_OF_RANGE = {
    "temperature": [-0.1, float("nan"), float("inf"), "hot"],
    "top_k": [-1, 2.5, True],
    "top_p": [-0.1, 1.1],
    "min_p": [1.5],
    "top_h": [0.0],
    "typical_p": [0.0],
    "epsilon_cutoff": [-1.0],
    "eta_cutoff": [2.0],
    "repetition_penalty": [0.0, -1.0],
    "presence_penalty": [float("inf")],
    "frequency_penalty": ["x"],
    "no_repeat_ngram_size": [-2],
    "min_length": [-1],
    "min_new_tokens": [-1, 1.5],
    "bad_words_ids": [[[]], [[-3]], 7],
    "sequence_bias": [{(1,): "x"}, [[1, 2, 3]]],
    "suppress_tokens": [["a"]],
    "forced_bos_token_id": ["a"],
    "exponential_decay_length_penalty": [(1,), 5],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, bad in OUT_OF_RANGE.items() for value in bad])
def test_a_value_out_of_range_is_one_clear_line(name: str, value: Any) -> None:
    warm = {} if name == "temperature" else {"temperature": 1.0}
    with pytest.raises(InputError, match=rf"^{name} is ") as caught:
        resolved(**warm, **{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("overrides", [{"temperature": 0, "do_sample": True}, {"temperature": 1, "do_sample": False}])
def test_contradicting_arguments_are_refused(overrides: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="contradicts do_sample"):
        resolved(**overrides)


def test_a_truncation_that_greedy_decoding_would_ignore_is_refused() -> None:
    with pytest.raises(InputError, match=r"top_p=0\.9 has no effect when decoding greedily"):
        resolved(top_p=0.9)
    with pytest.raises(InputError, match=r"typical_p=0\.5 has no effect"):
        resolved(temperature=0, typical_p=0.5)
    assert resolved(top_p=1.0, top_k=0).is_greedy
    assert resolved(temperature=0, top_p=0.9, top_k=5).is_greedy  # the most probable token survives both


def test_penalties_that_transformers_does_not_read_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert resolved({"presence_penalty": 1.5}) == resolved()
    assert "presence_penalty in the generation_config is not read" in caplog.text


def test_exponential_decay_without_an_end_token_is_refused() -> None:
    with pytest.raises(InputError, match="needs an end-of-text token"):
        resolve(
            GenerationConfig(),
            {"exponential_decay_length_penalty": (1, 1.5)},
            prompt_length=1,
            max_new_tokens=5,
            eos_token_ids=[],
        )


def test_the_settings_a_caller_may_give_are_deliberate() -> None:
    assert set(SETTING_NAMES) == {
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "bad_words_ids"),
        *("sequence_bias", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"),
        *("min_length", "min_new_tokens", "exponential_decay_length_penalty"),
        *("remove_invalid_values", "renormalize_logits"),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_lowest_temperature_takes_the_most_probable_token_and_lower_ones_are_refused(dtype: torch.dtype) -> None:
    logits = torch.tensor([[-31.25, 118.0, 119.0, -7.5]], dtype=dtype)
    processing = resolved(temperature=1e-30)
    warped = warp(logits.float(), temperature=processing.temperature)
    assert not warped.isnan().any()
    assert warped.argmax() == 2
    for temperature in (9e-31, 1e-39, 5e-324):
        line = f"temperature is {temperature}; it must be 0 (greedy) or a number of at least 1e-30"
        with pytest.raises(InputError, match=re.escape(line)):
            resolved(temperature=temperature)
        with pytest.raises(InputError, match=re.escape(line)):
            resolved({"do_sample": True, "temperature": temperature})


@pytest.mark.parametrize("name", ["top_p", "min_p"])
def test_a_truncation_out_of_range_is_refused_when_decoding_greedily_too(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} is 3"):
        resolved(temperature=0, **{name: 3})
