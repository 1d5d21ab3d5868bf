"""The methods by name, for `load`, the command line and tables. A new one is a line here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slipstream.core.confidence import ConfidenceScale
from slipstream.drafting.base import Drafter
from slipstream.errors import InputError, unknown_choice
from slipstream.methods import auto, lookahead, plain, prompt_lookup
from slipstream.methods.draft_model.method import METHOD as DRAFT_MODEL
from slipstream.methods.eagle.method import EAGLE, EAGLE2
from slipstream.methods.eagle3.method import METHOD as EAGLE3
from slipstream.methods.hydra.method import METHOD as HYDRA
from slipstream.methods.layer_skip.method import METHOD as LAYER_SKIP
from slipstream.methods.medusa.method import METHOD as MEDUSA
from slipstream.methods.method import Method
from slipstream.target.target import Target

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        plain.METHOD,
        auto.METHOD,
        LAYER_SKIP,
        EAGLE2,
        EAGLE,
        EAGLE3,
        DRAFT_MODEL,
        MEDUSA,
        HYDRA,
        prompt_lookup.METHOD,
        lookahead.METHOD,
    )
}


def build_drafter(name: str, target: Target, options: Mapping[str, Any], tokenizer: Any = None) -> Drafter:
    """The drafter `name` for a target. options: those of its `Method.options` that the caller set.

    tokenizer: the target's, for methods that compare vocabularies. Raises InputError for an unknown method, an option
    that the method does not read, or a bad value.
    """
    method = find_method(name, options)
    if method.chosen is not None:
        method = _chosen(method, method.chosen(target, options), options)
    rest = {option: value for option, value in options.items() if option != "calibrated"}
    drafter = method.build(target, {**rest, "tokenizer": tokenizer} if method.reads_tokenizer else rest)
    calibrated = options.get("calibrated", True)
    if not isinstance(calibrated, bool):
        raise InputError(f"calibrated is {calibrated!r}; it must be true or false")
    if not calibrated:
        drafter.confidence = ConfidenceScale()
    return drafter


def find_method(name: str, options: Iterable[str] = ()) -> Method:
    """The method `name`, which must read all of the named `options`. Raises InputError otherwise."""
    if name not in METHODS:
        raise unknown_choice("method", name, METHODS)
    method = METHODS[name]
    for option in options:
        if option in method.moved_options:
            raise InputError(f"method {name!r} has no option {option!r} any more: {method.moved_options[option]}")
        if option not in method.options:
            known = f"it takes {', '.join(method.options)}" if method.options else "it takes none"
            raise InputError(f"method {name!r} has no option {option!r}; {known}")
    return method


def _chosen(standing: Method, method: Method, options: Iterable[str]) -> Method:
    """The method that one stands for. Raises InputError for an option that it does not read."""
    idle = next((option for option in options if option not in method.options), None)
    if idle is not None:
        raise InputError(
            f"method {standing.name!r} is {method.name!r} for this model and has no option {idle!r} then; leave it out "
            "or name the method"
        )
    return method


def packaged_artefact(method: str, target_hash: str) -> Path | None:
    """The artefact of a method that ships with the package, if it was made for the target of this hash."""
    return METHODS[method].packaged(target_hash)
