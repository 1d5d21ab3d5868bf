from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from random_trees import make_tree
from slipstream.core.confidence import ConfidenceScale
from slipstream.core.logits import ProcessingSettings, warp
from slipstream.core.rules import CoupledRule, DecodingRule, GreedyRule, RejectionRule, make_rule
from slipstream.core.sampling import SamplingSettings, gumbel_rows
from slipstream.core.tree import DraftTree, ancestor_mask, chain
from slipstream.core.verify import walk

CPU = torch.device("cpu")
VOCAB = 11
SEED, STREAM, LENGTH = 2**40 + 3, 2, 29  # the root stands at position 29


def rule_for(temperature: float, verification: str = "coupled", **settings: float) -> DecodingRule:
    processing = ProcessingSettings(prompt_length=1, max_length=99, temperature=temperature, **settings)
    rule = make_rule(processing, SamplingSettings(seed=SEED, stream=STREAM, verification=verification), VOCAB, CPU)
    rule.begin(LENGTH)
    return rule


def random_logits(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def noise_at(position: int) -> Tensor:
    """Noise of one absolute position, [vocab]."""
    return gumbel_rows(SEED, STREAM, torch.tensor([position]), VOCAB)[0]


@pytest.mark.parametrize(
    ("temperature", "verification", "kind"),
    [
        (0.0, "coupled", GreedyRule),
        (0.0, "rejection", GreedyRule),
        (0.7, "coupled", CoupledRule),
        (0.7, "rejection", RejectionRule),
    ],
)
def test_settings_pick_the_rule(temperature: float, verification: str, kind: type) -> None:
    assert type(rule_for(temperature, verification)) is kind


@pytest.mark.parametrize(("temperature", "verification"), [(0.0, "coupled"), (0.7, "rejection")])
def test_children_of_the_published_rules_are_the_top_k_of_q(temperature: float, verification: str) -> None:
    logits = random_logits(3)
    children = rule_for(temperature, verification).children(logits, 2, 4)
    for row in range(3):
        best = sorted(range(VOCAB), key=lambda x: -logits[row, x])[:4]
        assert children.tokens[row].tolist() == best
        torch.testing.assert_close(children.log_confidence[row], logits[row].log_softmax(dim=-1)[best])


def test_a_greedy_chain_token_is_the_best_child() -> None:
    rule, logits = rule_for(0.0), random_logits(1)
    drawn = rule.draw(logits, 1)
    assert drawn.q is None
    assert drawn.token.tolist() == [int(logits.argmax())]
    assert drawn.log_confidence.tolist() == pytest.approx([float(logits.log_softmax(dim=-1).max())])


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_greedy_confidence_is_the_softmax_of_scaled_logits(scale: float) -> None:
    processing = ProcessingSettings(prompt_length=1, max_length=99)
    rule = make_rule(processing, SamplingSettings(), VOCAB, CPU, ConfidenceScale(greedy=scale))
    logits = random_logits(3)
    children = rule.children(logits, 1, 4)
    top = logits.topk(4, dim=-1).indices
    assert torch.equal(children.tokens, top)
    expected = (logits / scale).float().softmax(dim=-1).gather(1, top)
    torch.testing.assert_close(children.log_confidence.exp(), expected)


@pytest.mark.parametrize("depth", [1, 2, 5, 40])
def test_coupled_children_are_the_top_k_of_log_q_plus_the_noise_of_their_position(depth: int) -> None:
    logits = random_logits(3)
    children = rule_for(0.7, top_p=0.9).children(logits, depth, 4)
    log_q = warp(logits, temperature=0.7, top_p=0.9).double().log_softmax(dim=-1)
    perturbed = log_q + noise_at(LENGTH + depth)
    assert torch.equal(children.tokens, perturbed.topk(4).indices)
    wrong = log_q + noise_at(LENGTH + depth + 1)  # the next position's noise would choose other tokens
    assert not torch.equal(children.tokens, wrong.topk(4).indices)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.6])
