"""Every node of a tree against transformers' own LogitsProcessorList on that node's own text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import (
    ExponentialDecayLengthPenalty,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from slipstream.core.logits import LogitsPipeline, resolve
from slipstream.errors import InputError

VOCAB, EOS, MAX_NEW = 24, (1, 5), 9


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=VOCAB, **size, initializer_range=0.5)
    target = LlamaForCausalLM(config).eval()
    target.generation_config = GenerationConfig(eos_token_id=list(EOS), pad_token_id=0, bos_token_id=2)
    return target


class OpenAIPenalties(LogitsProcessor):
    """The presence and frequency penalties as OpenAI's documentation defines them, token by token."""

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        self.prompt_length, self.presence, self.frequency = prompt_length, presence, frequency

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        answer = input_ids[0, self.prompt_length :].tolist()
        for token in set(answer):
            scores[0, token] -= self.presence
            scores[0, token] -= self.frequency * answer.count(token)
        return scores


class DecaySparingRemoved(ExponentialDecayLengthPenalty):
    """transformers 5.17 makes a nan of a token that is already removed; later versions leave it as it is."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.where(scores.isfinite(), super().__call__(input_ids, scores), scores)


def transformers_list(model: LlamaForCausalLM, values: dict[str, Any], prompt_length: int) -> LogitsProcessorList:
    """What `model.generate(**values)` would apply, with the two OpenAI penalties after the repetition penalty."""
    values = {"top_k": 0, "do_sample": "temperature" in values, "max_new_tokens": MAX_NEW} | values
    presence, frequency = values.pop("presence_penalty", 0.0), values.pop("frequency_penalty", 0.0)
    config, _ = model._prepare_generation_config(None, **values)
    model._prepare_special_tokens(config, device="cpu")
    config = model._prepare_generated_length(config, True, True, "input_ids", prompt_length, None)
    processors = model._get_logits_processor(config, input_ids_seq_length=prompt_length, device="cpu")
    for processor in processors:
        if isinstance(processor, ExponentialDecayLengthPenalty):
            processor.__class__ = DecaySparingRemoved
    first = (SequenceBiasLogitsProcessor, RepetitionPenaltyLogitsProcessor)
    place = sum(type(processor) in first for processor in processors)
    processors.insert(place, OpenAIPenalties(prompt_length, presence, frequency))
    return processors


def pipeline_for(values: dict[str, Any], prompt: list[int]) -> LogitsPipeline:
    length = len(prompt)
    resolved = resolve(GenerationConfig(), values, prompt_length=length, max_new_tokens=MAX_NEW, eos_token_ids=EOS)
    pipeline = LogitsPipeline(resolved, vocab_size=VOCAB, device="cpu")
    pipeline.start(prompt)
    return pipeline


def paths(parents: list[int]) -> list[list[int]]:
    """Node numbers from the root's child to each node, itself included."""
    result: list[list[int]] = []
    for node, parent in enumerate(parents):
        result.append([*(result[parent] if parent >= 0 else []), node])
    return result


def ancestors_of(parents: list[int]) -> Tensor:
    mask = torch.zeros(len(parents) + 1, len(parents) + 1, dtype=torch.bool)
    mask[:, 0] = True
    for node, path in enumerate(paths(parents)):
        mask[node + 1, [1 + ancestor for ancestor in path]] = True
    return mask


TOKENS = st.integers(0, VOCAB - 1)


