"""The engine inside transformers' `generate`: as a callable, as a wrapped model, as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
    TextStreamer,
)
from transformers.generation import GenerateDecoderOnlyOutput, MaxTimeCriteria

import slipstream
from byte_model import END, save_byte_model
from slipstream.errors import InputError, UnsupportedSettingError
from slipstream.hf_folder import write_folder

METHOD = {"drafter": "layer-skip", "width": 3, "depth": 3, "total": 6}
PAD = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours() -> Any:
    return slipstream.custom_generate(**METHOD)


@pytest.fixture(scope="module")
def wrapped(model: LlamaForCausalLM) -> Any:
    return slipstream.wrap(model, **METHOD)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exported folder, and a cache of code for transformers to copy it to."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    write_folder(tmp_path / "fast", "0.0.1")
    return tmp_path / "fast"


def prompt(text: str = "Hello, hello", pads: int = 0) -> dict[str, torch.Tensor]:
    ids = [PAD] * pads + list(text.encode())
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([[0] * pads + [1] * len(text)])}


def folder_arguments(hub: Path) -> dict[str, Any]:
    options = {name: value for name, value in METHOD.items() if name != "drafter"}
    return {
        "custom_generate": str(hub),
        "trust_remote_code": True,
        "drafter": METHOD["drafter"],
        "options": options,
    }


CONFIGS = {
    "budget": {"max_new_tokens": 24},
    "length": {"max_length": 40},
    "default length": {},
    "least": {"max_new_tokens": 24, "min_new_tokens": 20, "eos_token_id": 72},
    "ends": {"max_new_tokens": 40, "eos_token_id": [END, 97, 114]},
    "repetition": {"max_new_tokens": 24, "repetition_penalty": 1.7},
    "n-grams": {"max_new_tokens": 24, "no_repeat_ngram_size": 2},
    "bad words": {"max_new_tokens": 24, "bad_words_ids": [[72], [97, 98]], "suppress_tokens": [10, 11]},
    "forced end": {"max_new_tokens": 12, "forced_eos_token_id": END},
    "static cache": {"max_new_tokens": 12, "cache_implementation": "static"},
}


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize("pads", [0, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_generate(name: str, pads: int, model: Any, ours: Any, wrapped: Any) -> None:
    given = {**prompt(pads=pads), "do_sample": False, "pad_token_id": PAD}
    if name == "least":  # so that the end token would come at once
        given["sequence_bias"] = {(72,): 30.0}
    expected = model.generate(**given, **CONFIGS[name])
    assert expected.shape[1] > given["input_ids"].shape[1]
    assert model.generate(**given, custom_generate=ours, **CONFIGS[name]).tolist() == expected.tolist()
    assert wrapped.generate(**given, **CONFIGS[name]).tolist() == expected.tolist()


def test_a_generation_config_is_read(model: Any, ours: Any, wrapped: Any) -> None:
    config = GenerationConfig(
        max_new_tokens=20, min_length=30, eos_token_id=[97, 72], pad_token_id=PAD, do_sample=False
    )
    given = prompt(pads=3)
    expected = model.generate(**given, generation_config=config)
    assert model.generate(**given, generation_config=config, custom_generate=ours).tolist() == expected.tolist()
    assert wrapped.generate(given["input_ids"], config, attention_mask=given["attention_mask"]).tolist() == (
        expected.tolist()
    )
    assert config.max_new_tokens == 20


def test_a_mapping_is_returned_where_it_is_asked_for(model: Any, ours: Any) -> None:
    given = {**prompt(), "max_new_tokens": 8, "return_dict_in_generate": True, "do_sample": False}
    found = model.generate(**given, custom_generate=ours)
    assert isinstance(found, GenerateDecoderOnlyOutput)
    assert found.sequences.tolist() == model.generate(**given).sequences.tolist()
    assert found.past_key_values is None


@pytest.mark.parametrize("truncation", [{}, {"top_k": 5}, {"top_p": 0.8, "top_k": 0}, {"min_p": 0.2, "typical_p": 0.9}])
def test_sampled_tokens_follow_the_configuration(truncation: dict[str, Any], model: Any, ours: Any) -> None:
    """As plain sampling of ours with the same seed: `generate` keeps the 50 likeliest unless it is told otherwise."""
    given = {**prompt(), "do_sample": True, "temperature": 1.3, "max_new_tokens": 24, "seed": 7, **truncation}
    found = model.generate(**given, custom_generate=ours)
    plain = slipstream.load(model, "plain")
    settings = {"top_k": 50, **truncation}
    expected = plain.generate(prompt(), temperature=1.3, max_new_tokens=24, seed=7, **settings)
    assert found[0, given["input_ids"].shape[1] :].tolist() == expected.token_ids


def test_a_seed_of_torch_reproduces_an_answer(model: Any, ours: Any) -> None:
    answers = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        answers.append(model.generate(**prompt(), do_sample=True, max_new_tokens=20, custom_generate=ours).tolist())
    assert answers[0] == answers[1] != answers[2]


def test_greedy_decoding_draws_nothing_from_torch(model: Any, ours: Any) -> None:
    before = torch.get_rng_state()
    model.generate(**prompt(), do_sample=False, max_new_tokens=8, custom_generate=ours)
    assert torch.equal(torch.get_rng_state(), before)


def test_tokens_are_told_cycle_by_cycle(model: Any, ours: Any) -> None:
    told: list[list[int]] = []
    found = model.generate(**prompt(), max_new_tokens=24, custom_generate=ours, on_tokens=told.append, do_sample=False)
    assert [token for tokens in told for token in tokens] == found[0, len("Hello, hello") :].tolist()
    assert 1 < len(told) < 24


def a_stop_string(model: Any, tokenizer: Any) -> str:
    text = tokenizer.decode(model.generate(**prompt(), max_new_tokens=24, do_sample=False)[0, 12:])
    return next(one for one in text[6:] if one.isascii() and one.isprintable() and one not in text[:6])


def test_stop_strings_end_all_forms_where_generate_ends(model: Any, wrapped: Any, tokenizer: Any, hub: Path) -> None:
    stop = a_stop_string(model, tokenizer)
    given = {**prompt(), "max_new_tokens": 24, "do_sample": False}
    expected = model.generate(**given, stop_strings=[stop], tokenizer=tokenizer).tolist()
    assert len(expected[0]) < 12 + 24
    with_tokenizer = slipstream.custom_generate(**METHOD, tokenizer=tokenizer)
    assert model.generate(**given, custom_generate=with_tokenizer, stop=stop).tolist() == expected
    assert wrapped.generate(**given, stop_strings=[stop], tokenizer=tokenizer).tolist() == expected
    config = GenerationConfig(max_new_tokens=24, stop_strings=stop, do_sample=False, pad_token_id=PAD)
    assert wrapped.generate(**prompt(), generation_config=config, tokenizer=tokenizer).tolist() == expected
    assert config.stop_strings == stop
    found = model.generate(**given, stop_strings=[stop], tokenizer=tokenizer, **folder_arguments(hub))
    assert found.tolist() == expected


def test_stop_strings_of_the_model_are_read_by_a_wrapped_one(
    model: Any, wrapped: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = a_stop_string(model, tokenizer)
    monkeypatch.setattr(model.generation_config, "stop_strings", [stop])
    given = {**prompt(), "max_new_tokens": 24, "do_sample": False, "tokenizer": tokenizer}
    assert wrapped.generate(**given).tolist() == model.generate(**given).tolist()


class Heard:
    """A streamer that keeps what it is told."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.over = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens.extend(value.reshape(-1).tolist())

    def end(self) -> None:
        self.over = True


