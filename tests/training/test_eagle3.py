"""The training-time test is drafting step by step in one go; it lowers the loss, resumes, and saves what is trained."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from doubles import decode
from families import build, prompt_ids
from methods.eagle3.eagle3_reference import Reference, true_states
from oracle import oracle_generate
from slipstream.drafting.shape import Dynamic
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.eagle3.checkpoint import load_head
from slipstream.methods.eagle3.drafter import Eagle3Drafter
from slipstream.methods.eagle3.head import Eagle3Head
from slipstream.methods.eagle3.losses import Losses, TrainingTimeTest
from slipstream.methods.eagle3.recipe import Eagle3Recipe
from slipstream.methods.eagle3.settings import Eagle3Settings
from slipstream.target.features import Features
from slipstream.target.target import Target
from slipstream.training.data.batches import laid_out
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.data.features import FeatureSource
from slipstream.training.runs import Eagle3Run, train_eagle3

QUICK = Eagle3Settings(
    steps=60,
    batch_size=8,
    learning_rate=5e-3,
    warmup_steps=5,
    report_every=30,
    steps_ahead=3,
    measured_depth=3,
    draft_vocabulary=48,
    precision="fp32",
)


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    """Accelerate keeps precision and device in a singleton for the whole process."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def small() -> Any:
    return build("llama", num_hidden_layers=3, weight_std=0.25, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(small().float())


@pytest.fixture(scope="module")
def exact() -> Target:
    return Target(small())


@pytest.fixture(scope="module")
def dialogues(target) -> list[Dialogue]:
    """The target's own greedy answers to random prompts: what a head is to learn."""
    prompts = torch.tensor([prompt_ids(6, seed=seed) for seed in range(100)])
    with torch.inference_mode():
        rows = target.model.generate(prompts, max_new_tokens=14, do_sample=False, pad_token_id=0).tolist()
    return [Dialogue(tuple(row), (*[False] * 6, *[True] * (len(row) - 6))) for row in rows]


@pytest.fixture(scope="module")
def trained(target, dialogues, tmp_path_factory) -> tuple[Eagle3Head, Path]:
    from accelerate.state import AcceleratorState

    out = tmp_path_factory.mktemp("head")
    head = train_eagle3(target, dialogues, out, QUICK)
    AcceleratorState._reset_state(reset_partial_state=True)
    return head, out


def fresh(target: Target, dialogues: list[Dialogue], **settings: Any) -> Eagle3Head:
    return Eagle3Recipe(target, dialogues, replace(QUICK, **settings)).head


def features_of(target: Target, texts: list[Dialogue], head: Eagle3Head) -> torch.Tensor:
    """The target's last hidden states and those that the head reads, of texts one after another."""
    parts = []
    for one in texts:
        read = true_states(target, list(one.token_ids), head.sizes.states).flatten(1)
        last = target.base(input_ids=torch.tensor([one.token_ids]), use_cache=False)[0][0].detach()
        parts.append(torch.cat((last, read), dim=1))
    return torch.cat(parts)


def losses_of(head: Eagle3Head, target: Target, texts: list[Dialogue], steps: int, **more: Any) -> Losses:
    ids, answer = laid_out(texts)
    lengths = [len(one.token_ids) for one in texts]
    return TrainingTimeTest(head, target)(ids, features_of(target, texts, head), answer, lengths, steps, **more)


# -- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fc_norm", [False, True])
def test_the_loss_is_that_of_drafting_step_by_step(fc_norm, exact, dialogues):
    """Values and gradients in float64, against the twin drafting every path from the start, row after row."""
    head = fresh(exact, dialogues, fc_norm=fc_norm, draft_vocabulary=40).double()
    texts = [
        Dialogue(tuple(prompt_ids(10, seed=5)), (False,) * 3 + (True,) * 7),
        Dialogue(tuple(prompt_ids(6, seed=6)), (False,) * 2 + (True,) * 3 + (False,)),
    ]
    steps = 3
    found = losses_of(head, exact, texts, steps)
    (found.token * 0.8 ** torch.arange(steps)).sum().backward()
    gradients = {name: one.grad.clone() for name, one in head.named_parameters()}
    head.zero_grad()

    named = dict(head.named_parameters())
    tensors = {**named, "d2t": head.ids - torch.arange(len(head.ids))}
    twin = Reference(
        tensors, "layers.0.", head.sizes.states, head_dim=8, eps=head.sizes.layer.rms_norm_eps, norm_feedback=fc_norm
    )
    sums, counts, hits, rows = ([0.0] * steps for _ in range(4))
    outside = 0
    for text in texts:
        tokens = list(text.token_ids)
        logits = exact.model(torch.tensor([tokens]), use_cache=False).logits[0].detach()
        for row in (place - 2 for place, mark in enumerate(text.answer) if mark and place >= 2):
            for step in range(min(steps, row + 1)):
                output = twin.after(exact, tokens[: row - step + 2], tokens[row - step + 2 : row + 2])
                log_q = twin.logits(output, exact)[0].log_softmax(-1)
                rows[step] += 1
                first = int(logits[row + 1].argmax())
                if first not in head.ids.tolist():
                    outside += 1
                    continue
                p = logits[row + 1][head.ids].softmax(-1)
                sums[step], counts[step] = sums[step] - (p * log_q).sum(), counts[step] + 1
                hits[step] += int(log_q.argmax()) == head.ids.tolist().index(first)
    assert outside > 0, "every row teaches: the test shows nothing of those that do not"
    assert min(counts) > 0, "a step has no row that teaches"
    expected = torch.stack([total / count for total, count in zip(sums, counts, strict=True)])
    assert found.num_rows.tolist() == rows
    assert found.num_hits[0].tolist() == hits
    torch.testing.assert_close(found.token, expected, rtol=1e-5, atol=1e-6)  # rotary and norms are float32
    (expected * 0.8 ** torch.arange(steps)).sum().backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, named[name].grad, rtol=1e-3, atol=1e-6)
    exact.model.zero_grad()


