"""Transformers' own decoding runs on the same model with the same distribution and cuts, and is counted as ours is."""

from __future__ import annotations

import copy
import logging
import random

import pytest
import torch

import slipstream
from families import FAMILIES, build, prompt_ids
from slipstream.bench.peer_settings import generation_config_of, peer_settings
from slipstream.bench.peers import PEERS, _answer, peer
from slipstream.core.logits import LogitsPipeline, resolve
from slipstream.errors import ContextLengthError, InputError, UnsupportedTargetError
from slipstream.methods.draft_model.checkpoint import PROVENANCE
from slipstream.runtime.compiled import has_compiler
from slipstream.target.target import Target

PROMPT = prompt_ids(9, seed=2) * 3
EAGER = [name for name in PEERS if name != "hf-compiled"]
"""The other compiles for half a minute: its tests stand by themselves."""


@pytest.fixture(scope="module")
def target() -> Target:
    """A target of this file's own: its generation_config is set by tests."""
    return Target(build("llama", num_hidden_layers=4))


def draft_for(target: Target):
    """The target with some noise on it: drafts of which some are right."""
    draft = copy.deepcopy(target.model)
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype)
    setattr(draft.config, PROVENANCE, {"target": target.hash})
    return draft


@pytest.fixture(scope="module")
def peers(target):
    """Every peer on the target."""
    options = {"hf-assisted": {"draft": draft_for(target)}, "hf-early-exit": {"exit_layer": 3}}
    return {name: peer(name, target, **options.get(name, {})) for name in EAGER}


@pytest.fixture
def config(target):
    """The target's generation_config, put back afterwards."""
    own = target.model.generation_config
    target.model.generation_config = copy.deepcopy(own)
    yield target.model.generation_config
    target.model.generation_config = own


def ask(peer, prompt=PROMPT, **settings):
    return peer.generate(prompt, **{"max_new_tokens": 16, "temperature": 0.0, "seed": 1, **settings})


def ours(target, prompt=PROMPT, **settings):
    settings = {"max_new_tokens": 16, "temperature": 0.0, **settings}
    return slipstream.load(target.model, "plain").generate(prompt, **settings)


# -- the same answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EAGER)
def test_greedy_tokens_equal_our_plain(name, peers, target):
    for seed in range(2):
        prompt = prompt_ids(6, seed) * 3
        assert ask(peers[name], prompt).token_ids == ours(target, prompt).token_ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", EAGER)
def test_the_answer_ends_with_the_first_end_token(name, temperature, peers, config):
    free = ask(peers[name], temperature=temperature, max_new_tokens=20)
    eos = free.token_ids[8]
    config.eos_token_id = [eos, 63] if eos != 63 else [eos]
    ended = ask(peers[name], temperature=temperature, max_new_tokens=20)
    ends = [place for place, token in enumerate(ended.token_ids) if token in config.eos_token_id]
    assert ends == [len(ended.token_ids) - 1] or (not ends and len(ended.token_ids) == 20)
    if temperature == 0:
        assert ended.token_ids == free.token_ids[: len(ended.token_ids)]
        assert ends


@pytest.mark.parametrize("name", EAGER)
def test_the_context_cuts_the_answer_as_it_cuts_ours(name, peers, target):
    prompt = prompt_ids(target.context_length - 5, seed=1)
    answer = ask(peers[name], prompt)
    assert answer.token_ids == ours(target, prompt).token_ids
    assert len(answer.token_ids) == 5
    with pytest.raises(ContextLengthError):
        ask(peers[name], prompt_ids(target.context_length, seed=1))


def test_what_stands_behind_the_end_is_cut():
    def cut(emitted, budget=10):
        answer = _answer(emitted, budget, [7], 1.0, 0.5)
        return answer.token_ids, answer.accept_lengths, answer.num_passes

    assert cut([[1], [2, 7, 3], [4]]) == ([1, 2, 7], [0, 1, 1], 2)
    assert cut([[1, 2], [3, 4, 5]], budget=4) == ([1, 2, 3, 4], [0, 0, 2], 2)
    assert cut([[7], [7]]) == ([7], [0, 1], 1)


