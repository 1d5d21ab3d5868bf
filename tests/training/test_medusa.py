"""Training Medusa heads pays, resumes as if never interrupted, and asks every head for the token it drafts later."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from doubles import decode
from families import prompt_ids
from methods.eagle.eagle_reference import true_features
from methods.medusa.medusa_reference import cycling_pair
from oracle import oracle_generate
from slipstream.drafting.packing import padded
from slipstream.drafting.shape import Dynamic
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.eagle.settings import EagleSettings
from slipstream.methods.medusa.checkpoint import load_heads
from slipstream.methods.medusa.drafter import MedusaDrafter
from slipstream.methods.medusa.head import MedusaHeads
from slipstream.methods.medusa.recipe import MedusaLoss
from slipstream.methods.medusa.settings import MedusaSettings
from slipstream.target.target import Target
from slipstream.training.data.batches import laid_out
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.runs import EagleRun, MedusaRun, train_medusa

QUICK = MedusaSettings(
    steps=100, batch_size=8, learning_rate=1e-2, warmup_steps=5, num_heads=3, own_lm_heads=False, report_every=50
)


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    """Accelerate keeps precision and device in a singleton for the whole process."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def target() -> Target:
    """Goes round a cycle of all tokens, so that later tokens can be learnt from one feature."""
    return Target(cycling_pair()[0].model.float())


@pytest.fixture(scope="module")
def exact() -> Target:
    """The same in float64."""
    return cycling_pair()[0]


@pytest.fixture(scope="module")
def dialogues() -> list[Dialogue]:
    """The target's own answers."""
    cycle = cycling_pair()[2] * 2
    starts = (7 * number % 64 for number in range(120))
    return [Dialogue(tuple(cycle[start : start + 22]), (*[False] * 6, *[True] * 16)) for start in starts]


@pytest.fixture(scope="module")
def trained(target, dialogues, tmp_path_factory) -> tuple[MedusaHeads, Path]:
    from accelerate.state import AcceleratorState

    out = tmp_path_factory.mktemp("heads")
    heads = train_medusa(target, dialogues, out, QUICK)
    AcceleratorState._reset_state(reset_partial_state=True)
    return heads, out


def fresh(target: Target, *, own: bool = False) -> MedusaHeads:
    return MedusaHeads.like(target, num_heads=3, own_lm_heads=own)


