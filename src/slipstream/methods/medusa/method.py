"""Medusa as a method: its options, and the drafter they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.drafting.base import Drafter
from slipstream.methods.method import Method, pick
from slipstream.target.target import Target


def _build(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafting.growth import TreeShape
    from slipstream.drafting.head_drafter import choose_shape
    from slipstream.methods.medusa.checkpoint import load_heads
    from slipstream.methods.medusa.drafter import MedusaDrafter

    heads = load_heads(METHOD.draft(target, options), target)
    given = pick(TreeShape, options)
    return MedusaDrafter(
        target, heads, choose_shape(METHOD.name, target, heads.sizes.num_heads, options.get("tree", "dynamic"), given)
    )


METHOD = Method(
    name="medusa",
    summary="heads that each guess one token further ahead fill a tree (Medusa)",
    needs="Medusa heads trained for the target",
    paper="arXiv 2401.10774",
    options=("draft", "tree", "width", "depth", "total", "calibrated"),
    build=_build,
    artefact="medusa",
)
