"""Medusa as a method: its options, and the drafter they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.drafting.base import Drafter
from slipstream.drafting.shape import Dynamic
from slipstream.methods.method import Method, option_names
from slipstream.target.target import Target


def _build(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafting.drafter import head_shape
    from slipstream.methods.medusa.checkpoint import load_heads
    from slipstream.methods.medusa.drafter import MedusaDrafter

    heads = load_heads(METHOD.draft(target, options), target)
    return MedusaDrafter(target, heads, head_shape(METHOD.name, target, heads.sizes.num_heads, options))


METHOD = Method(
    name="medusa",
    summary="heads that each guess one token further ahead fill a tree (Medusa)",
    needs="Medusa heads trained for the target",
    paper="arXiv 2401.10774",
    options=option_names("draft", "tree", Dynamic, "calibrated"),
    build=_build,
    artefact="medusa",
)