# -- the same distribution -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"top_k": 5},
        {"top_k": 9, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"typical_p": 0.7, "suppress_tokens": [3, 4], "begin_suppress_tokens": [8], "min_new_tokens": 2},
    ],
)
@pytest.mark.parametrize(
    "asked", [{"temperature": 1.0}, {"temperature": 0.6, "top_p": 0.7, "top_k": 0}, {"temperature": 0.0}]
)
def test_scores_are_ours(own, asked, target, config):
    config.update(eos_token_id=9, do_sample=True, **own)
    limits = {"prompt_length": len(PROMPT), "max_new_tokens": 3}
    processing = resolve(config, asked, **limits, eos_token_ids=[9])
    settings = peer_settings(target, len(PROMPT), max_new_tokens=3, **{"top_p": None, **asked})
    flags = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    settings.update(**flags)
    ids = torch.tensor([PROMPT])
    with generation_config_of(target.model, settings), torch.random.fork_rng():
        torch.manual_seed(0)
        output = target.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    pipeline = LogitsPipeline(processing, vocab_size=target.vocab_size, device="cpu")
    pipeline.start(PROMPT)
    for logits, scores, token in zip(output.logits, output.scores, output.sequences[0, len(PROMPT) :], strict=True):
        assert torch.equal(scores, pipeline.process(logits))
        pipeline.commit([int(token)])


def test_a_top_k_of_the_model_is_off_where_a_benchmark_says_so(peers, config):
    config.top_k = 1
    greedy, off = ask(peers["hf-plain"]), ask(peers["hf-plain"], temperature=1.0, top_k=0)
    assert ask(peers["hf-plain"], temperature=1.0).token_ids == greedy.token_ids != off.token_ids


def test_the_prefill_ends_with_the_first_token(peers):
    short, long = (ask(peers["hf-plain"], max_new_tokens=number) for number in (1, 40))
    assert 0 < short.prefill_s <= short.seconds
    assert 0 < long.prefill_s < long.seconds / 2


def test_a_model_that_asks_for_drafting_is_decoded_plainly_by_the_plain_peer(peers, target, config):
    config.prompt_lookup_num_tokens, config.assistant_early_exit = 4, 2
    assert ask(peers["hf-plain"]).accept_lengths == [0, 16]
    assert ask(peers["hf-early-exit"]).token_ids == ours(target).token_ids


# -- counting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", EAGER)
def test_passes_are_those_that_the_whole_target_made(name, temperature, peers, target, monkeypatch):
    made, nested = [], []
    generate = type(target.model).generate
    monkeypatch.setattr(target.model, "generate", lambda *a, **k: nested.append(0) or generate(target.model, *a, **k))
    hook = target.layers[-1].register_forward_hook(lambda *_: made.append(0))  # a pass that leaves early lacks it
    try:
        answer = ask(peers[name], temperature=temperature)
    finally:
        hook.remove()
    assert answer.num_passes == len(made) == sum(answer.accept_lengths)
    assert sum(length * count for length, count in enumerate(answer.accept_lengths)) == len(answer.token_ids) == 16
    assert len(nested) <= 1 + (answer.num_passes if name == "hf-early-exit" else 0)  # drafts do not draft themselves


def test_plain_makes_one_pass_a_token_as_ours_does(peers, target):
    answer, stats = ask(peers["hf-plain"]), ours(target).stats
    assert (answer.accept_lengths, answer.num_passes, answer.tau) == (stats.accept_lengths, stats.num_cycles, 1.0)


@pytest.mark.parametrize("name", ["hf-assisted", "hf-prompt-lookup", "hf-early-exit"])
def test_peers_that_draft_do_draft(name, peers):
    answer = ask(peers[name], max_new_tokens=40)
    assert 1 < answer.tau == 40 / answer.num_passes
    assert answer.seconds > 0


# -- nothing is left behind ----------------------------------------------------------------------------------------


def state_of(model):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.modules()]
    config, generation = copy.deepcopy(vars(model.config)), copy.deepcopy(vars(model.generation_config))
    return id(model.config), id(model.generation_config), config, generation, hooks, sorted(vars(model))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", EAGER)
def test_models_and_random_state_stay_as_they_were(name, fails, peers, target, config, monkeypatch):
    models = [target.model, *([peers[name].assistant] if peers[name].assistant else [])]
    for model in models:  # transformers then writes to the assistant's config
        monkeypatch.setattr(model.generation_config, "num_assistant_tokens_schedule", "heuristic")
    before = [state_of(model) for model in models]
    rng = torch.get_rng_state(), random.getstate()
    if fails:
        calls = []

        def forward(module, args):
            calls.append(0)
            drafting = target.model.config.num_hidden_layers < target.num_layers
            if len(calls) >= 5 and (drafting or name != "hf-early-exit"):
                raise RuntimeError("planted")

        hook = target.layers[0].register_forward_pre_hook(forward)
        with pytest.raises(RuntimeError, match="planted"):
            ask(peers[name], temperature=1.0, max_new_tokens=60)
        hook.remove()
    else:
        ask(peers[name], temperature=1.0)
    assert [state_of(model) for model in models] == before
    assert torch.equal(torch.get_rng_state(), rng[0])
    assert random.getstate() == rng[1]


