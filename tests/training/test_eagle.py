"""Training a head lowers its loss and raises acceptance, resumes as if never interrupted, and means what it says."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from doubles import decode
from families import build, prompt_ids
from methods.eagle.eagle_reference import reference_head, true_features
from oracle import oracle_generate
from slipstream.drafting.parts import passes
from slipstream.drafting.shape import Dynamic
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.eagle.checkpoint import load_head
from slipstream.methods.eagle.drafter import EagleDrafter
from slipstream.methods.eagle.head import EagleHead, HeadSizes
from slipstream.methods.eagle.losses import RolloutLoss, rollout_mask
from slipstream.methods.eagle.settings import EagleSettings
from slipstream.target.target import Target
from slipstream.training.data.batches import collate
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.data.features import FeatureSource
from slipstream.training.runs import EagleRun, train_eagle

QUICK = EagleSettings(
    steps=100, batch_size=8, learning_rate=3e-3, warmup_steps=5, noise=0.02, report_every=50, measured_depth=3
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
    """The target's own greedy answers to random prompts: what a head is to learn."""
    texts = []
    prompts = torch.tensor([prompt_ids(6, seed=seed) for seed in range(120)])
    with torch.inference_mode():
        for row in target.model.generate(prompts, max_new_tokens=16, do_sample=False, pad_token_id=0).tolist():
            texts.append(Dialogue(tuple(row), (*[False] * 6, *[True] * (len(row) - 6))))
    return texts


@pytest.fixture(scope="module")
def trained(target, dialogues, tmp_path_factory) -> tuple[EagleHead, Path]:
    from accelerate.state import AcceleratorState

    out = tmp_path_factory.mktemp("head")
    head = train_eagle(target, dialogues, out, QUICK)
    AcceleratorState._reset_state(reset_partial_state=True)
    return head, out


def batch_features(target: Target, ids: torch.Tensor) -> torch.Tensor:
    return torch.stack([true_features(target, row) for row in ids.tolist()])


def losses_of(head: EagleHead, target: Target, dialogues: list[Dialogue], steps: int) -> list[float]:
    _, ids, answer = collate(list(enumerate(dialogues)))
    with torch.no_grad():
        losses = RolloutLoss(head, target)(ids, batch_features(target, ids), answer, steps)
    return (losses.feature + 0.1 * losses.token).tolist()


# -- what training does --------------------------------------------------------------------------------------------


def test_training_lowers_the_loss(trained, target, dialogues):
    torch.manual_seed(0)
    fresh = EagleHead(HeadSizes.like(target))
    before, after = (losses_of(head, target, dialogues[:30], 1)[0] for head in (fresh, trained[0]))
    assert after < 0.85 * before


def test_settings_and_losses_lie_beside_the_head(trained):
    log = json.loads((trained[1] / "training.json").read_text())
    assert [entry["step"] for entry in log["losses"]] == [50, 100]
    last = log["losses"][-1]
    assert last["loss"] == pytest.approx(last["feature_loss"] + 0.1 * last["token_loss"], rel=1e-5)
    assert len(last["held_out"]) == 3
    assert min(last["held_out"]) > 5 / 64, "no better than chance on text it has not seen"
    assert log["settings"]["learning_rate"] == QUICK.learning_rate
    assert json.loads((trained[1] / "config.json").read_text())["slipstream"]["steps"] == 100


