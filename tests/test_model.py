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


def test_another_method_shares_the_target_and_leaves_the_model_usable(plain: slipstream.Model) -> None:
    expected = plain.generate("Hello", max_new_tokens=12).token_ids
    other = plain.with_method("layer-skip", width=2, tree=None)
    assert (other.method, other.target is plain.target, plain.method) == ("layer-skip", True, "plain")
    drafted = other.generate("Hello", max_new_tokens=12)
    assert drafted.token_ids == plain.generate("Hello", max_new_tokens=12).token_ids == expected
    assert drafted.stats.num_drafted > 0
    with pytest.raises(InputError, match="Did you mean 'layer-skip'"):
        plain.with_method("layerskip")
    with pytest.raises(InputError, match="no option 'branches'"):
        plain.with_method("layer-skip", branches=2)


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


class Streamer:
    """What a streamer of transformers' is told."""

    def __init__(self) -> None:
        self.told: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.told.append((value[0] if value.dim() > 1 else value).tolist())

    def end(self) -> None:
        self.ended += 1


def test_names_of_transformers_mean_the_same(plain: slipstream.Model) -> None:
    settings = {"max_new_tokens": 40, "temperature": 1.0, "seed": 3}
    free = plain.generate("Hello", **settings)
    stop = next(character for character in free.text[4:] if character.isprintable() and character != "�")
    stopped = plain.generate("Hello", stop_strings=[stop], tokenizer=plain.tokenizer, **settings)
    assert stopped.token_ids == plain.generate("Hello", stop=stop, **settings).token_ids != free.token_ids
    length = len(free.prompt_ids)
    short = plain.generate("Hello", max_length=length + 5, temperature=1.0, seed=3)
    assert short.token_ids == free.token_ids[:5]
    config = GenerationConfig(max_new_tokens=5, do_sample=True, temperature=1.0)
    assert plain.generate("Hello", config, seed=3).token_ids == free.token_ids[:5]
    encoded = plain.tokenizer("Hello", return_tensors="pt")
    spread = plain.generate(**encoded, max_new_tokens=5, temperature=0.0)
    assert spread.prompt_ids == encoded["input_ids"][0].tolist()


def test_arguments_that_ask_for_nothing_are_accepted(plain: slipstream.Model) -> None:
    from transformers import LogitsProcessorList, StoppingCriteriaList

    harmless = {
        **{"pad_token_id": 0, "bos_token_id": 1, "use_cache": True, "return_dict_in_generate": True},
        **{"output_scores": False, "synced_gpus": False, "early_stopping": False, "streamer": None},
        **{"logits_processor": LogitsProcessorList(), "stopping_criteria": StoppingCriteriaList()},
    }
    settings = {"max_new_tokens": 6, "temperature": 0.0}
    assert plain.generate("Hi", **harmless, **settings).token_ids == plain.generate("Hi", **settings).token_ids


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"use_cache": False}, "use_cache=False is not served: drafts are verified on cached keys"),
        ({"output_scores": True}, "logprobs=N reports"),
        ({"output_hidden_states": True}, "hidden states are not kept"),
        ({"logits_processor": [len]}, "bad_words_ids, sequence_bias"),
        ({"stopping_criteria": [len]}, "use stop, eos_token_id or max_new_tokens"),
        ({"stop": "a", "stop_strings": "b"}, "stop and stop_strings are one setting"),
        ({"max_length": 9, "max_new_tokens": 9}, "max_new_tokens and max_length both limit the answer"),
        ({"max_length": 1}, "but max_length of prompt and answer is 1"),
        ({"max_length": 2.5}, "max_length is 2.5"),
        ({"streamer": print}, r"model\.stream\(\.\.\.\)"),
        ({"input_ids": [1, 2]}, "the prompt was given twice"),
        ({"max_tokens": 3}, "max_new_tokens, .*stop, seed, .*temperature.*Did you mean"),
        ({"enable_thinking": False}, "does not read 'enable_thinking'"),
        ({"tools": [{"type": "function"}]}, "no place for tools"),
        ({"chat_template_kwargs": {"messages": []}}, "no argument of the template's own"),
        ({"chat_template_kwargs": 3}, "is of type int; give a dictionary"),
        ({"continue_final_message": True}, "give the prompt as a list of messages"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_the_name_to_use(
    plain: slipstream.Model, settings: dict[str, object], line: str
) -> None:
    with pytest.raises(InputError, match=line) as caught:
        plain.generate("Hi", **settings)
    assert "\n" not in str(caught.value)


def test_a_streamer_is_told_the_prompt_the_tokens_and_the_end(skipping: slipstream.Model) -> None:
    streamer = Streamer()
    answer = skipping.generate("Hello", max_new_tokens=20, temperature=1.0, seed=3, streamer=streamer)
    assert streamer.told[0] == answer.prompt_ids
    assert [token for told in streamer.told[1:] for token in told] == answer.token_ids
    assert streamer.ended == 1
    stream = skipping.stream("Hello", max_new_tokens=20, temperature=1.0, seed=3, streamer=streamer)
    next(stream)
    stream.close()
    assert streamer.ended == 2


def test_help_describes_every_argument(plain: slipstream.Model) -> None:
    from slipstream.arguments import OWN_NAMES

    described = slipstream.Model.generate.__doc__ or ""
    assert [name for name in (*OWN_NAMES, "temperature", "stop_strings") if name not in described] == []


def test_a_trailing_assistant_message_is_continued(plain: slipstream.Model) -> None:
    asked = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    decode = plain.tokenizer.decode
    assert decode(plain.encode(asked)) == "<|user|>Hi<|end|><|assistant|>Well"
    assert plain.encode(asked, continue_final_message=True) == plain.encode(asked)
    own = plain.encode(asked, continue_final_message=False)
    assert decode(own) == "<|user|>Hi<|end|><|assistant|>Well<|end|><|assistant|>"
    again = plain.generate(asked, max_new_tokens=5, temperature=0.0)
    assert again.prompt_ids == plain.encode(asked)
    with pytest.raises(InputError, match="which this prompt does not go through"):
        plain.encode([1, 2], continue_final_message=True)
    with pytest.raises(InputError, match="unknown argument 'toolz'"):
        plain.encode("Hi", toolz=[])


CALLING = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['tool_calls'] %}{{ m['tool_calls'] | tojson }}{% else %}{{ '' + m['content'] }}{% endif %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is false %}!{% endif %}{% endif %}"
)
CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]


