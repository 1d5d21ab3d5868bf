"""Draft-model as a method: its options, and the drafter they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.drafting.base import Drafter
from slipstream.drafting.shape import Dynamic, Shape, sized
from slipstream.errors import InputError, unknown_choice
from slipstream.methods.draft_model.drafter import DraftChain
from slipstream.methods.method import Method, option_names, pick
from slipstream.target.target import Target

TREES = ("dynamic", "chain")


def _build(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.methods.draft_model.checkpoint import load_draft
    from slipstream.methods.draft_model.drafter import DraftModelDrafter

    shape = _shape(options)
    draft = load_draft(METHOD.draft(target, options), target, options.get("tokenizer"), options.get("draft_tokenizer"))
    return DraftModelDrafter(target, draft, shape)


def _shape(options: Mapping[str, Any]) -> Shape:
    tree, sizes, chain = options.get("tree", "dynamic"), pick(Dynamic, options), pick(DraftChain, options)
    if tree not in TREES:
        raise unknown_choice("tree", tree, TREES)
    if idle := chain if tree == "dynamic" else sizes:
        raise InputError(f"draft-model with tree={tree!r} does not read {', '.join(idle)}; leave it out or change tree")
    return DraftChain(**chain) if tree == "chain" else sized(sizes, Dynamic(width=8, depth=5, total=20))


METHOD = Method(
    name="draft-model",
    summary="a smaller model drafts: a tree by its confidence, or the published chain (speculative sampling)",
    needs="a smaller model with the target's vocabulary",
    paper="arXiv 2211.17192, 2302.01318",
    options=option_names("draft", "draft_tokenizer", "tree", Dynamic, "calibrated", DraftChain),
    build=_build,
    reads_tokenizer=True,
    artefact="draft",
)
