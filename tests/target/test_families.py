"""Every target family decodes losslessly with every drafter and with any tree; the others are refused with the reason.

Greedy text is compared with `transformers`' own `generate`, sampled text with the oracle; both in float64, where
rounding cannot flip a token.
"""

from __future__ import annotations

import functools

import pytest

import slipstream
from doubles import CONFIGURATIONS, Scripted, configured, decode, random_tree, right_behind_wrong
from families import DYNAMIC_ROPE, FAMILIES, ORIGINAL_CONTEXT, REFUSED, prompt_ids, transformers_greedy
from oracle import oracle_generate
from slipstream.engine.engine import Engine
from slipstream.errors import UnsupportedTargetError
from slipstream.target.probe import probe
from slipstream.target.target import Target

# Longer than every window; the rolling RoPEs cross their original length (32) in the middle of the answer.
PROMPT = prompt_ids(6, seed=1) * 2 + prompt_ids(12)
NUM_TOKENS = 16
assert len(PROMPT) < ORIGINAL_CONTEXT < len(PROMPT) + NUM_TOKENS


@pytest.fixture(scope="module")
def target(family_model):
    return functools.cache(lambda name: Target(family_model(name)))


@pytest.fixture(scope="module")
def greedy(family_model):
    """Greedy text of a family by transformers' generate."""

    @functools.cache
    def generate(name: str) -> list[int]:
        model = FAMILIES[name]() if name in DYNAMIC_ROPE else family_model(name)  # dynamic RoPE remembers past lengths
        return transformers_greedy(model, PROMPT, NUM_TOKENS)

    return generate


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_output_equals_transformers_generate(name, configuration, target, greedy):
    engine = Engine(target(name), configured(configuration, target(name)))
    assert decode(engine, PROMPT, max_new_tokens=NUM_TOKENS).ids == greedy(name)


@pytest.mark.parametrize("script", [random_tree, right_behind_wrong])
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_output_survives_any_tree(name, script, target, greedy):
    result = decode(Engine(target(name), Scripted(script, greedy(name))), PROMPT, max_new_tokens=NUM_TOKENS)
    assert result.ids == greedy(name)
    assert result.num_accepted > 0, "nothing was accepted, so nothing was tested"
    assert any(len(step.token_ids) > 2 for step in result.steps)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in DYNAMIC_ROPE])
def test_sampled_output_equals_the_oracle_for_any_tree(name, seed, target, family_model):
    sampling = {"temperature": 1.0, "seed": seed, "max_new_tokens": NUM_TOKENS}
    expected = oracle_generate(family_model(name), PROMPT, **sampling)
    result = decode(Engine(target(name), Scripted(random_tree, expected)), PROMPT, **sampling)
    assert result.ids == expected
    assert result.num_accepted > 0, "nothing was accepted, so nothing was tested"


@pytest.mark.parametrize("name", FAMILIES)
def test_long_prompts_prefilled_in_chunks_give_the_same_text(name, target, greedy):
    engine = Engine(target(name), Scripted(random_tree, greedy(name)), prefill_chunk=5)
    assert decode(engine, PROMPT, max_new_tokens=8).ids == greedy(name)[:8]


@pytest.mark.parametrize("name", FAMILIES)
def test_probe_accepts_the_family(name, target):
    probe(target(name))


@pytest.mark.parametrize("name", REFUSED)
def test_families_that_cannot_be_verified_are_refused_with_the_reason(name):
    build, reason = REFUSED[name]
    with pytest.raises(UnsupportedTargetError, match=f"(?i){reason}"):
        slipstream.load(build(), drafter="plain")


@pytest.mark.parametrize("name", ["mpt", "gpt_neo", "bloom", "falcon-alibi", "rwkv"])
def test_the_probe_alone_would_find_the_fault(name, monkeypatch):
    """The list of known models only words the reason; a model nobody thought of is caught by the probe."""
    monkeypatch.setattr("slipstream.target.target.refuse_unsupported", lambda model: None)
    with pytest.raises(UnsupportedTargetError, match="draft tree"):
        probe(Target(REFUSED[name][0]()))


def test_flash_attention_is_refused(family_model, monkeypatch):
    model = FAMILIES["llama"]()
    monkeypatch.setattr(model.config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(UnsupportedTargetError, match=r"flash_attention_2.*sdpa"):
        slipstream.load(model, drafter="plain")