@pytest.mark.parametrize("name", EAGER)
def test_the_seed_decides_a_sampled_answer(name, peers):
    first, other = ask(peers[name], temperature=1.0), ask(peers[name], temperature=1.0, seed=2)
    torch.rand(3)
    assert ask(peers[name], temperature=1.0).token_ids == first.token_ids != other.token_ids


@pytest.mark.parametrize("name", ["hf-plain", "hf-early-exit"])
def test_a_dynamic_rope_does_not_remember_a_longer_answer(name):
    longer, shorter = prompt_ids(45, seed=1), prompt_ids(36, seed=2)  # both beyond the original length
    fresh, used = (peer(name, Target(FAMILIES["dynamic-rope"]())) for _ in range(2))
    ask(used, longer)
    assert ask(used, shorter).token_ids == ask(fresh, shorter).token_ids


@pytest.mark.parametrize("name", ["hf-assisted", "hf-early-exit"])
def test_transformers_advice_to_itself_is_kept_off_the_log(name, peers, caplog):
    utils = logging.getLogger("transformers.generation.utils")
    caplog.set_level(logging.WARNING, logger=utils.name)
    utils.warning_once.cache_clear()  # it speaks once a process
    seen = Kept()
    utils.addHandler(seen)
    filters = list(utils.filters)
    try:
        ask(peers[name])
        assert seen.messages == []
        assert utils.filters == filters
        utils.warning("Passing `generation_config` together with generation-related arguments")
        assert len(seen.messages) == 1
    finally:
        utils.removeHandler(seen)


class Kept(logging.Handler):
    """A log's messages."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


# -- where a peer does not apply -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch to itself
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler is installed")
def test_compiled_passes_are_compiled_once_for_all_lengths_and_give_the_same_answers():
    from torch._dynamo.utils import counters

    target = Target(build("llama", num_hidden_layers=1))
    compiled, plain = peer("hf-compiled", target), peer("hf-plain", target)
    before = counters["stats"]["unique_graphs"]
    for length in (9, 27, 4):
        for temperature in (0.0, 1.0):
            asked = {"prompt": PROMPT[:length], "temperature": temperature}
            assert ask(compiled, **asked).token_ids == ask(plain, **asked).token_ids
    assert counters["stats"]["unique_graphs"] == before > 0


def test_a_model_that_transformers_does_not_compile_is_no_compiled_peer(target, monkeypatch):
    monkeypatch.setattr(type(target.model), "_valid_auto_compile_criteria", lambda *_: False)
    with pytest.raises(UnsupportedTargetError, match=r"hf-compiled does not apply.*does not compile it"):
        peer("hf-compiled", target)


def test_early_exit_refuses_models_that_run_all_layers_anyway(family_model):
    with pytest.raises(UnsupportedTargetError, match="runs 2 layers when transformers asks it to leave after 1"):
        peer("hf-early-exit", Target(family_model("gpt2")))


@pytest.mark.parametrize("exit_layer", [0, 4])
def test_early_exit_refuses_layers_out_of_range(exit_layer, target):
    with pytest.raises(InputError, match="1 to 3 can draft"):
        peer("hf-early-exit", target, exit_layer=exit_layer)


def test_assisted_refuses_another_number_of_token_ids(target):
    draft = build("llama", vocab_size=72)
    setattr(draft.config, PROVENANCE, {"target": target.hash})
    with pytest.raises(InputError, match="72 token ids, the target 64"):
        peer("hf-assisted", target, draft=draft)


def test_a_peer_that_transformers_cannot_run_is_refused_with_its_reason(target, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("planted")

    monkeypatch.setattr(type(target.model), "generate", fail)
    with pytest.raises(UnsupportedTargetError, match=r"hf-plain does not apply .* RuntimeError: planted"):
        peer("hf-plain", target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "hf-asisted"}, "Did you mean 'hf-assisted'"),
        ({"name": "hf-assisted"}, "needs a draft model"),
        ({"name": "hf-plain", "exit_layer": 1}, "takes no exit_layer"),
        ({"name": "hf-early-exit", "draft": "folder"}, "takes no draft"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, target):
    with pytest.raises(InputError, match=message):
        peer(target=target, **arguments)


def test_a_model_with_stop_strings_is_refused(target, config):
    config.stop_strings = ["end"]
    with pytest.raises(InputError, match="stop_strings"):
        peer("hf-plain", target)