@st.composite
def scenes(draw: st.DrawFn) -> dict[str, Any]:
    """A prompt, a few commits, a tree and its logits."""
    num_nodes = draw(st.integers(0, 9))
    parents = [draw(st.integers(-1, node - 1)) for node in range(num_nodes)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return {
        "prompt": draw(st.lists(TOKENS, min_size=1, max_size=6)),
        "commits": draw(st.lists(st.lists(TOKENS, min_size=1, max_size=3), max_size=3)),
        "tokens": draw(st.lists(TOKENS, min_size=num_nodes, max_size=num_nodes)),
        "parents": parents,
        "logits": torch.randn(num_nodes + 1, VOCAB, generator=generator, dtype=dtype) * 4,
    }


def processed(values: dict[str, Any], scene: dict[str, Any]) -> Tensor:
    pipeline = pipeline_for(values, scene["prompt"])
    for token_ids in scene["commits"]:
        pipeline.commit(token_ids)
    tokens = torch.tensor(scene["tokens"], dtype=torch.int64)
    return pipeline.process(scene["logits"], tokens, ancestors_of(scene["parents"]))


def expected(model: LlamaForCausalLM, values: dict[str, Any], scene: dict[str, Any]) -> Tensor:
    processors = transformers_list(model, values, len(scene["prompt"]))
    committed = [*scene["prompt"], *(token for token_ids in scene["commits"] for token in token_ids)]
    texts = [committed] + [committed + [scene["tokens"][i] for i in path] for path in paths(scene["parents"])]
    rows = [processors(torch.tensor([text]), row[None]) for text, row in zip(texts, scene["logits"], strict=True)]
    return torch.cat(rows)


def assert_identical(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


ALONE: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "repetition_reward": {"repetition_penalty": 0.7},
    "presence_penalty": {"presence_penalty": 0.75},
    "frequency_penalty": {"frequency_penalty": -1.5},
    "no_repeat_unigrams": {"no_repeat_ngram_size": 1},
    "no_repeat_bigrams": {"no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": [[5], [7], [0, 3], [2, 4, 6], *([a, a] for a in range(VOCAB))]},
    "sequence_bias": {"sequence_bias": {(5,): 2.0, (3, 7): -1.5, **{(a, 4): 3.0 for a in range(VOCAB)}}},
    "min_length": {"min_length": 6},
    "min_new_tokens": {"min_new_tokens": 4},
    "forced_bos": {"forced_bos_token_id": 3},
    "forced_eos": {"forced_eos_token_id": 1},
    "forced_eos_choice": {"forced_eos_token_id": [1, 5]},
    "exponential_decay": {"exponential_decay_length_penalty": (1, 1.5)},
    "suppress": {"suppress_tokens": [0, 4, 9]},
    "begin_suppress": {"begin_suppress_tokens": [3, 8, 9, 10]},
    "renormalize": {"renormalize_logits": True},
    "temperature": {"temperature": 0.6},
    "top_k": {"temperature": 1.0, "top_k": 3},
    "top_p": {"temperature": 1.0, "top_p": 0.8},
    "min_p": {"temperature": 1.0, "min_p": 0.2},
    "top_h": {"temperature": 1.5, "top_h": 0.4, "top_k": 12},
    "typical_p": {"temperature": 1.0, "typical_p": 0.7},
    "epsilon_cutoff": {"temperature": 1.0, "epsilon_cutoff": 0.03},
    "eta_cutoff": {"temperature": 1.0, "eta_cutoff": 0.05},
}

CHANGED_SCENE: dict[str, Any] = {  # one in which each of the settings above has something to do at some row
    "prompt": [3],
    "commits": [],
    "tokens": [4, 4, 7, 3, 2, 4, 6, 9, 1],
    "parents": [-1, 0, 0, 2, 3, 4, 5, 6, 7],
    "logits": torch.randn(10, VOCAB, generator=torch.Generator().manual_seed(1)) * 4,
}


@pytest.mark.parametrize("name", ALONE)
def test_each_setting_changes_the_logits(name: str) -> None:
    assert not torch.equal(processed(ALONE[name], CHANGED_SCENE), CHANGED_SCENE["logits"])


@pytest.mark.parametrize("name", ALONE)
@settings(max_examples=25, deadline=None)
@given(scene=scenes())
def test_every_node_sees_what_transformers_applies(model: LlamaForCausalLM, name: str, scene: dict[str, Any]) -> None:
    before = scene["logits"].clone()
    assert_identical(processed(ALONE[name], scene), expected(model, ALONE[name], scene))
    assert torch.equal(scene["logits"], before)


@settings(max_examples=150, deadline=None)
@given(scene=scenes(), names=st.lists(st.sampled_from(sorted(ALONE)), min_size=2, max_size=8, unique=True))
def test_every_node_sees_combinations_in_transformers_order(
    model: LlamaForCausalLM, scene: dict[str, Any], names: list[str]
) -> None:
    values = {key: value for name in names for key, value in ALONE[name].items()}
    assert_identical(processed(values, scene), expected(model, values, scene))


@settings(max_examples=25, deadline=None)
@given(scene=scenes())
def test_invalid_values_are_removed_as_transformers_does(model: LlamaForCausalLM, scene: dict[str, Any]) -> None:
    scene["logits"][:, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    values = {"remove_invalid_values": True, "repetition_penalty": 1.2}
    assert_identical(processed(values, scene), expected(model, values, scene))


def test_half_precision_is_processed_in_float32_as_generate_does(model: LlamaForCausalLM) -> None:
    values = {"repetition_penalty": 1.3, "temperature": 0.6, "top_p": 0.8}
    half = CHANGED_SCENE | {"logits": CHANGED_SCENE["logits"].bfloat16()}
    widened = CHANGED_SCENE | {"logits": half["logits"].float()}
    assert torch.equal(processed(values, half), expected(model, values, widened))


IN_GENERATE = [
    n for n, values in ALONE.items() if not {"temperature", "presence_penalty", "frequency_penalty"} & {*values}
]


@pytest.mark.parametrize("name", IN_GENERATE)
@pytest.mark.parametrize("prompt", [[2], [2, 9, 4, 9]])
def test_greedy_text_equals_generate(model: LlamaForCausalLM, name: str, prompt: list[int]) -> None:
    text = model.generate(torch.tensor([prompt]), max_new_tokens=MAX_NEW, do_sample=False, **ALONE[name])[0].tolist()
    pipeline, ours = pipeline_for(ALONE[name], prompt), list(prompt)
    while len(ours) < len(prompt) + MAX_NEW and not (len(ours) > len(prompt) and ours[-1] in EOS):
        with torch.no_grad():
            logits = model(torch.tensor([ours])).logits[0, -1:]
        token = int(pipeline.process(logits).argmax())
        pipeline.commit([token])
        ours.append(token)
    assert ours == text


@pytest.mark.parametrize("values", [{}, {"temperature": 1.0}, {"repetition_penalty": 1.0, "min_new_tokens": 0}])
def test_nothing_set_is_no_work(values: dict[str, Any]) -> None:
    pipeline = pipeline_for(values, [1, 2])
    logits = torch.randn(1, VOCAB)
    assert pipeline.is_identity
    assert not pipeline.needs_path
    assert pipeline.process(logits) is logits


def test_only_settings_that_read_the_text_need_the_tree() -> None:
    assert not pipeline_for({"temperature": 0.7, "top_p": 0.5, "renormalize_logits": True}, [1]).needs_path
    assert all(pipeline_for(ALONE[name], [1]).needs_path for name in ("repetition_penalty", "min_length", "bad_words"))


@pytest.mark.parametrize("name", ["repetition_penalty", "frequency_penalty", "no_repeat_bigrams"])
def test_a_second_generation_equals_itself_alone(name: str) -> None:
    alone, reused = pipeline_for(ALONE[name], [3, 4]), pipeline_for(ALONE[name], [7, 8, 9])
    reused.commit([4, 4, 10])
    reused.start([3, 4])
    for pipeline in (alone, reused):
        pipeline.commit([4, 3])
    logits = CHANGED_SCENE["logits"][:1]
    assert torch.equal(alone.process(logits), reused.process(logits))


@pytest.mark.parametrize(
    "values",
    [{"bad_words_ids": [[3, VOCAB]]}, {"sequence_bias": {(VOCAB,): 1.0}}, {"forced_eos_token_id": VOCAB + 1}],
)
def test_tokens_outside_the_vocabulary_are_named(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"{next(iter(values))} holds token \d+, but the vocabulary is 0-23"):
        pipeline_for(values, [1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_frequent_settings_do_not_wait_for_the_device() -> None:
    values = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "min_new_tokens": 3, "suppress_tokens": [4]}
    values |= {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1}
    resolved = resolve(GenerationConfig(), values, prompt_length=1, max_new_tokens=MAX_NEW, eos_token_ids=EOS)
    pipeline = LogitsPipeline(resolved, vocab_size=VOCAB, device="cuda")
    pipeline.start(CHANGED_SCENE["prompt"])
    inputs = (CHANGED_SCENE["logits"], torch.tensor(CHANGED_SCENE["tokens"]), ancestors_of(CHANGED_SCENE["parents"]))
    on_device = [tensor.cuda() for tensor in inputs]
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = pipeline.process(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), processed(values, CHANGED_SCENE))
