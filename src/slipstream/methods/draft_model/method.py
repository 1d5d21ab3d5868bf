"""Draft-model as a method: its options, and the drafter they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.drafting.base import Drafter
from slipstream.errors import InputError
from slipstream.methods.method import Method, pick
from slipstream.target.target import Target


def _build(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafting.auto_shape import AutoShape
    from slipstream.drafting.growth import TreeShape
    from slipstream.methods.draft_model.checkpoint import load_draft
    from slipstream.methods.draft_model.drafter import DraftChainSettings, DraftModelDrafter

    tree, sizes, chain = options.get("tree", "dynamic"), pick(TreeShape, options), pick(DraftChainSettings, options)
    if idle := chain if tree == "dynamic" else sizes:
        raise InputError(f"draft-model with tree={tree!r} does not read {', '.join(idle)}; leave it out or change tree")
    by_cost = sizes.get("total", "auto") == "auto"
    if by_cost:
        sizes.pop("total", None)
    shape = TreeShape(**{"width": 8, "depth": 5, "total": 20, **sizes})
    chain_settings = DraftChainSettings(**chain)
    draft = load_draft(METHOD.draft(target, options), target, options.get("tokenizer"), options.get("draft_tokenizer"))
    fitted = AutoShape(shape) if by_cost else shape
    return DraftModelDrafter(target, draft, tree=tree, shape=fitted, chain_settings=chain_settings)


METHOD = Method(
    name="draft-model",
    summary="a smaller model drafts: a tree by its confidence, or the published chain (speculative sampling)",
    needs="a smaller model with the target's vocabulary",
    paper="arXiv 2211.17192, 2302.01318",
    options=(
        *("draft", "draft_tokenizer", "tree", "width", "depth", "total", "calibrated"),
        *("length", "schedule", "threshold", "adaptive", "target_acceptance"),
    ),
    build=_build,
    reads_tokenizer=True,
    artefact="draft",
)
