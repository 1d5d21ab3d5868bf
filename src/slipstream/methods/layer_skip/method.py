"""Layer-skip as a method: its options, and the drafter they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.drafting.base import Drafter
from slipstream.drafting.shape import Chain, Dynamic, Shape, sized
from slipstream.errors import unknown_choice
from slipstream.methods.layer_skip.adapt import AdaptSettings, adapt_settings
from slipstream.methods.method import Method, option_names, pick
from slipstream.target.target import Target

TREES = ("dynamic", "chain")
LARGEST = Dynamic(width=4, depth=5, total=20)
"""The largest tree that is sized by cost: each level is a pass of most of the target, so few are drafted wide."""


def _build(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.methods.layer_skip.drafter import LayerSkipDrafter

    tree = options.get("tree", TREES[0])
    if tree not in TREES:
        raise unknown_choice("tree", tree, TREES)
    shapes = {"dynamic": _tree(pick(Dynamic, options)), "chain": Chain(**pick(Chain, options))}
    adapt = adapt_settings(options)
    skip_set = options.get("skip_set" if adapt is None else "start_set")
    return LayerSkipDrafter(target, skip_set, shapes[tree], adapt=adapt)


def _tree(given: Mapping[str, Any]) -> Shape:
    """A given total fixes the tree, whose other sizes are then those of `Dynamic`."""
    return sized(given, LARGEST if isinstance(given.get("total", "auto"), str) else Dynamic())


METHOD = Method(
    name="layer-skip",
    summary="the target drafts for itself with some sub-layers skipped (Draft & Verify)",
    needs="nothing; a skip set found for the target helps",
    paper="arXiv 2309.08168",
    options=option_names("skip_set", "tree", Dynamic, "calibrated", Chain, "start_set", AdaptSettings),
    build=_build,
)
