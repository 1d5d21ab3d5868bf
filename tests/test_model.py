"""The user's entry: prompts, settings, text, statistics and loading, on a tiny model with a tokenizer of its own."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

import slipstream
from byte_model import CONTEXT, END, save_byte_model
from slipstream.engine.sequence import Step
from slipstream.errors import ArtifactError, ContextLengthError, InputError, UnsupportedSettingError
from slipstream.model import _is_on
from slipstream.output import Stats


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def plain(folder: Path) -> slipstream.Model:
    return slipstream.load(folder, "plain", dtype="float64", device="cpu")


@pytest.fixture(scope="module")
def skipping(folder: Path) -> slipstream.Model:
    return slipstream.load(folder, "layer-skip", dtype="float64", device="cpu", width=3, depth=3, total=6)


def test_text_is_one_user_turn_of_the_chat_template(plain: slipstream.Model) -> None:
    assert plain.encode("Hi") == plain.encode([{"role": "user", "content": "Hi"}])
    assert plain.tokenizer.decode(plain.encode("Hi")) == "<|user|>Hi<|end|><|assistant|>"
    assert plain.encode([7, 8, 9]) == [7, 8, 9]


def streamed(stream: Generator[Step, None, slipstream.Output]) -> tuple[list[Step], slipstream.Output]:
    """All steps of a stream, and what it returns."""
    steps: list[Step] = []
    while True:
        try:
            steps.append(next(stream))
        except StopIteration as end:
            return steps, end.value


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("stop", [None, "e", ["zq", "t"]])
def test_streamed_text_adds_up_to_the_answer(skipping: slipstream.Model, temperature: float, stop: object) -> None:
    settings = {"max_new_tokens": 40, "temperature": temperature, "seed": 4, "stop": stop}
    steps, output = streamed(skipping.stream("Hello", **settings))
    assert "".join(step.text for step in steps) == output.text
    assert [token for step in steps for token in step.token_ids] == output.token_ids
    assert skipping.generate("Hello", **settings).token_ids == output.token_ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stop_string_ends_both_methods_at_the_same_token(
    plain: slipstream.Model, skipping: slipstream.Model, temperature: float
) -> None:
    settings = {"max_new_tokens": 60, "temperature": temperature, "seed": 3}
    whole = plain.generate("Hello", **settings)
    stop = next(character for character in whole.text[5:] if character.isprintable() and character != "�")
    answers = [model.generate("Hello", stop=stop, **settings) for model in (plain, skipping)]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].finish_reason == answers[1].finish_reason == "stop"
    assert answers[0].text == answers[1].text == whole.text[: whole.text.index(stop)]
    assert answers[0].token_ids == whole.token_ids[: len(answers[0].token_ids)]


def test_a_seed_is_drawn_reported_and_reproduces_the_text(skipping: slipstream.Model) -> None:
    drawn = skipping.generate("Hello", max_new_tokens=30, temperature=1.0)
    assert drawn.seed is not None
    again = skipping.generate("Hello", max_new_tokens=30, temperature=1.0, seed=drawn.seed)
    assert again.token_ids == drawn.token_ids
    other = skipping.generate("Hello", max_new_tokens=30, temperature=1.0, seed=drawn.seed, stream_id=1)
    assert other.token_ids != drawn.token_ids
    assert skipping.generate("Hello", max_new_tokens=5, temperature=0.0).seed is None


def test_a_given_generation_config_is_filled_from_the_models_own(plain: slipstream.Model) -> None:
    own = plain.target.model.generation_config
    assert own.eos_token_id == END
    free = plain.generate("Hello", max_new_tokens=30, temperature=1.0, seed=1)
    config = GenerationConfig(max_new_tokens=7, do_sample=True)
    short = plain.generate("Hello", seed=1, generation_config=config)
    assert short.token_ids == free.token_ids[:7]
    assert plain._generation_config(config).eos_token_id == END
    assert config.eos_token_id is None  # the caller's object is left alone


def test_max_length_of_the_generation_config_counts_the_prompt(plain: slipstream.Model) -> None:
    config, prompt = GenerationConfig(max_length=12), [5, 6, 7, 8]
    assert len(plain.generate(prompt, generation_config=config, eos_token_id=[]).token_ids) == 8
    with pytest.raises(InputError, match=r"prompt has 12 tokens, .* is 12; give max_new_tokens"):
        plain.generate(prompt * 3, generation_config=config)
    assert len(plain.generate(prompt * 3, generation_config=config, max_new_tokens=3).token_ids) <= 3


def test_stop_strings_of_the_generation_config_are_honoured(plain: slipstream.Model) -> None:
    free = plain.generate("Hello", max_new_tokens=40, temperature=1.0, seed=3)
    stop = next(character for character in free.text[4:] if character.isprintable() and character != "�")
    config = GenerationConfig(stop_strings=[stop], do_sample=True)
    stopped = plain.generate("Hello", max_new_tokens=40, seed=3, generation_config=config)
    assert stopped.text == free.text[: free.text.index(stop)]


def test_eos_of_the_caller_replaces_the_models(plain: slipstream.Model) -> None:
    free = plain.generate("Hello", max_new_tokens=30, temperature=0.0, eos_token_id=[])
    assert len(free.token_ids) == 30
    token = free.token_ids[9]
    ended = plain.generate("Hello", max_new_tokens=30, temperature=0.0, eos_token_id=token)
    assert ended.token_ids == free.token_ids[: free.token_ids.index(token) + 1]
    assert ended.finish_reason == "eos"


@pytest.mark.parametrize("method", ["plain", "skipping"])
@pytest.mark.parametrize("stop", [None, "never said"])
def test_an_eos_token_with_text_is_in_the_streamed_text_too(
    method: str, stop: str | None, request: pytest.FixtureRequest
) -> None:
    """The caller may name any token as EOS: its text is part of the answer, watched for stop strings or not."""
    model = request.getfixturevalue(method)
    settings = {"max_new_tokens": 40, "temperature": 1.0, "seed": 3}
    free = model.generate("Hello", eos_token_id=[], **settings)
    eos = next(token for token in free.token_ids[5:] if model.tokenizer.decode([token]).isalnum())
    steps, output = streamed(model.stream("Hello", eos_token_id=eos, stop=stop, **settings))
    assert output.finish_reason == "eos"
    assert output.text.endswith(model.tokenizer.decode([eos]))
    assert "".join(step.text for step in steps) == output.text
    assert model.generate("Hello", eos_token_id=eos, **settings).text == output.text


def test_the_time_of_a_streams_consumer_is_not_counted(plain: slipstream.Model) -> None:
    stream = plain.stream("Hello", max_new_tokens=2, temperature=0.0)
    next(stream)
    time.sleep(0.5)
    next(stream)
    with pytest.raises(StopIteration) as end:
        next(stream)
    assert end.value.value.stats.total_s < 0.5


def test_statistics_add_up(skipping: slipstream.Model) -> None:
    stats = skipping.generate("Hello", max_new_tokens=40, temperature=0.0, eos_token_id=[]).stats
    assert stats.num_tokens == 40 == sum(k * count for k, count in enumerate(stats.accept_lengths))
    assert stats.num_cycles == sum(stats.accept_lengths)
    assert stats.tau == 40 / stats.num_cycles
    assert stats.passes_saved == pytest.approx(1 - 1 / stats.tau)
    assert 0 <= stats.num_accepted <= min(stats.num_drafted, 40)
    assert min(stats.draft_s, stats.build_s, stats.verify_s, stats.sample_s, stats.host_s) > 0
    assert stats.cycles_s == pytest.approx(sum(stats.cycle_ms().values()) * stats.num_cycles / 1000)
    assert 0 < stats.prefill_s + stats.cycles_s <= stats.total_s
    doubled = stats + stats
    assert doubled.accept_lengths == [2 * count for count in stats.accept_lengths]
    assert doubled.tau == stats.tau
    assert (Stats() + stats).to_dict() == stats.to_dict()


def test_the_output_is_json(skipping: slipstream.Model) -> None:
    output = skipping.generate("Hello", max_new_tokens=10, temperature=1.0, seed=1)
    record = json.loads(json.dumps(output.to_dict()))
    assert record["token_ids"] == output.token_ids
    assert record["stats"]["tau"] == output.stats.tau
    assert record["seed"] == 1


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "line"),
    [
        ("", {}, InputError, "the prompt is empty"),
        ([], {}, InputError, "the prompt is empty"),
        ([1, 999], {}, InputError, "token id 999 is not in the target's vocabulary of 261"),
        ([{"role": "user"}], {}, InputError, "messages of the form"),
        (["a", "b"], {}, InputError, "messages of the form"),
        (
            list(range(CONTEXT)),
            {},
            ContextLengthError,
            f"context is {CONTEXT}; shorten the prompt to at most {CONTEXT - 1}",
        ),
        ("Hi", {"max_new_tokens": 0}, InputError, "max_new_tokens is 0"),
        ("Hi", {"temperature": -1.0}, InputError, "temperature is -1"),
        ("Hi", {"temperature": 1.0, "seed": -1}, InputError, "seed is -1"),
        ("Hi", {"stop": ""}, InputError, "not empty"),
        ("Hi", {"temprature": 1.0}, InputError, "temperature"),
        ("Hi", {"num_beams": 4}, UnsupportedSettingError, "num_beams=4"),
        ("Hi", {"generation_config": {"top_k": 3}}, InputError, "give a transformers GenerationConfig"),
    ],
)
def test_bad_requests_are_one_clear_line(
    plain: slipstream.Model, prompt: object, settings: dict[str, object], error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=line) as caught:
        plain.generate(prompt, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ tools.first.name }}", "no attribute 'first'"),
        ("{{ strftime_later() }}", "'strftime_later' is undefined"),
        ("{{ messages[7]['role'] }}", "no element 7"),
        ("{{ messages[0]['content'].missing.name }}", "no attribute 'missing'"),
        ("{{ 1 // 0 }}", "by zero"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_chat_template_that_refuses_is_one_clear_line(
    plain: slipstream.Model, monkeypatch: pytest.MonkeyPatch, template: str, reason: str
) -> None:
    monkeypatch.setattr(plain.tokenizer, "chat_template", template)
    for prompt in ("Hi", [{"role": "critic", "content": "Hi"}]):
        with pytest.raises(InputError, match="the chat template refuses these messages: ") as caught:
            plain.encode(prompt)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_model_without_tokenizer_takes_token_ids_only(plain: slipstream.Model) -> None:
    bare = slipstream.load(plain.target.model, "prompt-lookup")
    answer = bare.generate([5, 6, 7, 5, 6], max_new_tokens=8, temperature=0.0)
    assert answer.text == ""
    assert answer.token_ids == plain.generate([5, 6, 7, 5, 6], max_new_tokens=8, temperature=0.0).token_ids
    for settings in ({}, {"stop": "x"}):
        with pytest.raises(InputError, match="tokenizer"):
            bare.generate("text" if not settings else [1], **settings)


def test_loading_says_what_is_wrong(folder: Path, tmp_path: Path, plain: slipstream.Model) -> None:
    with pytest.raises(InputError, match="Did you mean 'layer-skip'"):
        slipstream.load(folder, "layerskip")
    with pytest.raises(InputError, match="no option 'branches'"):
        slipstream.load(folder, "layer-skip", branches=2)
    with pytest.raises(InputError, match=r"unknown dtype 'float33'.*float32"):
        slipstream.load(folder, "plain", dtype="float33")
    with pytest.raises(InputError, match="verification"):
        slipstream.load(folder, "plain", verification="typical")
    with pytest.raises(InputError, match="flash"):
        slipstream.load(folder, "plain", attention="flash_attention_2")
    with pytest.raises(ArtifactError, match=r"no config\.json"):
        slipstream.load(tmp_path, "plain")
    with pytest.raises(InputError, match="convert it before loading"):
        slipstream.load(plain.target.model, "plain", dtype="float32")
    with pytest.raises(InputError, match="move it before loading"):
        slipstream.load(plain.target.model, "plain", device="meta")


@pytest.mark.parametrize(
    ("place", "asked", "expected"),
    [
        ("cpu", "cpu", True),
        ("cpu", "auto", True),
        ("cpu", "meta", False),
        ("meta:1", "meta", True),
        ("meta:1", "meta:0", False),
    ],
)
def test_a_loaded_model_is_where_it_was_asked_to_be_or_refused(place: str, asked: str, expected: bool) -> None:
    assert _is_on(torch.device(place), asked) is expected


def test_a_checkpoint_without_some_tensors_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder)
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp.up_proj" not in name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path, state_dict=weights)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        slipstream.load(tmp_path, "plain")