def test_coupled_confidences_are_a_softmax_at_the_scale_of_the_temperature(temperature: float) -> None:
    logits = random_logits(2)
    rule = rule_for(temperature)
    children = rule.children(logits, 1, VOCAB)
    perturbed = (logits / temperature).double().log_softmax(dim=-1) + noise_at(LENGTH + 1)
    expected = (perturbed / ConfidenceScale().at(temperature)).log_softmax(dim=-1).gather(1, children.tokens)
    torch.testing.assert_close(children.log_confidence, expected.float())
    assert children.log_confidence.le(0).all()
    assert children.log_confidence.diff(dim=1).le(0).all()
    torch.testing.assert_close(children.log_confidence.exp().sum(dim=1), torch.ones(2))


def test_tokens_that_truncation_removes_have_no_confidence() -> None:
    children = rule_for(1.0, top_k=2).children(random_logits(1), 1, 4)
    assert children.log_confidence[0, :2].exp().sum() == pytest.approx(1.0)
    assert children.log_confidence[0, 2:].tolist() == [-math.inf, -math.inf]


def test_the_coupled_target_chooses_with_the_noise_of_the_position_after_each_node() -> None:
    tree = make_tree([-1, -1, 0, 2, 1], [1, 2, 3, 4, 5])
    logits = warp(random_logits(6), temperature=0.7)
    choice = rule_for(0.7).choose(logits, tree)
    for row, depth in enumerate([0, *tree.depth.tolist()]):
        assert choice[row] == (logits[row].double() + noise_at(LENGTH + depth + 1)).argmax()


def target_path(rule: DecodingRule, depth: int) -> tuple[DraftTree, Tensor]:
    """A chain of each level's best child under random distributions, and the same distributions as the target's."""
    logits = random_logits(depth + 1, seed=5)
    tokens = torch.cat([rule.draw(logits[d : d + 1], d + 1).token for d in range(depth)])
    return chain(tokens), warp(logits, temperature=0.7, top_p=0.95)


def test_a_drafter_equal_to_the_target_always_has_its_first_child_taken() -> None:
    """Draft and target read one noise: at every depth the sampled target takes child 0."""
    rule = rule_for(0.7, top_p=0.95)
    tree, logits = target_path(rule, depth=20)
    assert walk(tree, rule.choose(logits, tree)).num_accepted == 20


def test_noise_a_position_off_would_be_seen() -> None:
    rule = rule_for(0.7, top_p=0.95)
    tree, logits = target_path(rule, depth=20)
    rule.begin(LENGTH + 1)
    assert walk(tree, rule.choose(logits, tree)).num_accepted < 5


def test_coupled_choices_do_not_depend_on_the_draft() -> None:
    """The choice at the root is that of an empty tree, whatever tree hangs below it and whenever it is asked."""
    logits = random_logits(9)
    alone = rule_for(0.7).choose(logits[:1], chain(torch.empty(0, dtype=torch.int64)))
    rule = rule_for(0.7)
    rule.children(logits, 7, 3)
    assert rule.choose(logits[:4], chain(torch.arange(3)))[0] == alone[0]
    assert rule.choose(logits, make_tree([-1] * 8, list(range(8))))[0] == alone[0]


# -- the published rules: the law of what one cycle emits, at a temperature and a truncation that matter --------------

PROCESSING = ProcessingSettings(prompt_length=1, max_length=99, temperature=0.6, top_p=0.85)
TARGET, DRAFT = torch.tensor([[1.2, 0.9, 0.3, -0.6]] * 3), torch.tensor([[0.4, 1.0, 0.8, -0.2]])
NUM_CYCLES = 3000
LEAST_P = 1e-3  # the seed is fixed, so a p-value below this is a fault, not bad luck


def warped(logits: Tensor) -> Tensor:
    return warp(logits, temperature=0.6, top_p=0.85)


