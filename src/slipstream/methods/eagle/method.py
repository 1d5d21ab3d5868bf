"""EAGLE-2 and EAGLE-1 as methods: their options, and the drafters they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from slipstream.drafting.base import Drafter
from slipstream.methods.method import Method, pick
from slipstream.target.target import Target


def _dynamic(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafting.auto_shape import AutoShape
    from slipstream.drafting.default_shape import default_shape
    from slipstream.drafting.growth import TreeShape
    from slipstream.methods.eagle.checkpoint import load_head
    from slipstream.methods.eagle.drafter import EagleDrafter

    given = pick(TreeShape, options)
    by_cost = given.get("total", "auto") == "auto" and given.keys() <= {"width", "depth", "total"}
    if by_cost:
        given.pop("total", None)
    shape = replace(default_shape(target.model.num_parameters()), **given)
    head = load_head(EAGLE2.draft(target, options), target)
    return EagleDrafter(target, head, AutoShape(shape) if by_cost else shape)


def _static(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafting.static_tree import EAGLE_1, StaticTree
    from slipstream.methods.eagle.checkpoint import load_head
    from slipstream.methods.eagle.drafter import EagleDrafter

    paths = (path for path in EAGLE_1 if max(path) < target.vocab_size)
    head = load_head(EAGLE.draft(target, options), target)
    return EagleDrafter(target, head, StaticTree(paths, target.device))


EAGLE2 = Method(
    name="eagle2",
    summary="a one-layer head on the target's features grows a tree by its confidence (EAGLE-2)",
    needs="an EAGLE head trained for the target",
    paper="arXiv 2406.16858",
    options=("draft", "width", "depth", "total", "by_value", "rerank", "calibrated"),
    build=_dynamic,
    artefact="eagle",
)

EAGLE = Method(
    name="eagle",
    summary="the same head fills a tree of fixed shape (EAGLE-1)",
    needs="an EAGLE head trained for the target",
    paper="arXiv 2401.15077",
    options=("draft",),
    build=_static,
    artefact="eagle",
)
