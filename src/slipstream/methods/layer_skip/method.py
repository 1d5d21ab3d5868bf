"""Layer-skip as a method: its options, and the drafter they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.drafting.base import Drafter
from slipstream.methods.method import Method, pick
from slipstream.target.target import Target


def _build(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafting.exit_threshold import ChainSettings
    from slipstream.drafting.growth import TreeShape
    from slipstream.methods.layer_skip.adapt import adapt_settings
    from slipstream.methods.layer_skip.drafter import LayerSkipDrafter

    adapt = adapt_settings(options)
    return LayerSkipDrafter(
        target,
        options.get("skip_set" if adapt is None else "start_set"),
        tree=options.get("tree", "dynamic"),
        shape=TreeShape(**pick(TreeShape, options)),
        chain_settings=ChainSettings(**pick(ChainSettings, options)),
        adapt=adapt,
    )


METHOD = Method(
    name="layer-skip",
    summary="the target drafts for itself with some sub-layers skipped (Draft & Verify)",
    needs="nothing; a skip set found for the target helps",
    paper="arXiv 2309.08168",
    options=(
        *("skip_set", "tree", "width", "depth", "total", "calibrated"),
        *("length", "threshold", "adaptive", "target_acceptance"),
        *("start_set", "overhead", "trial_rows"),
    ),
    build=_build,
)
