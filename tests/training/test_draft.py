"""Distillation makes a draft model that is accepted more, resumes as if never interrupted, and loads everywhere."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from doubles import decode
from families import VOCAB_SIZE, build, prompt_ids
from oracle import oracle_generate
from slipstream.drafting.packing import padded
from slipstream.drafting.shape import Dynamic
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.draft_model.checkpoint import load_draft
from slipstream.methods.draft_model.drafter import DraftModelDrafter
from slipstream.methods.draft_model.recipe import DistillationLoss, build_draft
from slipstream.methods.draft_model.settings import DraftSettings
from slipstream.methods.registry import build_drafter
from slipstream.target.target import Target
from slipstream.training.data.batches import laid_out
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.runs import DraftRun, train_draft

QUICK = DraftSettings(
    hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=24,
    steps=120, batch_size=8, learning_rate=1e-2, report_every=60,
)  # fmt: skip


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
    """The target's own greedy answers to random prompts: what a draft model is to learn."""
    prompts = torch.tensor([prompt_ids(6, seed=seed) for seed in range(120)])
    with torch.inference_mode():
        rows = target.model.generate(prompts, max_new_tokens=16, do_sample=False, pad_token_id=0).tolist()
    return [Dialogue(tuple(row), (*[False] * 6, *[True] * (len(row) - 6))) for row in rows]


@pytest.fixture(scope="module")
def trained(target, dialogues, tmp_path_factory) -> Path:
    from accelerate.state import AcceleratorState

    out = tmp_path_factory.mktemp("draft")
    train_draft(target, dialogues, out, QUICK)
    AcceleratorState._reset_state(reset_partial_state=True)
    return out


