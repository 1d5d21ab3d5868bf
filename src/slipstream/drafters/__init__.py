"""The drafters by name, and what each is, for `load`, the command line and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from slipstream.drafters.base import Drafter
from slipstream.errors import InputError, unknown_choice
from slipstream.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A decoding method."""

    name: str
    summary: str
    needs: str
    """What has to be at hand besides the target."""
    paper: str
    options: tuple[str, ...]
    """Keyword options of `load` that the method reads."""
    build: Callable[[Target, Mapping[str, Any]], Drafter]


def build_drafter(name: str, target: Target, options: Mapping[str, Any]) -> Drafter:
    """The drafter `name` for a target. options: those of its `Method.options` that the caller set.

    Raises InputError for an unknown method, an option that the method does not read, or a bad value.
    """
    if name not in METHODS:
        raise unknown_choice("method", name, METHODS)
    method = METHODS[name]
    for option in options:
        if option not in method.options:
            known = f"it takes {', '.join(method.options)}" if method.options else "it takes none"
            raise InputError(f"method {name!r} has no option {option!r}; {known}")
    return method.build(target, options)


def _pick(settings: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are fields of a settings class."""
    return {field.name: options[field.name] for field in fields(settings) if field.name in options}


def _plain(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafters.plain import PlainDrafter

    return PlainDrafter()


def _prompt_lookup(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafters.prompt_lookup import PromptLookupDrafter, PromptLookupSettings

    return PromptLookupDrafter(PromptLookupSettings(**_pick(PromptLookupSettings, options)))


def _layer_skip(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafters.growth import TreeShape
    from slipstream.drafters.layer_skip import ChainSettings, LayerSkipDrafter

    return LayerSkipDrafter(
        target,
        options.get("skip_set"),
        tree=options.get("tree", "dynamic"),
        shape=TreeShape(**_pick(TreeShape, options)),
        chain_settings=ChainSettings(**_pick(ChainSettings, options)),
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="plain",
            summary="no drafting: plain decoding on the same engine, the baseline",
            needs="nothing",
            paper="-",
            options=(),
            build=_plain,
        ),
        Method(
            name="layer-skip",
            summary="the target drafts for itself with some sub-layers skipped (Draft & Verify)",
            needs="nothing; a skip set found for the target helps",
            paper="arXiv 2309.08168",
            options=(
                *("skip_set", "tree", "width", "depth", "total"),
                *("length", "threshold", "adaptive", "target_acceptance"),
            ),
            build=_layer_skip,
        ),
        Method(
            name="prompt-lookup",
            summary="drafts what followed the last tokens earlier in the text (PLD)",
            needs="nothing",
            paper="github.com/apoorvumang/prompt-lookup-decoding",
            options=("max_ngram", "length", "branches"),
            build=_prompt_lookup,
        ),
    )
}
