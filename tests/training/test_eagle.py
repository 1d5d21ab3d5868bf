"""Training a head lowers its loss and raises acceptance, resumes as if never interrupted, and means what it says."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from doubles import decode
from families import FAMILIES, build, prompt_ids
from methods.eagle.eagle_reference import reference_head, true_features
from oracle import oracle_generate
from slipstream.drafting.packing import padded, rollout_mask
from slipstream.drafting.parts import passes
from slipstream.drafting.recipe import Paths
from slipstream.drafting.shape import Dynamic
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.eagle.checkpoint import load_head
from slipstream.methods.eagle.drafter import EagleDrafter
from slipstream.methods.eagle.head import EagleHead, HeadSizes
from slipstream.methods.eagle.losses import Losses, RolloutLoss, along_paths
from slipstream.methods.eagle.settings import EagleSettings, learning_rate_for
from slipstream.target.target import Target
from slipstream.training.data.batches import laid_out
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.data.features import FeatureSource
from slipstream.training.run import suited_precision
from slipstream.training.runs import EagleRun, train_eagle
from training.padded_rollout import PaddedLosses, padded_losses

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


def rollout(head: EagleHead, target: Target, dialogues: list[Dialogue], steps: int, **more) -> Losses:
    """Losses of dialogues laid one after another."""
    ids, answer = laid_out(dialogues)
    lengths = [len(one.token_ids) for one in dialogues]
    features = torch.cat([true_features(target, one.token_ids) for one in dialogues])
    return RolloutLoss(head, target)(ids, features, answer, lengths, steps, **more)


def losses_of(head: EagleHead, target: Target, dialogues: list[Dialogue], steps: int) -> list[float]:
    with torch.no_grad():
        losses = rollout(head, target, dialogues, steps)
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


@pytest.mark.parametrize(("stop", "optimizer"), [(7, "adamw"), (16, "muon")])
def test_a_resumed_run_continues_identically(stop, optimizer, target, dialogues, tmp_path):
    """Stopped in the middle of an epoch (13 steps each) and in the second one."""
    settings = replace(QUICK, steps=22, report_every=stop, optimizer=optimizer)
    whole = train_eagle(target, dialogues, tmp_path / "whole", settings)
    for report in EagleRun(target, dialogues, tmp_path / "parts", settings).steps():
        if report.step == stop:
            break
    resumed = EagleRun(target, dialogues, tmp_path / "parts", settings)
    assert resumed.resume()
    assert next(iter(resumed.steps())).step == stop + 1
    parts = train_eagle(target, dialogues, tmp_path / "parts", settings)
    assert all(torch.equal(tensor, parts.state_dict()[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize("stop", [1, 7])
def test_a_run_that_was_asked_to_stop_saves_and_continues_identically(stop, target, dialogues, tmp_path):
    """Between two measurements; steps of so many tokens, with noise and part of the vocabulary drawn anew."""
    settings = replace(QUICK, batch_size=None, tokens_per_step=100, steps=10, report_every=5, loss_vocabulary=24)
    whole = train_eagle(target, dialogues, tmp_path / "whole", settings)
    run = EagleRun(target, dialogues, tmp_path / "parts", settings)
    for report in run.steps():
        if report.step == stop:
            run.stop()
    assert run.step == stop
    resumed = EagleRun(target, dialogues, tmp_path / "parts", settings)
    assert resumed.resume()
    first = next(iter(resumed.steps()))
    assert first.step == stop + 1
    assert first.num_tokens > run.num_tokens > 0
    parts = train_eagle(target, dialogues, tmp_path / "parts", settings)
    assert all(torch.equal(tensor, parts.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_another_head_can_be_begun_with(trained, target, dialogues, tmp_path):
    settings = replace(QUICK, steps=1, report_every=1, learning_rate=1e-9, initial_head=str(trained[1]))
    head = train_eagle(target, dialogues, tmp_path, settings)
    before = load_head(trained[1], target).state_dict()
    assert all(torch.allclose(tensor, before[name], atol=1e-6) for name, tensor in head.state_dict().items())


def test_a_finished_run_is_not_trained_again(trained, target, dialogues):
    run = EagleRun(target, dialogues, trained[1], QUICK)
    assert run.resume()
    assert list(run.steps()) == []


def test_resuming_with_other_settings_is_refused(trained, target, dialogues):
    run = EagleRun(target, dialogues, trained[1], replace(QUICK, learning_rate=1.0))
    with pytest.raises(InputError, match=r"learning_rate 0\.003 \(now 1\.0\)"):
        run.resume()


# -- what is measured ----------------------------------------------------------------------------------------------


def test_right_paths_are_those_that_a_drafted_chain_has(trained, target, dialogues):
    """The engine drafts a chain of three from every place of the target's own greedy answers."""
    exact = Target(build("llama", weight_std=0.25, tie_word_embeddings=True))
    head = load_head(trained[1], exact)
    engine = Engine(exact, EagleDrafter(exact, head, Dynamic(width=1, depth=3, total=3)))
    texts = dialogues[:12]
    losses = rollout(head, exact, texts, 3, tops=(1, 4))
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