def test_right_paths_are_those_that_a_drafted_chain_has(trained, exact, dialogues):
    """The engine drafts a chain of three from every place of the target's own greedy answers."""
    head = load_head(trained[1], exact)
    engine = Engine(exact, Eagle3Drafter(exact, head, Dynamic(width=1, depth=3, total=3)))
    texts = dialogues[:8]
    with torch.no_grad():
        losses = losses_of(head, exact, texts, 3, tops=(1, 4))
    starts, right = [0, 0, 0], [0, 0, 0]
    for one in texts:
        ids = list(one.token_ids)
        for length in range(6, len(ids)):
            step = decode(engine, ids[:length], max_new_tokens=8).steps[0]
            for depth in range(min(3, len(ids) - length)):
                starts[depth] += 1
                right[depth] += step.num_accepted > depth
    assert losses.num_starts.tolist() == starts
    assert losses.num_paths[0].tolist() == right
    assert 0 < right[0] < starts[0]
    assert (losses.num_paths[1] >= losses.num_paths[0]).all()


def test_other_texts_and_prompts_teach_nothing(target, dialogues):
    head = fresh(target, dialogues)
    short = Dialogue(dialogues[0].token_ids[:9], dialogues[0].answer[:9])
    with torch.no_grad():
        alone = losses_of(head, target, [short], 2)
        beside = losses_of(head, target, [Dialogue(dialogues[1].token_ids, (False,) * 20), short], 2)
    assert beside.num_rows.tolist() == alone.num_rows.tolist() == [3, 3]
    torch.testing.assert_close(beside.token, alone.token, rtol=1e-4, atol=1e-5)


# -- what training does ----------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_at_every_step_ahead(trained, target, dialogues):
    with torch.no_grad():
        before = losses_of(fresh(target, dialogues), target, dialogues[:30], 3).token
        after = losses_of(trained[0], target, dialogues[:30], 3).token
    assert (after < 0.9 * before).all()


def test_a_trained_head_is_accepted_more_and_changes_no_token(trained, exact, dialogues):
    prompts = [prompt_ids(6, seed=seed) for seed in range(200, 206)]

    def passes(head: Eagle3Head) -> int:
        engine = Engine(exact, Eagle3Drafter(exact, head, Dynamic(width=4, depth=3, total=10)))
        answers = [decode(engine, prompt, max_new_tokens=16) for prompt in prompts]
        assert [one.ids for one in answers] == [oracle_generate(exact.model, p, max_new_tokens=16) for p in prompts]
        return sum(len(one.steps) for one in answers)

    new = fresh(exact, dialogues).place(exact.device, exact.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the saved head records this target, whatever its dtype
        assert passes(load_head(trained[1], exact)) < passes(new)


def test_what_is_saved_is_small_and_says_how_it_was_made(trained, target):
    tensors = load_file(trained[1] / "model.safetensors")
    assert "midlayer.hidden_norm.weight" in tensors
    assert not {"lm_head.weight", "embed_tokens.weight"} & tensors.keys()
    config = json.loads((trained[1] / "config.json").read_text())
    assert (config["slipstream"]["steps"], config["slipstream"]["steps_ahead"]) == (60, 3)
    log = json.loads((trained[1] / "training.json").read_text())
    assert [entry["step"] for entry in log["losses"]] == [30, 60]
    assert len(log["losses"][-1]["held_out"]) == 3
    assert load_head(trained[1], target).sizes.states == (0, 1, 2)


def test_the_draft_vocabulary_is_the_answers_most_frequent_tokens(trained, dialogues):
    counts = torch.bincount(torch.tensor([token for one in dialogues for token in one.token_ids[6:]]), minlength=64)
    kept = set(load_file(trained[1] / "model.safetensors")["t2d"].nonzero()[:, 0].tolist())
    assert len(kept) == min(48, int((counts > 0).sum()))
    left_out = [int(counts[token]) for token in range(64) if token not in kept]
    assert max(left_out, default=0) <= min(int(counts[token]) for token in kept)


def test_the_last_norm_begins_with_the_scale_of_the_targets_last_hidden_states(target, dialogues):
    head = fresh(target, dialogues)
    last = torch.cat([features_of(target, [one], head)[:, :32] for one in dialogues])
    torch.testing.assert_close(head.norm.weight, last.pow(2).mean(0).sqrt(), rtol=1e-4, atol=1e-5)


def test_other_layers_bf16_and_eagle_3_1_are_trained_and_saved(target, dialogues, tmp_path):
    settings = replace(QUICK, steps=4, report_every=4, layers=(1, 2), fc_norm=True, storage="bf16", precision="bf16")
    reports = list(Eagle3Run(target, dialogues, tmp_path, settings).steps())
    assert reports[-1].loss < reports[0].loss
    head = load_head(tmp_path, target, stored=True)
    assert (head.sizes.states, head.sizes.fc_norm, head.sizes.norm_feedback) == ((1, 2), True, True)
    assert head.dtype == torch.bfloat16


# -- resuming --------------------------------------------------------------------------------------------------------


def test_a_resumed_run_continues_identically(target, dialogues, tmp_path):
    settings = replace(QUICK, steps=9, report_every=5)
    whole = train_eagle3(target, dialogues, tmp_path / "whole", settings)
    for report in Eagle3Run(target, dialogues, tmp_path / "parts", settings).steps():
        if report.step == 5:
            break
    resumed = Eagle3Run(target, dialogues, tmp_path / "parts", settings)
    assert resumed.resume()
    assert resumed.step == 5
    resumed.finish()
    parts = resumed.head.state_dict()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.state_dict().items())


