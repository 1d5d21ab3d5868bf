"""EAGLE-2 and EAGLE-1 as methods: their options, and the drafters they ask for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from slipstream.drafting.base import Drafter
from slipstream.drafting.shape import Dynamic, Shape
from slipstream.errors import InputError
from slipstream.methods.method import Method, option_names, pick
from slipstream.target.target import Target

logger = logging.getLogger(__name__)


def _dynamic(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafting.shape import default_tree, sized

    shape = sized(pick(Dynamic, options), default_tree(target.model.num_parameters()))
    return _drafter(EAGLE2, target, options, lambda columns: shape)


def _static(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafting.published_trees import EAGLE_1
    from slipstream.drafting.shape import AutoStatic, Static

    total = options.get("total", "auto")
    if total not in ("auto", "all"):
        raise InputError(f"eagle total is {total!r}; it must be 'auto', for as many levels as pay here, or 'all'")
    tree = Static(EAGLE_1)
    if total == "all":
        return _drafter(EAGLE, target, options, tree.within)
    return _drafter(EAGLE, target, options, lambda columns: AutoStatic(tree.within(columns)))


def _drafter(method: Method, target: Target, options: Mapping[str, Any], shape_for: Callable[[int], Shape]) -> Drafter:
    """shape_for: the tree for a drafter that chooses among so many tokens."""
    from slipstream.drafting.draft_vocabulary import asked_vocabulary
    from slipstream.methods.eagle.checkpoint import load_head
    from slipstream.methods.eagle.drafter import EagleDrafter

    head = load_head(method.draft(target, options), target)
    vocabulary = asked_vocabulary(options.get("draft_vocabulary"), head.vocabulary, target)
    if vocabulary is not None:
        try:
            return EagleDrafter(target, head, shape_for(len(vocabulary)), vocabulary)
        except InputError as error:
            if "draft_vocabulary" in options:
                raise
            logger.info("drafting from the whole vocabulary: %s", error)
    return EagleDrafter(target, head, shape_for(target.vocab_size))


EAGLE2 = Method(
    name="eagle2",
    summary="a one-layer head on the target's features grows a tree by its confidence (EAGLE-2)",
    needs="an EAGLE head trained for the target",
    paper="arXiv 2406.16858",
    options=option_names("draft", "draft_vocabulary", Dynamic, "calibrated"),
    moved_options=dict.fromkeys(
        ("by_value", "rerank"), "it is an ablation of the paper, now in benchmarks/ablations.py"
    ),
    build=_dynamic,
    artefact="eagle",
)

EAGLE = Method(
    name="eagle",
    summary="the same head fills a tree of fixed shape, as many of its levels as pay (EAGLE-1)",
    needs="an EAGLE head trained for the target",
    paper="arXiv 2401.15077",
    options=option_names("draft", "draft_vocabulary", "total"),
    build=_static,
    artefact="eagle",
)