def test_a_trained_head_is_accepted_more_and_changes_no_token(trained, target):
    exact = Target(build("llama", weight_std=0.25, tie_word_embeddings=True))
    prompts = [prompt_ids(6, seed=seed) for seed in range(200, 206)]

    def passes(head: EagleHead) -> int:
        engine = Engine(exact, EagleDrafter(exact, head, Dynamic(width=4, depth=3, total=10)))
        answers = [decode(engine, prompt, max_new_tokens=16) for prompt in prompts]
        assert [one.ids for one in answers] == [oracle_generate(exact.model, p, max_new_tokens=16) for p in prompts]
        return sum(len(one.steps) for one in answers)

    torch.manual_seed(0)
    fresh = EagleHead(HeadSizes.like(exact)).place(exact.device, exact.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the saved head records this target, whatever its dtype
        assert passes(load_head(trained[1], exact)) < passes(fresh)


def test_a_trained_head_samples_as_plain_sampling_does(trained, target):
    exact = Target(build("llama", weight_std=0.25, tie_word_embeddings=True))
    engine = Engine(exact, EagleDrafter(exact, load_head(trained[1], exact), Dynamic(width=4, depth=3, total=10)))
    settings = {"max_new_tokens": 20, "temperature": 0.8, "seed": 3}
    prompt = prompt_ids(6, seed=300)
    assert decode(engine, prompt, **settings).ids == oracle_generate(exact.model, prompt, **settings)


def test_the_target_stays_as_it_was(target, dialogues, tmp_path):
    before = {name: parameter.clone() for name, parameter in target.model.named_parameters()}
    run = EagleRun(target, dialogues, tmp_path, replace(QUICK, steps=2))
    steps = run.steps()
    next(steps)
    steps.close()
    assert all(torch.equal(parameter, before[name]) for name, parameter in target.model.named_parameters())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in target.model.parameters())


def test_training_steps_ahead_pays_where_the_head_reads_itself(target, dialogues, tmp_path):
    settings = replace(QUICK, steps=60, steps_ahead=3, noise=0.0)
    ahead = train_eagle(target, dialogues, tmp_path / "ahead", settings)
    once = train_eagle(target, dialogues, tmp_path / "once", replace(settings, steps_ahead=1))
    assert losses_of(ahead, target, dialogues[:20], 3)[2] < losses_of(once, target, dialogues[:20], 3)[2]
    keys = set(load_head(tmp_path / "ahead", target).state_dict())
    assert keys == set(once.state_dict()), "the layout is the published one"


