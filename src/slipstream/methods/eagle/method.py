"""EAGLE-2 and EAGLE-1 as methods: their options, and the drafters they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.drafting.base import Drafter
from slipstream.drafting.shape import Dynamic, Shape
from slipstream.methods.method import Method, option_names, pick
from slipstream.target.target import Target


def _dynamic(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafting.shape import default_tree, sized

    return _drafter(EAGLE2, target, options, sized(pick(Dynamic, options), default_tree(target.model.num_parameters())))


def _static(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafting.published_trees import EAGLE_1
    from slipstream.drafting.shape import Static

    return _drafter(EAGLE, target, options, Static(EAGLE_1).within(target.vocab_size))


def _drafter(method: Method, target: Target, options: Mapping[str, Any], shape: Shape) -> Drafter:
    from slipstream.methods.eagle.checkpoint import load_head
    from slipstream.methods.eagle.drafter import EagleDrafter

    return EagleDrafter(target, load_head(method.draft(target, options), target), shape)


EAGLE2 = Method(
    name="eagle2",
    summary="a one-layer head on the target's features grows a tree by its confidence (EAGLE-2)",
    needs="an EAGLE head trained for the target",
    paper="arXiv 2406.16858",
    options=option_names("draft", Dynamic, "calibrated"),
    moved_options=dict.fromkeys(
        ("by_value", "rerank"), "it is an ablation of the paper, now in benchmarks/ablations.py"
    ),
    build=_dynamic,
    artefact="eagle",
)

EAGLE = Method(
    name="eagle",
    summary="the same head fills a tree of fixed shape (EAGLE-1)",
    needs="an EAGLE head trained for the target",
    paper="arXiv 2401.15077",
    options=option_names("draft"),
    build=_static,
    artefact="eagle",
)