def test_a_path_is_right_while_every_token_of_it_was():
    hits = torch.tensor([[[1, 1, 0, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 1, 1]]], dtype=torch.bool)  # [1, steps, rows]
    assert along_paths(hits)[0].int().tolist() == [[1, 1, 0, 1, 1], [0, 1, 1, 0, 1], [0, 0, 1, 1, 0]]


def test_tau_is_estimated_for_chains_and_full_trees():
    paths = Paths((1, 4), torch.tensor([10, 8]), torch.tensor([[5, 2], [10, 4]]))
    assert paths.tau() == {"chain of 2": pytest.approx(1.75), "top 4 to depth 2": pytest.approx(2.5)}


# -- the loss ------------------------------------------------------------------------------------------------------


def test_rows_see_what_a_draft_chain_of_that_depth_sees():
    assert rollout_mask(4, 4, 0, torch.device("cpu")).int().tolist() == torch.ones(4, 4).tril().int().tolist()
    second = rollout_mask(4, 4, 2, torch.device("cpu"))
    assert second[3].nonzero().flatten().tolist() == [0, 1, 4 + 2, 8 + 3]  # true rows 0-1, own path, itself
    assert second[0].nonzero().flatten().tolist() == [8]
    tail = rollout_mask(4, 3, 2, torch.device("cpu"))
    assert tail[2].nonzero().flatten().tolist() == [0, 1, 4 + 1, 7 + 2], "later steps hold the last three rows only"


def test_steps_ahead_are_the_head_drafting_from_every_place(target):
    """Against chains drafted one row at a time by the independent reference."""
    torch.manual_seed(1)
    head = EagleHead(HeadSizes.like(target)).requires_grad_(False)
    tokens = prompt_ids(9, seed=5)
    features = true_features(target, tokens)
    embeddings = target.model.get_input_embeddings()(torch.tensor(tokens[1:])).detach()
    answer = tuple(place == 7 for place in range(9))  # one row counts: the one of token 5, which predicts token 7
    losses = rollout(head, target, [Dialogue(tuple(tokens), answer)], 3)
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


def test_other_texts_and_prompts_teach_nothing(target, dialogues):
    torch.manual_seed(1)
    head = EagleHead(HeadSizes.like(target))
    short = Dialogue(dialogues[0].token_ids[:9], dialogues[0].answer[:9])
    alone = rollout(head, target, [short], 1)
    beside = rollout(head, target, [Dialogue(dialogues[1].token_ids, (False,) * 22), short], 1)
    assert beside.num_rows.tolist() == alone.num_rows.tolist() == [3]
    assert torch.allclose(beside.feature, alone.feature, rtol=1e-4)
    assert torch.allclose(beside.token, alone.token, rtol=1e-4)