# -- resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [7, 16])
def test_a_resumed_run_continues_identically(stop, target, dialogues, tmp_path):
    """Stopped in the middle of an epoch (13 batches each) and in the second one."""
    settings = replace(QUICK, steps=22, report_every=stop)
    whole = train_eagle(target, dialogues, tmp_path / "whole", settings)
    for report in EagleRun(target, dialogues, tmp_path / "parts", settings).steps():
        if report.step == stop:
            break
    resumed = EagleRun(target, dialogues, tmp_path / "parts", settings)
    assert resumed.resume()
    assert next(iter(resumed.steps())).step == stop + 1
    parts = train_eagle(target, dialogues, tmp_path / "parts", settings)
    assert all(torch.equal(tensor, parts.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_a_finished_run_is_not_trained_again(trained, target, dialogues):
    run = EagleRun(target, dialogues, trained[1], QUICK)
    assert run.resume()
    assert list(run.steps()) == []


def test_resuming_with_other_settings_is_refused(trained, target, dialogues):
    run = EagleRun(target, dialogues, trained[1], replace(QUICK, learning_rate=1.0))
    with pytest.raises(InputError, match=r"learning_rate 0\.003 \(now 1\.0\)"):
        run.resume()


# -- the loss ------------------------------------------------------------------------------------------------------


def test_rows_see_what_a_draft_chain_of_that_depth_sees():
    assert rollout_mask(4, 0, torch.device("cpu")).int().tolist() == torch.ones(4, 4).tril().int().tolist()
    second = rollout_mask(4, 2, torch.device("cpu"))
    assert second[3].nonzero().flatten().tolist() == [0, 1, 4 + 2, 8 + 3]  # true rows 0-1, own path, itself
    assert second[0].nonzero().flatten().tolist() == [8]


def test_steps_ahead_are_the_head_drafting_from_every_place(target):
    """Against chains drafted one row at a time by the independent reference."""
    torch.manual_seed(1)
    head = EagleHead(HeadSizes.like(target)).requires_grad_(False)
    tokens = prompt_ids(9, seed=5)
    features = true_features(target, tokens)
    embeddings = target.model.get_input_embeddings()(torch.tensor(tokens[1:])).detach()
    answer = torch.zeros(1, 9, dtype=torch.bool)
    answer[0, 7] = True  # one row counts: the one of token 5, which predicts token 7
    losses = RolloutLoss(head, target)(torch.tensor([tokens]), features[None], answer, 3)
    sizes = {"head_dim": head.sizes.head_dim, "eps": head.sizes.rms_norm_eps, "theta": head.sizes.rope["rope_theta"]}
    for step in range(3):
        known = features[: 6 - step]  # true features of tokens 0 .. 5 - step; the rest is drafted
        for _ in range(step + 1):
            predicted = reference_head(head.state_dict(), embeddings[: len(known)], known, **sizes)[-1:]
            known = torch.cat((known, predicted))
        expected = torch.nn.functional.smooth_l1_loss(predicted[0], features[6])
        p, log_q = (target.head(f[None])[0, 0].softmax(-1) for f in (features[6:7], predicted))
        assert losses.feature[step].item() == pytest.approx(expected.item(), rel=1e-4)
        assert losses.token[step].item() == pytest.approx(-(p * log_q.log()).sum().item(), rel=1e-4)
    assert losses.num_rows.tolist() == [1, 1, 1]


def test_padding_and_prompts_teach_nothing(target, dialogues):
    torch.manual_seed(1)
    loss = RolloutLoss(EagleHead(HeadSizes.like(target)), target)
    short = Dialogue(dialogues[0].token_ids[:9], dialogues[0].answer[:9])
    _, ids, answer = collate([(0, short)])
    alone = loss(ids, batch_features(target, ids), answer)
    _, ids, answer = collate([(0, short), (1, Dialogue(dialogues[1].token_ids, (False,) * 22))])
    features = batch_features(target, ids)
    padded = loss(ids, features, answer)
    assert padded.num_rows.tolist() == alone.num_rows.tolist() == [3]
    assert torch.allclose(padded.feature, alone.feature, rtol=1e-4)
    assert torch.allclose(padded.token, alone.token, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
def test_rows_of_mixed_lengths_teach_what_they_teach_alone(steps, target):
    """The losses of a batch are the means over the rows of all its texts; noise stays with its row."""
    torch.manual_seed(1)
    loss = RolloutLoss(EagleHead(HeadSizes.like(target)), target)
    texts = [prompt_ids(length, seed=length) for length in (6, 20, 3, 2, 18, 9)]
    dialogues = [Dialogue(tuple(text), (False, *[True] * (len(text) - 1))) for text in texts[:5]]
    dialogues.append(Dialogue(tuple(texts[5]), (False,) * 3 + (True,) * 3 + (False,) * 3))
    _, ids, answer = collate(list(enumerate(dialogues)))
    features = FeatureSource(target, dialogues, None, 0)(range(6), ids)
    noise = torch.rand(features.shape, generator=torch.Generator().manual_seed(2)) - 0.5
    together = loss(ids, features, answer, steps, noise)
    sums = torch.zeros(2, steps)
    counts = torch.zeros(2, steps, dtype=torch.int64)
    for row, text in enumerate(texts):
        end = len(text)
        one = (tensor[row : row + 1, :end] for tensor in (ids, features, answer))
        alone = loss(*one, steps, noise[row : row + 1, :end])
        sums += torch.stack((alone.feature, alone.token)).detach() * alone.num_rows
        counts += torch.stack((alone.num_rows, alone.num_correct))
    assert together.num_rows.tolist() == counts[0].tolist()
    assert together.num_correct.tolist() == counts[1].tolist()
    assert torch.allclose(torch.stack((together.feature, together.token)), sums / counts[0], rtol=1e-4)


def test_large_batches_are_taken_in_parts(target, dialogues, monkeypatch):
    torch.manual_seed(1)
    loss = RolloutLoss(EagleHead(HeadSizes.like(target)), target)
    _, ids, answer = collate(list(enumerate(dialogues[:3])))
    features = batch_features(target, ids)

    def gradient() -> torch.Tensor:
        loss.zero_grad()
        loss(ids, features, answer).token.sum().backward()
        return loss.head.fc.weight.grad.clone()

    whole = gradient()
    monkeypatch.setattr("slipstream.drafting.parts._MAX_LOGITS", 5 * target.vocab_size)
    assert torch.allclose(gradient(), whole, atol=1e-6)
    target.model.zero_grad()


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mixtral"])
def test_heads_of_other_families_train(name, family_model, tmp_path):
    model = family_model(name)
    target = Target(model)
    dialogues = [Dialogue(tuple(prompt_ids(12, seed=seed)), (True,) * 12) for seed in range(8)]
    settings = replace(QUICK, steps=12, report_every=12, batch_size=4, held_out=0)
    reports = list(EagleRun(target, dialogues, tmp_path, settings).steps())
    assert reports[-1].loss < reports[0].loss
    assert reports[-1].held_out == ()


def test_bf16_trains_float32_weights(target, dialogues, tmp_path):
    run = EagleRun(target, dialogues, tmp_path, replace(QUICK, steps=12, report_every=12, precision="bf16"))
    reports = list(run.steps())
    assert reports[-1].loss < reports[0].loss
    assert {parameter.dtype for parameter in run.head.parameters()} == {torch.float32}


# -- features on disk ----------------------------------------------------------------------------------------------


def test_features_of_mixed_lengths_are_those_of_each_text(target):
    texts = [prompt_ids(length, seed=length) for length in (9, 30, 3, 28, 8, 1)]
    dialogues = [Dialogue(tuple(text), (True,) * len(text)) for text in texts]
    _, ids, _ = collate(list(enumerate(dialogues)))
    features = FeatureSource(target, dialogues, None, 0)(range(6), ids)
    for row, text in enumerate(texts):
        assert torch.allclose(features[row, : len(text)], true_features(target, text), atol=1e-5)
    assert not features[2, 9:].any(), "beyond its pass a row is 0"


def test_a_pass_takes_rows_of_similar_length():
    assert passes([9, 30, 3, 28, 8, 1]) == [[1, 3], [0, 4], [2], [5]]
    assert passes([7, 7, 7]) == [[0, 1, 2]]


def test_cached_features_are_the_computed_ones(target, dialogues, tmp_path):
    limit = 5 * 22 * 32 * 4  # five dialogues of 22 tokens
    fresh, cached = FeatureSource(target, dialogues, None, 0), FeatureSource(target, dialogues, tmp_path, limit)
    for first in (0, 2, 4, 0, 2):
        indices = [first, first + 1]
        _, ids, _ = collate([(index, dialogues[index]) for index in indices])
        assert torch.equal(cached(indices, ids), fresh(indices, ids))
    assert (fresh.num_computed, cached.num_computed) == (10, 6), "the last two batches come from the disk"
    assert len(list(tmp_path.rglob("*.safetensors"))) == 5, "the limit holds"


def test_the_cache_changes_nothing_in_training(target, dialogues, tmp_path):
    settings = replace(QUICK, steps=15, report_every=15)
    plain = train_eagle(target, dialogues[:20], tmp_path / "plain", settings)
    cached = train_eagle(target, dialogues[:20], tmp_path / "cached", replace(settings, cache_gib=1.0))
    assert all(torch.allclose(tensor, cached.state_dict()[n], atol=1e-5) for n, tensor in plain.state_dict().items())
    assert list((tmp_path / "cached" / "features").rglob("*.safetensors"))


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"noise": -1.0}, {"steps": 0}, {"precision": "fp8"}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError):
        EagleSettings(**wrong)


def test_too_little_data_is_one_clear_line(target, dialogues, tmp_path):
    with pytest.raises(InputError, match="3 dialogues are fewer than a batch of 8"):
        EagleRun(target, dialogues[:3], tmp_path, QUICK)
