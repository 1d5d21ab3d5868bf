"""Training Hydra heads pays, resumes as if never interrupted, and asks every head for the token it drafts later."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from doubles import decode
from families import build, prompt_ids
from methods.eagle.eagle_reference import true_features
from methods.hydra.hydra_reference import reference_head, reference_logits, reference_prefix
from oracle import oracle_generate
from slipstream.drafting.packing import padded
from slipstream.drafting.shape import Dynamic
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.hydra.checkpoint import load_heads, published_names
from slipstream.methods.hydra.drafter import HydraDrafter
from slipstream.methods.hydra.head import HydraHeads
from slipstream.methods.hydra.recipe import TeacherLoss, new_heads
from slipstream.methods.hydra.settings import HydraSettings
from slipstream.target.target import Target
from slipstream.training.data.batches import laid_out
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.runs import HydraRun, train_hydra

QUICK = HydraSettings(
    steps=100,
    batch_size=8,
    learning_rate=3e-3,
    warmup_steps=5,
    num_heads=3,
    num_layers=2,
    own_lm_heads=False,
    dropout=0.05,
    report_every=50,
)


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    """Accelerate keeps precision and device in a singleton for the whole process."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(build("llama", weight_std=0.25, tie_word_embeddings=True).float())


@pytest.fixture(scope="module")
def dialogues(target) -> list[Dialogue]:
    """The target's own greedy answers to random prompts: what heads are to learn."""
    prompts = torch.tensor([prompt_ids(6, seed=seed) for seed in range(120)])
    with torch.inference_mode():
        rows = target.model.generate(prompts, max_new_tokens=16, do_sample=False, pad_token_id=0).tolist()
    return [Dialogue(tuple(row), (*[False] * 6, *[True] * (len(row) - 6))) for row in rows]


@pytest.fixture(scope="module")
def trained(target, dialogues, tmp_path_factory) -> tuple[HydraHeads, Path]:
    from accelerate.state import AcceleratorState

    out = tmp_path_factory.mktemp("heads")
    heads = train_hydra(target, dialogues, out, QUICK)
    AcceleratorState._reset_state(reset_partial_state=True)
    return heads, out


def losses_of(heads: HydraHeads, target: Target, dialogues: list[Dialogue]):
    ids, answer = (padded(one, [len(d.token_ids) for d in dialogues]) for one in laid_out(dialogues))
    features = torch.stack([true_features(target, row) for row in ids.tolist()])
    with torch.no_grad():
        return TeacherLoss(heads.eval(), target)(ids, features, answer)


# -- what training does --------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_of_every_head(trained, target, dialogues):
    torch.manual_seed(0)
    before, after = (losses_of(h, target, dialogues[:30])[0] for h in (new_heads(target, QUICK), trained[0]))
    assert (after < 0.9 * before).all()


def test_settings_and_losses_lie_beside_the_heads(trained):
    log = json.loads((trained[1] / "training.json").read_text())
    assert [entry["step"] for entry in log["losses"]] == [50, 100]
    last = log["losses"][-1]
    assert last["loss"] == pytest.approx(sum(last[f"head_{index}_loss"] for index in range(3)), rel=1e-5)
    assert len(last["held_out"]) == 3
    assert min(last["held_out"]) > 5 / 64, "no better than chance on text it has not seen"
    assert log["settings"]["learning_rate"] == QUICK.learning_rate
    assert last["learning_rate"] == pytest.approx(0.33 * QUICK.learning_rate, rel=0.01)
    config = json.loads((trained[1] / "config.json").read_text())
    assert (config["slipstream"]["steps"], config["slipstream"]["shared_lm_head"]) == (100, True)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_trained_heads_are_accepted_more_and_change_no_token(temperature, trained, target):
    exact = Target(build("llama", weight_std=0.25, tie_word_embeddings=True))
    prompts = [prompt_ids(6, seed=seed) for seed in range(200, 206)]
    settings = {"max_new_tokens": 16, "temperature": temperature, "seed": 3}

    def passes(heads: HydraHeads) -> int:
        engine = Engine(exact, HydraDrafter(exact, heads, Dynamic(width=4, depth=3, total=10)))
        answers = [decode(engine, prompt, **settings) for prompt in prompts]
        assert [one.ids for one in answers] == [oracle_generate(exact.model, p, **settings) for p in prompts]
        return sum(len(one.steps) for one in answers)

    torch.manual_seed(0)
    fresh = new_heads(exact, QUICK).place(exact.device, exact.dtype).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the saved heads record this target, whatever its dtype
        assert passes(load_heads(trained[1], exact)) < passes(fresh)


def test_the_target_stays_as_it_was(target, dialogues, tmp_path):
    before = {name: parameter.clone() for name, parameter in target.model.named_parameters()}
    run = HydraRun(target, dialogues, tmp_path, replace(QUICK, steps=2, own_lm_heads=True))
    steps = run.steps()
    next(steps)
    steps.close()
    assert all(torch.equal(parameter, before[name]) for name, parameter in target.model.named_parameters())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in target.model.parameters())


