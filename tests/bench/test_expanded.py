"""A model that `benchmarks/expanded.py` made large computes what the small one does, and its head drafts the same."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import slipstream
from doubles import decode
from families import VOCAB_SIZE, build, prompt_ids
from methods.watching import Watching
from slipstream.core.confidence import ConfidenceScale
from slipstream.drafting.draft_vocabulary import DraftVocabulary
from slipstream.drafting.shape import Dynamic
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.eagle.checkpoint import load_head, save_head
from slipstream.methods.eagle.drafter import EagleDrafter
from slipstream.methods.eagle.head import EagleHead, HeadSizes
from slipstream.skipping.skip_set import SkipSet
from slipstream.target.target import Target

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the benchmark scripts are not in this distribution")

PROMPT = prompt_ids(11, seed=2)
TREE = Dynamic(width=4, depth=4, total=12)


class Watched(Watching, EagleDrafter):
    """Keeps what it proposed."""


@pytest.fixture
def expanded(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("expanded")


def shape(expanded: ModuleType, **changes: int) -> Any:
    """Everything larger than in `llama`: 3 query heads of one key head become 4 of each of 2."""
    sizes = {"hidden": 128, "layers": 4, "heads": 8, "kv_heads": 2, "head_dim": 32, "mlp": 160}
    return expanded.Shape(**{**sizes, **changes})


def llama(**changes: Any) -> LlamaForCausalLM:
    """A small one whose weights are large enough that every part of it counts."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 80,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "rms_norm_eps": 1e-2,  # large, so that a wrong one shows
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).double().eval()
    shake(model, seed=1)
    return model


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms in float64: transformers' are in float32 whatever the model."""

    def forward(self: LlamaRMSNorm, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@torch.no_grad()
def shake(module: torch.nn.Module, seed: int) -> None:
    """Fill all weights, those of norms and biases too."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * 0.5)


def random_head(small: LlamaForCausalLM, *biases: str) -> EagleHead:
    head = EagleHead(replace(HeadSizes.like(Target(small)), rms_norm_eps=1e-2, biases=frozenset(biases)))
    shake(head, seed=5)
    head.confidence = ConfidenceScale(floor=0.4, slope=0.7, greedy=0.8)
    return head.place(torch.device("cpu"), torch.float64).requires_grad_(False).eval()


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
        {"head_dim": 32},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
    ],
    ids=["gqa", "tied", "biases", "two key heads", "same head width", "linear rope"],
)
def test_logits_are_the_small_models(expanded, exact_norms, changes):
    small = llama(**changes)
    large = expanded.expand(small, shape(expanded), torch.float64)
    assert expanded.Shape.of(large.config) == shape(expanded)
    ids = prompt_ids(40, seed=6)
    torch.testing.assert_close(logits(large, ids), logits(small, ids), rtol=0, atol=1e-10)


def test_smollm2_has_its_place_in_an_8b(expanded):
    smollm2 = expanded.Shape(hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp=1536)
    places = expanded.Places(smollm2, expanded.LLAMA_8B)
    assert places.norm_factor == 0.375
    queries = places.queries.view(9, 64)
    assert (queries[:, 0] // 128).tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10], "three of each group of four"
    assert queries[0].tolist() == [*range(0, 64, 2), *range(64, 128, 2)], "pairs i and i + 32 stay pairs"


def test_tokens_are_the_small_models_through_cache_and_engine(expanded):
    small = llama()
    large = expanded.expand(small, shape(expanded), torch.float64)
    for settings in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 3}):
        answers = [
            slipstream.load(model, "plain").generate(PROMPT, max_new_tokens=24, **settings).token_ids
            for model in (small, large)
        ]
        assert answers[0] == answers[1]
        assert len(set(answers[0])) > 5


def test_dead_weights_are_no_zeros_and_do_not_matter(expanded):
    small = llama()
    one, other = (expanded.expand(small, shape(expanded), torch.float64, seed=seed) for seed in (0, 1))
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        layers = [getattr(model.model.layers[0].self_attn, name).weight for model in (one, other)]
        assert not torch.equal(*layers)
    assert torch.equal(logits(one, PROMPT), logits(other, PROMPT)), "dead activations are exactly zero"
    assert expanded.zero_share(one.model.layers) < 0.4  # a third of the hidden state is live here, a seventh at 8B


def test_a_head_drafts_the_same_trees(expanded):
    small = llama()
    large = expanded.expand(small, shape(expanded), torch.float64)
    head = random_head(small, "fc", "q_proj", "o_proj")
    drafters = [
        Watched(Target(small), head, TREE),
        Watched(Target(large), expanded.expand_head(head, shape(expanded), torch.float64), TREE),
    ]
    results = [decode(Engine(one.target, one), PROMPT, max_new_tokens=24) for one in drafters]
    assert results[0].ids == results[1].ids
    lengths = [[step.num_accepted for step in result.steps] for result in results]
    assert lengths[0] == lengths[1]
    trees = [[(text, tree.tokens.tolist(), tree.parents.tolist()) for text, tree in one.proposals] for one in drafters]
    assert trees[0] == trees[1]
    assert len(trees[0]) > 5


def test_an_expanded_head_is_one_that_loads(expanded, tmp_path):
    small = llama()
    target = Target(expanded.expand(small, shape(expanded), torch.float32))
    own = random_head(small)
    own.vocabulary = DraftVocabulary(torch.tensor([5, 3, 9]))
    head = expanded.expand_head(own, shape(expanded), torch.float32)
    assert (head.confidence, head.vocabulary) == (own.confidence, own.vocabulary)
    save_head(head, tmp_path, target)
    loaded = load_head(tmp_path, target)
    assert loaded.sizes == head.sizes
    assert (head.sizes.hidden_size, head.sizes.intermediate_size) == (128, 160)
    for name, tensor in head.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_skip_set_leaves_out_the_same_sublayers(expanded):
    small = llama()
    large = expanded.expand(small, shape(expanded), torch.float64)
    own = SkipSet(num_layers=2, attention=(0,), mlp=(1,))
    options = {"width": 3, "depth": 3, "total": 6}
    models = [
        slipstream.load(small, "layer-skip", skip_set=own, **options),
        slipstream.load(large, "layer-skip", skip_set=expanded.expand_skip_set(own, shape(expanded)), **options),
    ]
    answers = [model.generate(PROMPT, max_new_tokens=24, temperature=0.0) for model in models]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].stats.accept_lengths == answers[1].stats.accept_lengths
    with pytest.raises(InputError, match="a skip set for 9 layers does not fit 4"):
        expanded.expand_skip_set(SkipSet(num_layers=9, attention=(), mlp=()), shape(expanded))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden": 32}, "hidden is 48 in the small model and 32 in the large one"),
        ({"heads": 4}, "group is 3 in the small model and 2 in the large one"),
        ({"layers": 1}, "layers is 2"),
        ({"head_dim": 24}, "heads of width 24 cannot turn as those of width 16 do"),
    ],
)
def test_a_shape_that_does_not_hold_the_small_one_is_refused(expanded, changes, said):
    with pytest.raises(InputError, match=said):
        expanded.expand(llama(), shape(expanded, **changes), torch.float64)


def test_models_without_exact_counterpart_are_refused(expanded):
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
    with pytest.raises(InputError, match="rope_type 'yarn' cannot be expanded; choose from default"):
        expanded.expand(llama(rope_parameters=yarn), shape(expanded), torch.float64)
    with pytest.raises(InputError, match="only a Llama can be expanded, and this is 'gpt2'"):
        expanded.expand(build("gpt2"), shape(expanded), torch.float64)