def batch(target: Target, dialogues: list[Dialogue]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids, answer = (padded(one, [len(d.token_ids) for d in dialogues]) for one in laid_out(dialogues))
    return ids, torch.stack([true_features(target, row) for row in ids.tolist()]), answer


def losses_of(heads: MedusaHeads, target: Target, dialogues: list[Dialogue], labels: str = "text"):
    with torch.no_grad():
        return MedusaLoss(heads, target)(*batch(target, dialogues), labels)


# -- what training does --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["text", "target"])
@pytest.mark.parametrize("own", [True, False])
def test_training_lowers_the_loss_of_every_head(own, labels, target, dialogues, tmp_path):
    settings = replace(QUICK, steps=60, own_lm_heads=own, labels=labels)
    heads = train_medusa(target, dialogues, tmp_path, settings)
    before, after = (losses_of(one, target, dialogues[:30], labels)[0] for one in (fresh(target, own=own), heads))
    assert (after < 0.9 * before).all()


def test_settings_and_losses_lie_beside_the_heads(trained):
    log = json.loads((trained[1] / "training.json").read_text())
    assert [entry["step"] for entry in log["losses"]] == [50, 100]
    last = log["losses"][-1]
    assert last["loss"] == pytest.approx(sum(0.8**i * last[f"head_{i}_loss"] for i in range(3)), rel=1e-5)
    assert len(last["held_out"]) == 3
    assert min(last["held_out"]) > 5 / 64, "no better than chance on text it has not seen"
    assert log["settings"]["learning_rate"] == QUICK.learning_rate
    assert last["learning_rate"] < 0.01 * QUICK.learning_rate, "the cosine ends at zero"
    config = json.loads((trained[1] / "config.json").read_text())
    assert (config["slipstream"]["steps"], config["medusa_num_heads"]) == (100, 3)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_trained_heads_are_accepted_more_and_change_no_token(temperature, trained, exact):
    prompts = [prompt_ids(6, seed=seed) for seed in range(200, 203)]
    settings = {"max_new_tokens": 16, "temperature": temperature, "seed": 3}

    def passes(heads: MedusaHeads) -> int:
        engine = Engine(exact, MedusaDrafter(exact, heads, Dynamic(width=4, depth=3, total=10)))
        answers = [decode(engine, prompt, **settings) for prompt in prompts]
        assert [one.ids for one in answers] == [oracle_generate(exact.model, p, **settings) for p in prompts]
        return sum(len(one.steps) for one in answers)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the saved heads record this target, whatever its dtype
        assert passes(load_heads(trained[1], exact)) < 0.8 * passes(fresh(exact).double())


# -- resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [7, 16])
def test_a_resumed_run_continues_identically(stop, target, dialogues, tmp_path):
    """Stopped in the middle of an epoch (13 batches each) and in the second one."""
    settings = replace(QUICK, steps=22, report_every=stop)
    whole = train_medusa(target, dialogues, tmp_path / "whole", settings)
    for report in MedusaRun(target, dialogues, tmp_path / "parts", settings).steps():
        if report.step == stop:
            break
    resumed = MedusaRun(target, dialogues, tmp_path / "parts", settings)
    assert resumed.resume()
    assert next(iter(resumed.steps())).step == stop + 1
    parts = train_medusa(target, dialogues, tmp_path / "parts", settings)
    assert all(torch.equal(tensor, parts.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_a_run_of_another_method_is_not_continued(target, dialogues, tmp_path):
    settings = EagleSettings(steps=2, batch_size=8, report_every=1)
    EagleRun(target, dialogues, tmp_path, settings).finish()
    with pytest.raises(InputError, match=r"has other settings: .*method None"):
        MedusaRun(target, dialogues, tmp_path, QUICK).resume()


# -- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["text", "target"])
@pytest.mark.parametrize("own", [True, False])
def test_the_loss_asks_every_head_for_its_token(own, labels, target, dialogues):
    """Against one row at a time: head i from the feature of token t, token t + 2 + i."""
    heads = fresh(target, own=own)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        heads.weight.copy_(torch.randn(heads.weight.shape, generator=rng) * 0.2)
    short = Dialogue(dialogues[1].token_ids[:9], dialogues[1].answer[:9])
    uneven = [dialogues[0], short, Dialogue((5, 6, 7), (True,) * 3)]
    ids, features, answer = batch(target, uneven)
    loss, score = losses_of(heads, target, uneven, labels)
    for head in range(3):
        terms, correct = [], 0
        for row, place in answer.nonzero().tolist():
            start = place - 2 - head
            if start >= 0:
                log_q = heads.all_logits(features[row, start][None], target)[head].log_softmax(-1)
                p = target.head(features[row, place - 1][None, None])[0, 0].softmax(-1)
                label = torch.nn.functional.one_hot(ids[row, place], 64).float() if labels == "text" else p
                terms.append(-(label * log_q).sum().item())
                correct += int(log_q.argmax() == label.argmax())
        assert score.num_rows[head] == len(terms)
        assert score.num_correct[head] == correct
        assert loss[head].item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_large_batches_are_taken_in_parts(target, dialogues, monkeypatch):
    loss = MedusaLoss(fresh(target), target)
    arguments = batch(target, dialogues[:3])

    def gradient() -> torch.Tensor:
        loss.zero_grad()
        loss(*arguments, "target")[0].sum().backward()
        return loss.heads.weight.grad.clone()

    whole = gradient()
    monkeypatch.setattr("slipstream.drafting.parts._MAX_LOGITS", 4 * 5 * target.vocab_size)
    assert torch.allclose(gradient(), whole, atol=1e-6)
    target.model.zero_grad()


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mixtral"])
def test_heads_of_other_families_train(name, family_model, tmp_path):
    target = Target(family_model(name))
    dialogues = [Dialogue(tuple(prompt_ids(12, seed=seed)), (True,) * 12) for seed in range(8)]
    settings = replace(QUICK, steps=12, report_every=12, batch_size=4, held_out=0)
    reports = list(MedusaRun(target, dialogues, tmp_path, settings).steps())
    assert reports[-1].loss < reports[0].loss
    assert reports[-1].held_out == ()
    load_heads(tmp_path, target)


@pytest.mark.parametrize("wrong", [{"num_heads": 0}, {"labels": "data"}, {"head_decay": 0.0}, {"steps": 0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError):
        MedusaSettings(**wrong)
