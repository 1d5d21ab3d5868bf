"""Tiny models in any dtype, a tokenizer that reads numbers, and certificates of small runs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from itertools import repeat
from types import SimpleNamespace
from typing import Any

import torch

from doubles import Script, Scripted
from families import FAMILIES
from slipstream.certify import Certificate, Certification, CertifySettings
from slipstream.certify.recording import ONE_ROW
from slipstream.certify.reference import Reference
from slipstream.certify.requests import make_request
from slipstream.drafting.base import Drafter
from slipstream.engine.sequence import Request
from slipstream.model import Model
from slipstream.prompts import Prompt
from slipstream.target.target import Target

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NUM_NEW = 14

NUMBERS = SimpleNamespace(
    encode=lambda text: [int(word) for word in text.split()],
    decode=lambda ids: " ".join(map(str, ids)),
    chat_template=None,
)
"""A text is a list of token ids."""


@functools.cache
def target_of(family: str = "llama", dtype: torch.dtype = torch.float32) -> Target:
    """A tiny target by family and dtype; built once, so tests must not change it."""
    return Target(copy.deepcopy(FAMILIES[family]()).to(dtype))


def plain_text(target: Target, request: Request) -> list[int]:
    """What plain decoding says, in passes of one row."""
    reference = Reference(target, request, prefill_chunk=512)
    return [picked.token for picked in reference.decode(repeat(ONE_ROW))]


def certify(
    target: Target,
    drafter: Drafter,
    prompt: Sequence[int],
    *,
    in_float64: Callable[[], Model] | None = None,
    **settings: Any,
) -> Certificate:
    """The certificate of a drafter's answers to one prompt, greedy ones alone unless the settings say otherwise."""
    certification = Certification(
        model=Model(target, drafter, NUMBERS),
        prompts=[Prompt(id=1, kind="chat", turns=(" ".join(map(str, prompt)),))],
        settings=CertifySettings(**{"max_new_tokens": NUM_NEW, "num_seeds": 0, "num_samples": 0, **settings}),
        in_float64=in_float64,
    )
    return certification.run({})


def scripted(target: Target, script: Script, prompt: Sequence[int], num_new: int = NUM_NEW) -> Scripted:
    """A drafter that knows the target's greedy text."""
    return Scripted(script, plain_text(target, make_request(target, prompt, num_new)))