@pytest.mark.parametrize("form", ["wrapped", "folder"])
def test_a_streamer_is_told_all(form: str, model: Any, wrapped: Any, hub: Path) -> None:
    heard = Heard()
    given = {**prompt(pads=2), "max_new_tokens": 20, "streamer": heard, "pad_token_id": PAD, "do_sample": False}
    found = wrapped.generate(**given) if form == "wrapped" else model.generate(**given, **folder_arguments(hub))
    assert heard.tokens == found[0].tolist()
    assert heard.over


def test_a_streamer_of_text_adds_up_to_the_answer(wrapped: Any, tokenizer: Any) -> None:
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    found = wrapped.generate(**prompt(), max_new_tokens=20, streamer=streamer, do_sample=False)
    assert "".join(streamer) == tokenizer.decode(found[0, 12:])


def test_a_streamer_ends_where_generate_refuses(wrapped: Any) -> None:
    heard = Heard()
    with pytest.raises(UnsupportedSettingError):
        wrapped.generate(**prompt(), max_new_tokens=4, num_beams=2, streamer=heard)
    assert heard.over


def test_the_folder_generates_the_same_tokens(model: Any, hub: Path) -> None:
    given = {**prompt(pads=4), "max_new_tokens": 24, "pad_token_id": PAD, "do_sample": False}
    expected = model.generate(**given).tolist()
    assert model.generate(**given, **folder_arguments(hub)).tolist() == expected
    assert model.generate(**given, custom_generate=str(hub), trust_remote_code=True).tolist() == expected


