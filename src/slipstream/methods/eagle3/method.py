"""EAGLE-3 as a method: its options, and the drafter they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.drafting.base import Drafter
from slipstream.drafting.published_trees import EAGLE_1
from slipstream.drafting.shape import Chain, Dynamic, Shape, Static, default_tree, sized
from slipstream.errors import InputError, unknown_choice
from slipstream.methods.eagle3.drafter import Eagle3Drafter, Reading
from slipstream.methods.method import Method, option_names, pick
from slipstream.target.target import Target

TREES = ("dynamic", "static", "chain")


def _build(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.methods.eagle3.checkpoint import load_head

    reading = Reading(**pick(Reading, options))
    head = load_head(METHOD.draft(target, options), target)
    head.sizes = reading.of(head.sizes, target)
    return Eagle3Drafter(target, head, _shape(target, options, head.sizes.draft_vocab_size))


def _shape(target: Target, options: Mapping[str, Any], num_tokens: int) -> Shape:
    """The shape that options ask for, of a drafter that chooses among so many tokens."""
    tree, sizes, chain = options.get("tree", "dynamic"), pick(Dynamic, options), pick(Chain, options)
    if tree not in TREES:
        raise unknown_choice("tree", str(tree), TREES)
    idle = {**({} if tree == "dynamic" else sizes), **({} if tree == "chain" else chain)}
    if idle:
        raise InputError(f"eagle3 with tree={tree!r} does not read {', '.join(idle)}; leave it out or change tree")
    if tree == "chain":
        return Chain(**chain)
    if tree == "static":
        return Static(EAGLE_1).within(num_tokens)
    return sized(sizes, default_tree(target.model.num_parameters()))


METHOD = Method(
    name="eagle3",
    summary="a one-layer head on hidden states of three layers grows a tree by its confidence (EAGLE-3)",
    needs="an EAGLE-3 head trained for the target",
    paper="arXiv 2503.01840",
    options=option_names("draft", "tree", Dynamic, "calibrated", Chain, Reading),
    build=_build,
    artefact="eagle3",
)