def mixed(lengths: tuple[int, ...]) -> list[Dialogue]:
    """Texts of these lengths whose answers begin after a few tokens; the last has text behind its answer too."""
    texts = [tuple(prompt_ids(length, seed=length)) for length in lengths]
    found = [Dialogue(text, tuple(place >= len(text) // 3 for place in range(len(text)))) for text in texts]
    return [*found, Dialogue(tuple(prompt_ids(9, seed=1)), (False,) * 3 + (True,) * 3 + (False,) * 3)]


@pytest.mark.parametrize("steps", [1, 3])
def test_texts_one_after_another_cost_what_padded_ones_cost(steps):
    """Losses and gradients in float64, against the padded twin; noise stays with its row."""
    target = Target(build("llama", weight_std=0.25, tie_word_embeddings=True).double())
    torch.manual_seed(1)
    head = EagleHead(HeadSizes.like(target)).double()
    dialogues = mixed((6, 20, 3, 2, 18))
    lengths = [len(one.token_ids) for one in dialogues]
    ids, answer = laid_out(dialogues)
    features = torch.cat([true_features(target, one.token_ids) for one in dialogues])
    noise = torch.rand(features.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 0.5

    def gradient(losses: Losses | PaddedLosses) -> torch.Tensor:
        head.zero_grad()
        weights = 0.8 ** torch.arange(steps)
        ((losses.feature + 0.1 * losses.token) * weights).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in head.parameters()])

    packed = RolloutLoss(head, target)(ids, features, answer, lengths, steps, noise)
    wide = (padded(one, lengths) for one in (ids, features, answer))
    slow = padded_losses(head, target, *wide, steps, padded(noise, lengths))
    assert packed.num_rows.tolist() == slow.num_rows.tolist()
    assert packed.num_correct.tolist() == slow.num_correct.tolist()
    assert torch.allclose(packed.feature, slow.feature, rtol=1e-10)
    assert torch.allclose(packed.token, slow.token, rtol=1e-10)
    assert torch.allclose(gradient(packed), gradient(slow), rtol=1e-8, atol=1e-12)
    target.model.zero_grad()


def test_logits_of_a_few_rows_at_a_time_are_those_of_all(target, dialogues, monkeypatch):
    torch.manual_seed(1)
    head = EagleHead(HeadSizes.like(target))

    def gradient() -> torch.Tensor:
        head.zero_grad()
        rollout(head, target, dialogues[:3], 2).token.sum().backward()
        return head.fc.weight.grad.clone()

    whole = gradient()
    monkeypatch.setattr("slipstream.drafting.token_loss._LOGITS_AT_ONCE", 5 * target.vocab_size)
    assert torch.allclose(gradient(), whole, atol=1e-6)


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


PADDED = (
    *("gptj", "falcon", "falcon-gqa"),  # make positions or call attention their own way
    *("gemma2", "gpt_oss", "llama4", "llama4-temperature"),  # another attention than the plain one
    *("dynamic-rope", "longrope"),  # frequencies depend on the longest text of a pass
)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_of_mixed_lengths_are_those_of_each_text(name, family_model, caplog):
    """Whether a target takes texts one after another, or is given padded ones."""
    target = Target(family_model(name))
    texts = [tuple(prompt_ids(length, seed=length)) for length in (9, 30, 3, 28, 8, 1)]
    dialogues = [Dialogue(text, (True,) * len(text)) for text in texts]
    source = FeatureSource(target, dialogues, None, 0)
    features = source([2, 0, 1, 3, 4, 5])
    expected = torch.cat([true_features(target, texts[index]) for index in (2, 0, 1, 3, 4, 5)])
    assert torch.allclose(features, expected, atol=1e-5)
    assert source.packed == ("padded passes" not in caplog.text)
    assert source.packed == (name not in PADDED)


def test_a_pass_takes_rows_of_similar_length():
    assert passes([9, 30, 3, 28, 8, 1]) == [[1, 3], [0, 4], [2], [5]]
    assert passes([7, 7, 7]) == [[0, 1, 2]]


def test_cached_features_are_the_computed_ones(target, dialogues, tmp_path):
    limit = 5 * 22 * 32 * 4  # five dialogues of 22 tokens
    fresh, cached = FeatureSource(target, dialogues, None, 0), FeatureSource(target, dialogues, tmp_path, limit)
    for first in (0, 2, 4, 0, 2, 4):
        indices = [first, first + 1]
        assert torch.allclose(cached(indices), fresh(indices), atol=1e-6)
    assert (fresh.num_computed, cached.num_computed) == (12, 7), "all but one of the last three steps' are on the disk"
    assert len(list(tmp_path.rglob("*.safetensors"))) == 5, "the limit holds"
    again = FeatureSource(target, dialogues, tmp_path, limit)
    again([0, 7])
    assert again.num_computed == 1
    assert len(list(tmp_path.rglob("*.safetensors"))) == 5, "it holds when the work is taken up again"


def test_the_cache_changes_nothing_in_training(target, dialogues, tmp_path):
    settings = replace(QUICK, steps=15, report_every=15)
    plain = train_eagle(target, dialogues[:20], tmp_path / "plain", settings)
    cached = train_eagle(target, dialogues[:20], tmp_path / "cached", replace(settings, cache_gib=1.0))
    assert all(torch.allclose(tensor, cached.state_dict()[n], atol=1e-5) for n, tensor in plain.state_dict().items())
    assert list((tmp_path / "cached" / "features").rglob("*.safetensors"))


# -- settings ------------------------------------------------------------------------------------------------------


def test_the_peak_rate_follows_the_width():
    assert [learning_rate_for(width) for width in (256, 576, 1152, 8192)] == [
        1e-3,
        1e-3,
        5e-4,
        pytest.approx(7.03e-5, rel=1e-2),
    ]
    assert learning_rate_for(100_000) == 3e-5


def test_bf16_is_chosen_for_bfloat16_targets_where_it_is_faster(monkeypatch):
    single, half = (Target(build("llama").to(dtype)) for dtype in (torch.float32, torch.bfloat16))
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": True, "amx_bf16": able})
        assert suited_precision(half, "auto") == ("bf16" if able else "fp32")
        assert suited_precision(single, "auto") == "fp32"
        assert suited_precision(single, "bf16") == "bf16"


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"noise": -1.0}, {"steps": 0}, {"precision": "fp8"}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError):
        EagleSettings(**wrong)


def test_too_little_data_is_one_clear_line(target, dialogues, tmp_path):
    with pytest.raises(InputError, match="3 dialogues are fewer than a batch of 8"):
        EagleRun(target, dialogues[:3], tmp_path, QUICK)