def test_the_folder_keeps_the_drafter_for_the_next_call(model: Any, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import slipstream.hf_generate as module

    loads: list[str] = []
    load = module.load
    monkeypatch.setattr(
        module, "load", lambda model, drafter, **more: loads.append(drafter) or load(model, drafter, **more)
    )
    for drafter in ("plain", "plain", "prompt-lookup"):
        model.generate(**prompt(), max_new_tokens=4, custom_generate=str(hub), trust_remote_code=True, drafter=drafter)
    assert loads == ["plain", "prompt-lookup"]


def test_a_wrapped_model_is_the_model_in_all_else(model: Any, wrapped: Any) -> None:
    assert wrapped.config is model.config
    assert wrapped.device == model.device


def a_cache(model: Any, tokens: int) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    if tokens:
        model(input_ids=torch.tensor([[1] * tokens]), past_key_values=cache)
    return cache


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "beams": ({"num_beams": 3}, "num_beams=3"),
    "several": ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2"),
    "guidance": ({"guidance_scale": 2.0}, "guidance_scale"),
    "processor": ({"logits_processor": LogitsProcessorList([lambda ids, scores: scores])}, "logits processor function"),
    "known processor": (
        {"logits_processor": LogitsProcessorList([TemperatureLogitsWarper(0.5)])},
        "logits processor TemperatureLogitsWarper",
    ),
    "other temperature": (
        {
            "logits_processor": LogitsProcessorList([TemperatureLogitsWarper(0.5)]),
            "do_sample": True,
            "temperature": 2.0,
        },
        "logits processor TemperatureLogitsWarper",
    ),
    "prefix": ({"prefix_allowed_tokens_fn": lambda batch, ids: [1]}, "logits processor PrefixConstrained"),
    "criterion": ({"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(9.0)])}, "criterion MaxTimeCriteria"),
    "time": ({"max_time": 9.0}, "max_time"),
    "scores": ({"output_scores": True, "return_dict_in_generate": True}, "output_scores=True is not served"),
    "no cache": ({"use_cache": False}, "use_cache=False"),
    "positions": ({"position_ids": torch.arange(5, 17)[None]}, "position_ids do not count from 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(name: str, model: Any, ours: Any, wrapped: Any) -> None:
    settings, words = REFUSED[name]
    given = {**prompt(), "max_new_tokens": 4, **settings}
    with pytest.raises(InputError, match=words):
        model.generate(**given, custom_generate=ours)
    with pytest.raises(InputError, match=words):
        wrapped.generate(**given)


@pytest.mark.parametrize(("tokens", "words"), [(3, "holds 3 tokens"), (0, "would stay empty")])
def test_a_cache_of_the_callers_is_refused(tokens: int, words: str, model: Any, ours: Any) -> None:
    cache = a_cache(model, tokens)
    with pytest.raises(InputError, match=f"past_key_values {words}"):
        model.generate(**prompt("x" * 12), max_new_tokens=4, past_key_values=cache, custom_generate=ours)


def test_batches_and_padding_on_the_right_are_refused(model: Any, ours: Any) -> None:
    rows = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with pytest.raises(InputError, match="the batch has 2 rows"):
        model.generate(rows, max_new_tokens=4, custom_generate=ours)
    with pytest.raises(InputError, match="padded on the right"):
        model.generate(rows[:1], attention_mask=torch.tensor([[1, 1, 0]]), max_new_tokens=4, custom_generate=ours)


@pytest.mark.parametrize("name", ["assistant_model", "synced_gpus", "custom_generate", "negative_prompt_ids"])
def test_what_a_callable_never_sees_is_refused_by_a_wrapped_model(name: str, model: Any, wrapped: Any) -> None:
    values = {"assistant_model": model, "synced_gpus": True, "custom_generate": "x", "negative_prompt_ids": [[1]]}
    with pytest.raises(UnsupportedSettingError, match=f"{name} is not served"):
        wrapped.generate(**prompt(), max_new_tokens=4, **{name: values[name]})


def test_the_folder_refuses_an_assistant_by_name(model: Any, hub: Path) -> None:
    with pytest.raises(UnsupportedSettingError, match="assistant_model is not served"):
        model.generate(**prompt(), max_new_tokens=4, assistant_model=model, **folder_arguments(hub))


def test_stop_without_a_tokenizer_says_where_it_is_given(model: Any, ours: Any) -> None:
    with pytest.raises(InputError, match=r"tokenizer=\.\.\. to slipstream\.custom_generate"):
        model.generate(**prompt(), max_new_tokens=4, custom_generate=ours, stop="a")


def test_unknown_methods_and_options_are_refused_at_once() -> None:
    with pytest.raises(InputError, match="unknown method 'eagel2'"):
        slipstream.custom_generate("eagel2")
    with pytest.raises(InputError, match="no option 'wide'"):
        slipstream.custom_generate("layer-skip", wide=3)


def test_one_callable_serves_one_model_after_another(model: Any, folder: Path) -> None:
    ours = slipstream.custom_generate("prompt-lookup", keep=0)
    other = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        other.lm_head.weight.copy_(other.lm_head.weight.flip(0))
    for one in (model, other, model):
        given = {**prompt(), "max_new_tokens": 8, "do_sample": False}
        assert one.generate(**given, custom_generate=ours).tolist() == one.generate(**given).tolist()


def test_written_folders_are_not_overwritten_if_they_differ(tmp_path: Path) -> None:
    files = write_folder(tmp_path, "1.2.3")
    assert [file.name for file in files] == ["generate.py", "requirements.txt"]
    assert files[1].read_text() == "slipstream-llm>=1.2.3\n"
    assert write_folder(tmp_path, "1.2.3") == files
    files[0].write_text("print('mine')")
    with pytest.raises(InputError, match="holds something else"):
        write_folder(tmp_path, "1.2.3")


def test_smollm2_streams_the_tokens_of_generate(real_smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = LlamaForCausalLM.from_pretrained(real_smollm2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(real_smollm2)
    given = {**tokenizer("The capital of France is", return_tensors="pt"), "max_new_tokens": 12, "do_sample": False}
    expected = model.generate(**given)
    fast = slipstream.wrap(model, "prompt-lookup", total=4)
    assert fast.generate(**given, streamer=TextStreamer(tokenizer, skip_prompt=True)).tolist() == expected.tolist()
    assert "Paris" in capsys.readouterr().out
