"""Training of an EAGLE-3 head for any target (EAGLE-3, arXiv 2503.01840, section 3.2, and the released code).

The head is trained as it drafts, several steps deep on its own output (`losses.py`); the loss of step s weighs 0.8^s.
AdamW with betas .9 and .95, linear warm-up and decay, gradients scaled to a norm. The draft vocabulary is counted from
the answers of the training text. Where we depart from the released code: the LM head is not trained but made of the
target's own rows, as in the speculators project, so it need not be stored; for that the head's last norm begins with
the scale of the target's last hidden states.

The run itself is `run.py`'s; `config.json` and `model.safetensors` in its folder are the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.drafting.draft_vocabulary import count_vocabulary
from slipstream.drafting.recipe import Batch, Dialogue, Optimisation, Paths, Score, StepLosses
from slipstream.methods.eagle.head import HeadSizes
from slipstream.methods.eagle3.checkpoint import load_head, save_head
from slipstream.methods.eagle3.head import Eagle3Head, Eagle3Sizes, check_embeddings, default_states
from slipstream.methods.eagle3.layouts import OFFICIAL, SPECULATORS, check_states, has_official_words
from slipstream.methods.eagle3.losses import Losses, TrainingTimeTest
from slipstream.methods.eagle3.settings import Eagle3Settings
from slipstream.target.features import Features
from slipstream.target.target import Target

TOPS = (1, 4, 10)
"""Children of a node for which tau is estimated: a chain, and full trees as wide as EAGLE-1's and EAGLE-2's."""
_SCALED_BY = 2048  # tokens whose last hidden states show their scale


class Eagle3Recipe:
    """A `Recipe`: the training-time test."""

    identity: Mapping[str, Any] = {"method": "eagle3"}

    def __init__(self, target: Target, dialogues: Sequence[Dialogue], settings: Eagle3Settings) -> None:
        """dialogues: whose answers the draft vocabulary is counted from."""
        self.target, self.settings = target, settings
        self.head = _initial_head(target, dialogues, settings)
        self.features = Features(last_hidden=True, layers=self.head.sizes.states)
        self.module: nn.Module = TrainingTimeTest(self.head, target)
        self.optimisation = Optimisation(betas=(0.9, 0.95), weight_decay=0.0, clip_norm=settings.clip_norm)

    def losses(self, module: nn.Module, batch: Batch) -> StepLosses:
        settings = self.settings
        found: Losses = module(
            batch.ids, batch.features, batch.answer, batch.lengths, settings.steps_ahead, divisor=batch.divisor
        )
        weights = settings.ahead_decay ** torch.arange(settings.steps_ahead, device=found.token.device)
        parts = {"token_loss": found.token[0], "last_step_loss": found.token[-1]}
        return StepLosses((found.token * weights).sum(), parts, Score(found.num_hits[0], found.num_rows))

    def measure(self, module: nn.Module, batch: Batch) -> Score:
        """The head fed with its own output.

        At depth d the first d - 1 drafted tokens are the text's own: the accuracy of a node whose path is right.
        """
        depth = self.settings.measured_depth
        found: Losses = module(batch.ids, batch.features, batch.answer, batch.lengths, depth, tops=TOPS)
        return Score(found.num_hits[0], found.num_rows, Paths(TOPS, found.num_starts, found.num_paths))

    def save(self, out: Path, steps: int) -> None:
        names = ("steps_ahead", "learning_rate", "optimizer", "ahead_decay", "clip_norm", "seed", "initial_head")
        how = {"steps": steps, **{name: getattr(self.settings, name) for name in names}}
        dtype = torch.bfloat16 if self.settings.storage == "bf16" else None
        origin = OFFICIAL if has_official_words(self.head.sizes) else SPECULATORS
        save_head(self.head, out, self.target, how, origin=origin, dtype=dtype)


def _initial_head(target: Target, dialogues: Sequence[Dialogue], settings: Eagle3Settings) -> Eagle3Head:
    """In float32, on the target's device. Its own LM head and embeddings, if it has any, stay as they are."""
    if settings.initial_head is not None:
        head = load_head(settings.initial_head, target, torch.float32).requires_grad_(True)
        for kept in (head.lm_head, head.embed_tokens):
            if kept is not None:
                kept.requires_grad_(False)
        return head
    ids = _draft_ids(target, dialogues, settings.draft_vocabulary)
    layer = HeadSizes.like(target)
    sizes = Eagle3Sizes(
        layer=replace(layer, embedding_size=layer.hidden_size, biases=frozenset()),
        target_size=layer.hidden_size,
        states=settings.layers or default_states(target.num_layers),
        draft_vocab_size=target.vocab_size if ids is None else len(ids),
        fc_norm=settings.fc_norm,
        norm_feedback=settings.fc_norm,
    )
    check_embeddings(sizes, target)
    check_states(sizes.states, target)
    torch.manual_seed(settings.seed)
    head = Eagle3Head(sizes, ids).place(target.device, torch.float32)
    with torch.no_grad():
        head.norm.weight.copy_(_scale(target, dialogues))
    return head


def _draft_ids(target: Target, dialogues: Sequence[Dialogue], size: int) -> Tensor | None:
    """[at most size] int64, ascending: the answers' most frequent tokens; None where all tokens are asked for."""
    if size >= target.vocab_size:
        return None
    answers = ([token for token, mark in zip(one.token_ids, one.answer, strict=True) if mark] for one in dialogues)
    return count_vocabulary(answers, size, target).ids.sort().values


@torch.no_grad()
def _scale(target: Target, dialogues: Sequence[Dialogue]) -> Tensor:
    """[t] root mean square of the target's last hidden states in each dimension, on some of the text."""
    squares, count = torch.zeros(int(target.config.hidden_size), device=target.device), 0
    run = target.hidden_pass(Features(last_hidden=True))
    for one in dialogues:
        hidden = run(input_ids=torch.tensor([one.token_ids], device=target.device))[0].float()
        squares, count = squares + hidden.pow(2).sum(dim=0), count + len(hidden)
        if count >= _SCALED_BY:
            break
    return (squares / max(1, count)).sqrt()