def test_another_head_can_be_begun_with(trained, target, dialogues, tmp_path):
    settings = replace(QUICK, steps=1, report_every=1, learning_rate=1e-9, initial_head=str(trained[1]))
    head = train_eagle3(target, dialogues, tmp_path, settings)
    before = load_head(trained[1], target)
    assert torch.equal(head.ids, before.ids)
    assert all(torch.allclose(one, before.state_dict()[name], atol=1e-6) for name, one in head.state_dict().items())


def test_a_published_heads_lm_head_and_embeddings_stay_as_they_are(dialogues, tmp_path):
    from methods.eagle3.published import PUBLISHED, eagle3_target

    deep = Target(eagle3_target().model.float())
    begun = PUBLISHED["speculators"].write(tmp_path / "published")
    settings = replace(QUICK, steps=2, report_every=2, initial_head=str(begun), steps_ahead=2)
    head = train_eagle3(deep, dialogues, tmp_path / "trained", settings)
    before = load_head(begun, deep)
    assert torch.equal(head.lm_head.weight, before.lm_head.weight)
    assert torch.equal(head.embed_tokens.weight, before.embed_tokens.weight)
    assert not torch.equal(head.fc.weight, before.fc.weight)
    assert load_head(tmp_path / "trained", deep).sizes == before.sizes


# -- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixtral"])
def test_states_of_several_layers_are_those_of_each_text(name, family_model, tmp_path):
    """Whether the target takes texts one after another or padded, and off the disk."""
    target = Target(family_model(name))
    texts = [tuple(prompt_ids(length, seed=length)) for length in (9, 30, 3)]
    source = [Dialogue(text, (True,) * len(text)) for text in texts]
    wanted = Features(last_hidden=True, layers=(1, 0, 1))
    expected = []
    for text in texts:
        states = target.model(torch.tensor([text]), use_cache=False, output_hidden_states=True).hidden_states
        expected.append(torch.cat((states[-1], states[1], states[0], states[1]), dim=-1)[0].detach())
    found = FeatureSource(target, source, tmp_path, 1 << 30, wanted)
    torch.testing.assert_close(found([2, 0, 1]), torch.cat([expected[i] for i in (2, 0, 1)]), rtol=0, atol=1e-5)
    again = FeatureSource(target, source, tmp_path, 1 << 30, wanted)
    torch.testing.assert_close(again([0, 1]), torch.cat(expected[:2]), rtol=0, atol=1e-5)
    assert again.num_computed == 0
    other = FeatureSource(target, source, tmp_path, 1 << 30)
    assert other([0]).shape == (9, 32)
    assert other.num_computed == 1, "other features are other files"


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps_ahead": 0},
        {"ahead_decay": -1.0},
        {"draft_vocabulary": 0},
        {"storage": "fp8"},
        {"initial_head": "heads/mine", "layers": (1, 2, 3)},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError):
        Eagle3Settings(**wrong)


def test_a_layer_that_the_target_has_not_is_one_clear_line(target, dialogues, tmp_path):
    with pytest.raises(InputError, match=r"entering layer 3, but .* has layers 0 to 2"):
        Eagle3Run(target, dialogues, tmp_path, replace(QUICK, layers=(0, 1, 3)))
