"""Hydra as a method: its options, and the drafter they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.drafting.base import Drafter
from slipstream.methods.method import Method, pick
from slipstream.target.target import Target


def _build(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafting.growth import TreeShape
    from slipstream.drafting.head_drafter import choose_shape
    from slipstream.methods.hydra.checkpoint import load_heads
    from slipstream.methods.hydra.drafter import HydraDrafter

    heads = load_heads(METHOD.draft(target, options), target)
    given = pick(TreeShape, options)
    return HydraDrafter(
        target, heads, choose_shape(METHOD.name, target, heads.sizes.num_heads, options.get("tree", "dynamic"), given)
    )


METHOD = Method(
    name="hydra",
    summary="heads that each know the tokens drafted before them grow a tree (Hydra, Hydra++)",
    needs="Hydra heads trained for the target",
    paper="arXiv 2402.05109",
    options=("draft", "tree", "width", "depth", "total", "calibrated"),
    build=_build,
    artefact="hydra",
)