def emitted_pairs(draft: str, target: Tensor) -> Tensor:
    """[cycles, 2]: the first token that each cycle emitted, and the bonus token, -1 where nothing was accepted.

    draft: "chain" (one token sampled from q) or "tree" (two deterministic children).
    """
    rule = RejectionRule(PROCESSING, SamplingSettings(seed=1, verification="rejection"), CPU)
    pairs = []
    for _ in range(NUM_CYCLES):
        tree = _draft(rule, draft)
        choice = rule.choose(target[: tree.num_nodes + 1], tree)
        kept = walk(tree, choice, ancestor_mask(tree.parents))
        x1 = int(choice[0])
        pairs.append([x1, int(choice[kept.order[0] + 1]) if kept.num_accepted else -1])
    return torch.tensor(pairs)


def _draft(rule: RejectionRule, kind: str) -> DraftTree:
    if kind == "tree":
        return make_tree([-1, -1], rule.children(DRAFT, 1, 2).tokens[0].tolist())
    drawn = rule.draw(DRAFT, 1)
    return chain(drawn.token, drawn.log_confidence, drawn.q)


def p_value(tokens: Tensor, p: Tensor) -> float:
    """Of the hypothesis that tokens follow p; 0 where a token of no probability occurs."""
    counts, possible = tokens.bincount(minlength=4), p > 0
    if counts[~possible].any():
        return 0.0
    expected = p[possible] * len(tokens)
    return float(stats.chisquare(counts[possible].numpy(), expected.numpy()).pvalue)


@pytest.mark.parametrize("draft", ["chain", "tree"])
def test_rejection_emits_the_warped_target_in_every_place(draft: str) -> None:
    """The bonus token included: EAGLE-1's code drew it from the raw logits, without temperature and top-p."""
    pairs = emitted_pairs(draft, warped(TARGET))
    bonus = pairs[:, 1][pairs[:, 1] >= 0]
    p = warped(TARGET)[0].double().softmax(dim=-1)
    assert len(bonus) > NUM_CYCLES // 3
    assert p_value(pairs[:, 0], p) > LEAST_P
    assert p_value(bonus, p) > LEAST_P


@pytest.mark.parametrize("draft", ["chain", "tree"])
def test_a_bonus_token_from_the_raw_logits_would_be_seen(draft: str) -> None:
    raw_below_the_root = torch.cat((warped(TARGET)[:1], TARGET[1:]))
    pairs = emitted_pairs(draft, raw_below_the_root)
    p = warped(TARGET)[0].double().softmax(dim=-1)
    assert p_value(pairs[:, 0], p) > LEAST_P
    assert p_value(pairs[:, 1][pairs[:, 1] >= 0], p) < 1e-9


def test_drafted_tokens_follow_q_under_the_targets_temperature_and_truncation() -> None:
    rule = RejectionRule(PROCESSING, SamplingSettings(seed=4), CPU)
    q = warped(DRAFT).double().softmax(dim=-1)
    drawn = [rule.draw(DRAFT, 1) for _ in range(NUM_CYCLES)]
    assert torch.equal(drawn[0].q, q)
    assert p_value(torch.cat([one.token for one in drawn]), q[0]) > LEAST_P
    torch.testing.assert_close(drawn[0].log_confidence, q[0, drawn[0].token].log().float())


def test_rejection_repeats_itself_for_a_seed_and_differs_between_seeds_and_streams() -> None:
    def drafted(seed: int, stream: int) -> list[int]:
        rule = RejectionRule(PROCESSING, SamplingSettings(seed=seed, stream=stream), CPU)
        return [int(rule.draw(DRAFT, 1).token) for _ in range(40)]

    assert drafted(1, 0) == drafted(1, 0)
    assert len({tuple(drafted(seed, stream)) for seed in (1, 2) for stream in (0, 1)}) == 4
