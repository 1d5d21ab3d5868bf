"""Teacher-forced agreement says what real drafting would say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from doubles import decode
from families import prompt_ids
from slipstream.core.logits import ProcessingSettings
from slipstream.core.rules import DecodingRule, GreedyRule, make_rule
from slipstream.core.sampling import SamplingSettings
from slipstream.drafting.base import Generation
from slipstream.drafting.shape import Chain, Dynamic
from slipstream.engine.engine import Engine
from slipstream.methods.layer_skip.drafter import LayerSkipDrafter
from slipstream.methods.plain import PlainDrafter
from slipstream.search import agreement as agreement_module
from slipstream.search.agreement import Answers, Sample
from slipstream.search.modelled import ACCEPTED, visited
from slipstream.skipping.sublayers import SubLayers
from slipstream.target.target import Target

SKIP = {"attention": [1], "mlp": [0]}
NUM_NEW = 14


def greedy(sample: Sample) -> DecodingRule:
    return GreedyRule()


def sampled(sample: Sample) -> DecodingRule:
    processing = ProcessingSettings(prompt_length=sample.prompt_length, max_length=99, temperature=1.0)
    return make_rule(processing, SamplingSettings(seed=sample.seed), 64, torch.device("cpu"))


def answers_of(target: Target, temperature: float = 0.0) -> list[Sample]:
    engine = Engine(target, PlainDrafter())
    found = []
    for seed, length in enumerate((9, 5)):
        prompt = prompt_ids(length, seed)
        ids = decode(engine, prompt, max_new_tokens=NUM_NEW, temperature=temperature, seed=seed).ids
        found.append(Sample(token_ids=(*prompt, *ids), prompt_length=length, seed=seed))
    return found


def drafted_logits(target: Target, drafter: LayerSkipDrafter, sample: Sample, root: int, depth: int) -> list[Tensor]:
    """Logits of the draft's passes below `root`, fed with the sample's own tokens: one pass a token, by the drafter."""
    tokens = torch.tensor(sample.token_ids)
    run = Generation(
        target, target.new_cache(50), GreedyRule(), list(sample.token_ids[: root + 1]), sample.prompt_length
    )
    if root:
        target.forward(tokens[:root], torch.arange(root), target.causal(root), run.cache)
        run.cache.commit(None, root)
    last = min(depth, len(tokens) - 1 - root)
    return [
        drafter.forward(run, tokens[root + j : root + j + 1], j, torch.ones(1, j + 1, dtype=torch.bool))[0]
        for j in range(last)
    ]


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "gpt2", "deepseek_v3"])
@pytest.mark.parametrize("packed", [False, True], ids=["alone", "packed"])
def test_every_row_is_what_drafting_from_its_root_computes(
    family_model: Callable[[str], PreTrainedModel], family: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement_module, "_PACK_SLOTS", {"cpu": 4096 if packed else 1})
    target = Target(family_model(family))
    drafter = LayerSkipDrafter(target, SKIP)
    samples, depth, k = answers_of(target), 3, 4
    found = Answers(target, samples, greedy, depth=depth).agreement(drafter.plan, k)
    place = 0
    for sample in samples:
        for root in range(sample.prompt_length - 1, len(sample.token_ids) - 1):
            for j, logits in enumerate(drafted_logits(target, drafter, sample, root, depth)):
                best = logits.float().log_softmax(dim=-1).topk(k)
                wanted = sample.token_ids[root + j + 1]
                rank = best.indices.tolist().index(wanted) if wanted in best.indices else k
                assert found.rank[place, j] == rank
                torch.testing.assert_close(found.log_confidence[place, j], best.values, rtol=1e-4, atol=1e-5)
            assert (found.rank[place, len(sample.token_ids) - 1 - root :] == k).all()
            place += 1
    assert place == found.rank.shape[0] == 2 * NUM_NEW


def test_a_wider_stride_runs_fewer_rows_and_keeps_the_first_token_of_its_roots_exact(
    family_model: Callable[[str], PreTrainedModel],
) -> None:
    target = Target(family_model("llama"))
    plan = SubLayers.find(target.model).plan(LayerSkipDrafter(target, SKIP).skip_set)
    samples = answers_of(target)
    every, third = (Answers(target, samples, greedy, depth=3, stride=stride) for stride in (1, 3))
    assert third.num_rows <= every.num_rows / 2
    exact, cheap = every.agreement(plan, 2), third.agreement(plan, 2)
    roots = [first + i for first in (0, NUM_NEW) for i in range(0, NUM_NEW, 3)]
    torch.testing.assert_close(cheap.log_confidence[roots, 0], exact.log_confidence[roots, 0])
    assert (cheap.rank[roots] == exact.rank[roots]).all()
    assert cheap.rank.shape == exact.rank.shape


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "shape",
    [Chain(length=4, threshold=0.0, adaptive=False), Dynamic(width=3, depth=1, total=2)],
    ids=["chain", "tree of one level"],
)
def test_modelled_cycles_are_those_of_real_generation(
    family_model: Callable[[str], PreTrainedModel], temperature: float, shape: Chain | Dynamic
) -> None:
    target = Target(family_model("qwen3"))
    samples = answers_of(target, temperature)
    drafter = LayerSkipDrafter(target, {"attention": [1], "mlp": []}, shape)
    answers = Answers(target, samples, sampled if temperature else greedy, depth=shape.depth)
    accepted, _ = ACCEPTED[shape.kind](answers.agreement(drafter.plan, shape.level_rows), shape)
    engine = Engine(target, drafter)
    lengths: list[int] = []
    for sample in samples:
        prompt = sample.token_ids[: sample.prompt_length]
        real = decode(engine, prompt, max_new_tokens=NUM_NEW, temperature=temperature, seed=sample.seed)
        assert (*prompt, *real.ids) == sample.token_ids
        lengths += [len(step.token_ids) for step in real.steps]
    roots = visited(accepted, answers.segments)
    assert [int(accepted[root]) + 1 for root in roots] == lengths
    assert 1 < sum(lengths) / len(lengths) < 1 + shape.depth, "a test in which all or nothing is accepted"
