"""transformers' own `generate`: a greedy reference that shares nothing with ours but the weights.

It says two things. Its answer is the one that ours has to be, but for rounding: without it, a fault that our own plain
decoding shares with the engine would go unseen. And the distance between its own passes of one row and its own pass
over the whole text is the yardstick of rounding in this dtype on this device, measured on code that is not ours.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.certify.distances import distance
from slipstream.engine.sequence import Request
from slipstream.target.target import Target

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_NOT_PLAIN = ("prompt_lookup_num_tokens", "assistant_early_exit", "stop_strings")


@dataclass(frozen=True, slots=True)
class TransformersAnswer:
    """A greedy answer of transformers'."""

    token_ids: tuple[int, ...]
    logits: Tensor  # [tokens, vocab] the model's own
    scores: Tensor  # [tokens, vocab] processed; each token is the argmax of its row
    yardstick: float
    """The largest distance of a logit here from the same logit in one pass over the whole text."""


@torch.inference_mode()
def transformers_answer(target: Target, request: Request) -> TransformersAnswer:
    """Decode a greedy request by `generate`."""
    model, num_prompt = target.model, len(request.prompt_ids)
    room = request.max_new_tokens if target.context_length is None else target.context_length - num_prompt
    config = copy.deepcopy(model.generation_config)
    for name in (*_SAMPLING, *_NOT_PLAIN):
        setattr(config, name, None)
    if room < request.max_new_tokens:
        config.forced_eos_token_id = None  # it stands where the budget ends, beyond the context
    config.update(
        do_sample=False,
        max_length=None,
        max_new_tokens=min(request.max_new_tokens, room),
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
        use_cache=target.family.may_keep_keys,
    )
    if config.pad_token_id is None and request.processing.eos_token_ids:
        config.pad_token_id = request.processing.eos_token_ids[0]  # what `generate` does, with a note in the log
    ids = torch.tensor([list(request.prompt_ids)], device=target.device)  # [1, prompt]
    own, model.generation_config = model.generation_config, config  # `generate` fills gaps from the model's
    try:
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    finally:
        model.generation_config = own
    text = output.sequences  # [1, prompt + tokens]
    logits = target.upcast(torch.cat(output.logits))  # [tokens, vocab]
    whole = target.upcast(model(input_ids=text[:, :-1], use_cache=False).logits[0, num_prompt - 1 :])
    return TransformersAnswer(
        tuple(text[0, num_prompt:].tolist()), logits, torch.cat(output.scores), distance(logits, whole)
    )
