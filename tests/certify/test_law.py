"""Samples against the target's law: the cells cover every text, sound rules pass, biased ones do not."""

from __future__ import annotations

import copy

import pytest
import torch

from certify.certify_doubles import DTYPES
from families import build
from slipstream.certify.certificate import Certificate
from slipstream.certify.distribution import choose_subject, run_law_test
from slipstream.certify.law import NUM_TOKENS, cells_of
from slipstream.certify.options import Warping
from slipstream.errors import InputError
from slipstream.methods.registry import build_drafter
from slipstream.target.target import Target
from test_rejection import DRAFTERS, PROMPT, VOCAB, draw_rejected_children_again, recover_from_p, remembered

NUM_SAMPLES = 250


@pytest.fixture(scope="module")
def targets():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = build("llama", vocab_size=VOCAB, weight_std=0.4, **sizes)
    return {name: (Target(copy.deepcopy(model).to(dtype)), {}) for name, dtype in DTYPES.items()}


def law_test(target_and_memory, draft, rule, warping=None):
    target, memory = target_and_memory
    method, options = DRAFTERS[draft]
    subject = choose_subject(target, [(1, PROMPT)], warping or Warping(), NUM_SAMPLES)
    with remembered(target, memory):
        return run_law_test(
            target,
            build_drafter(method, target, options),
            subject,
            rule=rule,
            first_seed=0,
            num_samples=NUM_SAMPLES,
            num_tests=1,
            prefill_chunk=512,
            advance=lambda: None,
        )


def faults(test):
    return Certificate(provenance={}, method="layer-skip", answers=[], tests=[test], wall_s=0.0).faults()


@pytest.mark.parametrize(
    ("draft", "rule", "dtype"),
    [("chain", "rejection", "float32"), ("dynamic", "rejection", "bfloat16"), ("dynamic", "coupled", "float32")],
)
def test_sound_rules_follow_the_law(draft, rule, dtype, targets):
    test = law_test(targets[dtype], draft, rule)
    assert test.p_value > 1e-3
    assert not faults(test)
    assert test.num_cells > 15
    assert 0 < test.num_accepted < test.num_drafted


BIASED = {"chain": recover_from_p, "dynamic": draw_rejected_children_again}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("draft", BIASED)
def test_a_biased_residual_is_a_fault(draft, dtype, targets, monkeypatch):
    BIASED[draft](monkeypatch)
    (line,) = faults(law_test(targets[dtype], draft, "rejection"))
    assert "rejection samples do not follow the target's law" in line


def test_a_coupled_rule_with_wrong_noise_is_a_fault(targets, monkeypatch):
    """Half the noise: the samples are still seeded, but too seldom improbable."""
    monkeypatch.setattr(
        "slipstream.core.rules.choose_coupled",
        lambda logits, noise, rows: (logits + (noise if rows is None else noise[rows]) / 2).argmax(dim=-1),
    )
    assert faults(law_test(targets["float32"], "dynamic", "coupled"))


def test_the_law_is_that_of_the_settings(targets):
    """Temperature and truncation leave fewer texts, and samples under them follow their law."""
    warped = Warping(temperature=0.7, top_p=0.9)
    test = law_test(targets["float32"], "dynamic", "rejection", warped)
    assert not faults(test)
    assert test.num_cells < law_cells(targets["float32"][0], Warping())


def law_cells(target, warping):
    return len(choose_subject(target, [(1, PROMPT)], warping, NUM_SAMPLES).cells.probabilities)


def test_the_prompt_with_most_cells_is_chosen(targets):
    target, _ = targets["float32"]
    prompts = [(number, PROMPT[: number + 1]) for number in range(4)]
    sizes = {
        number: len(choose_subject(target, [(number, ids)], Warping(), 400).cells.probabilities)
        for number, ids in prompts
    }
    assert choose_subject(target, prompts, Warping(), 400).prompt_id == max(sizes, key=sizes.get)


def test_a_temperature_of_zero_has_no_law():
    with pytest.raises(InputError, match="temperature is 0"):
        Warping(temperature=0.0)


# -- cells ---------------------------------------------------------------------------------------------------------


def law(text):
    """Five tokens, unequal, and another order after every text; token 4 ends a text."""
    weights = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    return weights.roll(sum(text)) / weights.sum()


ENDS = frozenset({4})


def texts(text=(), probability=1.0):
    """Every text and its probability, one by one."""
    if len(text) == NUM_TOKENS or (text and text[-1] in ENDS):
        return {text: probability}
    found = {}
    for token, mass in enumerate(law(text).tolist()):
        found |= texts((*text, token), probability * mass)
    return found


@pytest.mark.parametrize("least", [0.001, 0.01, 0.05, 0.2, 0.9])
def test_cells_are_a_partition_with_the_probabilities_of_their_texts(least):
    cells = cells_of(law, ENDS, least)
    sums = [0.0] * len(cells.probabilities)
    for text, probability in texts().items():
        sums[cells.cell(text)] += probability
    assert sums == pytest.approx(cells.probabilities)
    assert sum(sums) == pytest.approx(1.0)
    assert min(sums) >= least - 1e-12


def test_probable_texts_have_cells_of_their_own():
    cells = cells_of(law, ENDS, 0.01)
    shared = {text: cells.cell(text) for text, probability in texts().items() if probability >= 0.01}
    assert len(set(shared.values())) == len(shared) > 10


def test_counts_are_those_of_the_cells():
    cells = cells_of(law, ENDS, 0.05)
    some = list(texts())[:7] * 3
    counts = cells.count(some)
    assert sum(counts) == 21
    assert counts == [sum(cells.cell(text) == index for text in some) for index in range(len(counts))]