def batch(target: Target, dialogues: list[Dialogue]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids, answer = (padded(one, [len(d.token_ids) for d in dialogues]) for one in laid_out(dialogues))
    with torch.no_grad():
        features = target.base(input_ids=ids, use_cache=False)[0]
    return ids, features, answer


# -- what training does --------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_on_held_out_text_too(trained):
    log = json.loads((trained / "training.json").read_text())
    first, last = log["losses"]
    assert (first["step"], last["step"]) == (60, 120)
    assert last["token_loss"] < first["token_loss"] < 4.2  # nats; knowing nothing costs log(64) = 4.16
    assert last["held_out"][0] > 5 / VOCAB_SIZE, "no better than chance on text it has not seen"
    assert log["settings"]["method"] == "draft"


def test_a_trained_model_is_accepted_more_and_changes_no_token(trained, target):
    exact = Target(build("llama", weight_std=0.25, tie_word_embeddings=True))
    prompts = [prompt_ids(6, seed=seed) for seed in range(200, 206)]

    def passes(draft: Target) -> int:
        engine = Engine(exact, DraftModelDrafter(exact, draft, shape=Dynamic(width=4, depth=3, total=10)))
        answers = [decode(engine, prompt, max_new_tokens=16) for prompt in prompts]
        assert [one.ids for one in answers] == [oracle_generate(exact.model, p, max_new_tokens=16) for p in prompts]
        return sum(len(one.steps) for one in answers)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the saved model records this target, whatever its dtype
        assert passes(load_draft(trained, exact)) < passes(Target(build_draft(exact, QUICK)))


def test_it_is_a_model_folder_like_any_other(trained, target):
    model = AutoModelForCausalLM.from_pretrained(trained)
    assert model.config.slipstream["target"] == target.hash
    assert model.config.slipstream["steps"] == 120
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == target.vocab_size
    assert model.lm_head.weight is model.model.embed_tokens.weight
    drafter = build_drafter("draft-model", target, {"draft": trained, "tree": "chain"})
    assert drafter.draft.dtype == torch.float32


def test_the_target_stays_as_it_was(target, dialogues, tmp_path):
    before = {name: parameter.clone() for name, parameter in target.model.named_parameters()}
    run = DraftRun(target, dialogues, tmp_path, replace(QUICK, steps=2))
    steps = run.steps()
    next(steps)
    steps.close()
    assert all(torch.equal(parameter, before[name]) for name, parameter in target.model.named_parameters())
    assert all(parameter.grad is None for parameter in target.model.parameters())


@pytest.mark.parametrize("stop", [7, 16])
def test_a_resumed_run_continues_identically(stop, target, dialogues, tmp_path):
    """Stopped in the middle of an epoch (13 batches each) and in the second one."""
    settings = replace(QUICK, steps=22, report_every=stop)
    whole = DraftRun(target, dialogues, tmp_path / "whole", settings)
    whole.finish()
    for report in DraftRun(target, dialogues, tmp_path / "parts", settings).steps():
        if report.step == stop:
            break
    resumed = DraftRun(target, dialogues, tmp_path / "parts", settings)
    assert resumed.resume()
    assert next(iter(resumed.steps())).step == stop + 1
    parts = DraftRun(target, dialogues, tmp_path / "parts", settings)
    parts.finish()
    ours = dict(parts.model.named_parameters())
    assert all(torch.equal(tensor, ours[name]) for name, tensor in whole.model.named_parameters())


def test_resuming_with_other_sizes_is_refused(trained, target, dialogues):
    with pytest.raises(InputError, match=r"hidden_size 16 \(now 32\)"):
        DraftRun(target, dialogues, trained, replace(QUICK, hidden_size=32)).resume()


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_targets_of_other_families_can_be_distilled(name, family_model, tmp_path):
    target = Target(family_model(name))
    dialogues = [Dialogue(tuple(prompt_ids(12, seed=seed)), (True,) * 12) for seed in range(8)]
    settings = replace(QUICK, steps=20, report_every=20, batch_size=4, held_out=0)
    reports = list(DraftRun(target, dialogues, tmp_path, settings).steps())
    assert reports[-1].loss < reports[0].loss
    assert load_draft(tmp_path, target).context_length == target.context_length


# -- the start and the loss ----------------------------------------------------------------------------------------


def test_projected_embeddings_keep_what_is_near_near(target):
    """Inner products, which logits are made of, follow the target's; random embeddings know nothing of them."""

    def products(rows: torch.Tensor) -> torch.Tensor:
        centred = (rows - rows.mean(dim=0)).double()
        return (centred @ centred.T).flatten()

    own = products(target.model.get_input_embeddings().weight.detach())

    def agreement(kind: str) -> float:
        model = build_draft(target, replace(QUICK, embeddings=kind))
        both = torch.stack((own, products(model.get_input_embeddings().weight.detach())))
        return float(torch.corrcoef(both)[0, 1])

    assert agreement("projected") > 0.8
    assert abs(agreement("random")) < 0.4
    wider = build_draft(target, replace(QUICK, hidden_size=48)).get_input_embeddings().weight.detach()
    assert float(wider[:, 32:].std()) > 0, "columns beyond the target's width keep their random values"


def test_the_loss_is_the_cross_entropy_of_answers_and_less_of_prompts(target, dialogues):
    model = build_draft(target, QUICK)
    ids, features, answer = batch(target, dialogues[:3])
    p = target.model(ids).logits[:, :-1].softmax(-1)
    log_q = model(ids).logits[:, :-1].log_softmax(-1)
    entropies = -(p * log_q).sum(-1)  # [3, 21]
    for weight in (0.0, 0.5):
        weights = torch.where(answer[:, 1:], 1.0, weight)
        loss, score = DistillationLoss(model, target, weight)(ids, features, answer)
        assert loss.item() == pytest.approx(((entropies * weights).sum() / weights.sum()).item(), rel=1e-4)
        right = (p.argmax(-1) == log_q.argmax(-1)) & answer[:, 1:]
        assert (score.num_correct.tolist(), score.num_rows.tolist()) == ([right.sum()], [3 * 16])


def test_padding_teaches_nothing(target, dialogues):
    loss = DistillationLoss(build_draft(target, QUICK), target, 0.5)
    short = Dialogue(dialogues[0].token_ids[:9], dialogues[0].answer[:9])
    alone = loss(*batch(target, [short]))[0]
    ids, features, answer = batch(target, [short, dialogues[1]])
    padded = loss(ids[:1], features[:1], answer[:1])[0]
    assert torch.allclose(alone, padded, rtol=1e-4)


def test_large_batches_are_taken_in_parts(target, dialogues, monkeypatch):
    loss = DistillationLoss(build_draft(target, QUICK), target, 0.5)
    rows = batch(target, dialogues[:3])

    def gradient() -> torch.Tensor:
        loss.zero_grad()
        loss(*rows)[0].backward()
        return loss.body.embed_tokens.weight.grad.clone()

    whole = gradient()
    monkeypatch.setattr("slipstream.methods.draft_model.recipe._MAX_LOGITS", 5 * target.vocab_size)
    assert torch.allclose(gradient(), whole, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"hidden_size": 18}, {"num_kv_heads": 3}, {"embeddings": "new"}, {"prompt_weight": -1}, {"num_layers": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError):
        replace(QUICK, **wrong)