def test_tools_calls_and_a_templates_own_arguments_are_rendered(
    plain: slipstream.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(a: int) -> int:
        """Add one.

        Args:
            a: a number
        """
        return a + 1

    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": CALL}]
    with pytest.raises(InputError, match="no place for tool_calls"):
        plain.encode(messages)
    monkeypatch.setattr(plain.tokenizer, "chat_template", CALLING)
    text = plain.tokenizer.decode(plain.encode(messages, tools=[add], enable_thinking=False))
    assert '"name": "add"' in text.partition("<|user|>")[0]
    assert text.partition("<|user|>")[2].startswith("Hi<|end|><|assistant|>[{")
    assert text.endswith("<|end|><|assistant|>!")
    assert plain.tokenizer.decode(plain.encode("Hi", chat_template_kwargs={"enable_thinking": True})).endswith("|>")


def test_a_call_without_content_is_an_empty_text_where_the_template_wants_one(
    plain: slipstream.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = CALLING.replace("{% else %}{{ '' + m['content'] }}{% endif %}", "{% endif %}{{ '' + m['content'] }}")
    monkeypatch.setattr(plain.tokenizer, "chat_template", template)
    for message in (
        {"role": "assistant", "tool_calls": CALL},
        {"role": "assistant", "tool_calls": CALL, "content": None},
    ):
        assert plain.tokenizer.decode(plain.encode([message])).endswith("}}]<|end|><|assistant|>")


def test_speed_against_plain_is_estimated_from_the_answers_own_cycles(skipping: slipstream.Model) -> None:
    from slipstream.plain_speed import plain_seconds
    from slipstream.runtime.costs import PassCosts

    def step(tokens: int, drafted: int, verify_s: float, scouts: int = 0) -> Step:
        return Step(
            token_ids=(7,) * tokens,
            num_drafted=drafted,
            num_accepted=tokens - 1,
            num_scouts=scouts,
            draft_s=0.5,
            verify_s=verify_s,
            host_s=0.1,
        )

    costs = PassCosts(((1, ((1, 1.0), (3, 2.0))), (101, ((1, 2.0), (3, 3.0)))))
    assert plain_seconds([step(3, 2, 4.0)], 1, costs) == pytest.approx(3 * (4.0 / 2 + 0.1))
    assert plain_seconds([step(3, 1, 4.0, scouts=1)], 1, costs) == pytest.approx(3 * (4.0 / 2 + 0.1))
    assert plain_seconds([step(3, 2, 3.0)], 101, costs) == pytest.approx(3 * (2.0 + 0.1))
    drafted = [step(3, 2, 4.0), step(1, 0, 0.9), step(1, 0, 1.1), step(1, 0, 1.0)]
    assert plain_seconds(drafted, 1, None) == pytest.approx(6 * 1.1)
    assert plain_seconds(drafted[:3], 1, None) is None
    stats = Stats.of(drafted, 9.0, plain_s=6.6)
    assert stats.speedup == pytest.approx(6.6 / (4 * 0.6 + 7.0))
    assert (stats + stats).plain_s == pytest.approx(13.2)
    assert (stats + Stats.of(drafted, 9.0)).speedup is None
    assert (Stats() + stats).speedup == stats.speedup
    assert stats.to_dict()["speedup"] == stats.speedup


def test_16_bit_dtypes_are_noted_once_when_loading(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="slipstream"):
        slipstream.load(folder, "prompt-lookup", dtype="bfloat16", device="cpu")
    assert caplog.text.count("docs/losslessness.md") == 1
    caplog.clear()
    with caplog.at_level("INFO", logger="slipstream"):
        slipstream.load(folder, "prompt-lookup", dtype="float32", device="cpu")
        slipstream.load(folder, "plain", dtype="bfloat16", device="cpu")
    assert "docs/losslessness.md" not in caplog.text