@pytest.mark.parametrize("stop", [7, 16])
def test_a_resumed_run_continues_identically(stop, target, dialogues, tmp_path):
    """Stopped in the middle of an epoch (13 batches each) and in the second one; dropout included."""
    settings = replace(QUICK, steps=22, report_every=stop, dropout=0.3)
    whole = train_hydra(target, dialogues, tmp_path / "whole", settings)
    for report in HydraRun(target, dialogues, tmp_path / "parts", settings).steps():
        if report.step == stop:
            break
    resumed = HydraRun(target, dialogues, tmp_path / "parts", settings)
    assert resumed.resume()
    assert next(iter(resumed.steps())).step == stop + 1
    parts = train_hydra(target, dialogues, tmp_path / "parts", settings)
    assert all(torch.equal(tensor, parts.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_resuming_with_other_settings_is_refused(trained, target, dialogues):
    with pytest.raises(InputError, match=r"dropout 0\.05 \(now 0\.5\)"):
        HydraRun(target, dialogues, trained[1], replace(QUICK, dropout=0.5)).resume()


# -- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
def test_every_head_is_asked_for_the_token_it_drafts(prefix, own, target):
    """Against the readable heads, row by row, for the one answer token of a text."""
    settings = replace(QUICK, prefix=prefix, own_lm_heads=own)
    torch.manual_seed(1)
    heads = new_heads(target, settings).requires_grad_(False)
    for parameter in heads.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.2)
    tokens, asked = prompt_ids(9, seed=5), 6
    answer = [index == asked for index in range(9)]
    each, score = losses_of(heads, target, [Dialogue(tuple(tokens), tuple(answer))])
    features = true_features(target, tokens)
    own_tensors = heads.state_dict()
    tensors = {name: own_tensors[mine] for name, mine in published_names(heads.sizes, dropout=True).items()}
    config = target.config
    for index in range(3):
        row = asked - 2 - index  # head i starts from the feature so far back
        start = features[row]
        if prefix:
            sizes = {"heads": config.num_attention_heads, "eps": config.rms_norm_eps, "theta": 10000.0}
            sizes["theta"] = config.rope_parameters["rope_theta"]
            start = reference_prefix(tensors, features[: row + 1], **sizes)[-1]
        embeddings = target.model.get_input_embeddings()(torch.tensor(tokens[row + 1 : asked])).detach()
        assert len(embeddings) == index + 1
        log_q = reference_logits(tensors, index, reference_head(tensors, index, start, embeddings), target).log_softmax(
            -1
        )
        p = target.head(features[None, asked - 1 : asked])[0, 0].softmax(-1).detach()  # the target's of this token
        assert each[index].item() == pytest.approx(-(p * log_q).sum().item(), rel=1e-4)
        assert score.num_correct[index].item() == int(p.argmax() == log_q.argmax())
    assert score.num_rows.tolist() == [1, 1, 1]


def test_padding_and_prompts_teach_nothing(target, dialogues):
    torch.manual_seed(1)
    heads = new_heads(target, QUICK)
    short = Dialogue(dialogues[0].token_ids[:9], dialogues[0].answer[:9])
    alone = losses_of(heads, target, [short])
    padded = losses_of(heads, target, [short, Dialogue(dialogues[1].token_ids, (False,) * 22)])
    assert padded[1].num_rows.tolist() == alone[1].num_rows.tolist() == [3, 3, 3]
    assert torch.allclose(padded[0], alone[0], rtol=1e-4)


def test_texts_shorter_than_the_reach_of_a_head_are_borne(target):
    torch.manual_seed(1)
    each, score = losses_of(new_heads(target, QUICK), target, [Dialogue((5, 6, 7), (True,) * 3)])
    assert score.num_rows.tolist() == [1, 0, 0]
    assert torch.isfinite(each).all()


def test_large_batches_are_taken_in_parts(target, dialogues, monkeypatch):
    torch.manual_seed(1)
    loss = TeacherLoss(new_heads(target, QUICK).eval(), target)
    ids, answer = (padded(one, [len(d.token_ids) for d in dialogues[:3]]) for one in laid_out(dialogues[:3]))
    features = torch.stack([true_features(target, row) for row in ids.tolist()])

    def gradient() -> torch.Tensor:
        loss.zero_grad()
        loss(ids, features, answer)[0].sum().backward()
        return loss.heads.mlps[1].first.linear.weight.grad.clone()

    whole = gradient()
    monkeypatch.setattr("slipstream.methods.hydra.recipe._MAX_LOGITS", 5 * target.vocab_size)
    assert torch.allclose(gradient(), whole, atol=1e-6)
    assert whole.abs().max() > 0
    target.model.zero_grad()


@pytest.mark.parametrize(("name", "own"), [("gpt2", False), ("gemma2", True), ("phi", True)])
def test_heads_of_other_families_train(name, own, family_model, tmp_path):
    target = Target(family_model(name))
    dialogues = [Dialogue(tuple(prompt_ids(12, seed=seed)), (True,) * 12) for seed in range(8)]
    settings = replace(QUICK, steps=12, report_every=12, batch_size=4, held_out=0, own_lm_heads=own, storage="bf16")
    reports = list(HydraRun(target, dialogues, tmp_path, settings).steps())
    assert reports[-1].loss < reports[0].loss
    assert load_heads(tmp_path, target).sizes.num_heads == 3


def test_own_lm_heads_start_as_the_targets(target):
    heads = new_heads(target, replace(QUICK, own_lm_heads=True))
    assert heads.lm_heads is not None
    for own in heads.lm_heads:
        assert torch.equal(own.weight, target.model.get_output_embeddings().weight)


@pytest.mark.parametrize(
    "wrong", [{"num_heads": 0}, {"num_layers": 0}, {"dropout": 1.0}, {"storage": "int4"}, {"prefix_size": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        HydraSettings(**wrong)


def test_a_prefix_size_without_the_layer_is_refused():
    with pytest.raises(InputError, match="needs the prefix layer"):
        HydraSettings(prefix=False, prefix_size=64)
