"""The drafters by name, and what each is, for `load`, the command line and tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from slipstream.confidence import ConfidenceScale
from slipstream.drafters.artefact_files import check_kind
from slipstream.drafters.base import Drafter
from slipstream.errors import InputError, unknown_choice
from slipstream.packaged import NAMES, TINY, shipped, shipped_for_any
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
    reads_tokenizer: bool = False
    """Whether `build` finds the target's tokenizer among its options, as `tokenizer`."""
    artefact: str | None = None
    """What `draft` must name, unless a packaged one fits: its folder in the package; None: it needs no artefact."""

    @property
    def runs_on_demo(self) -> bool:
        """Whether the package ships all that the method needs on the tiny model."""
        return self.runs_on(TINY)

    def runs_on(self, model: str) -> bool:
        """Whether the package ships all that the method needs on a model of this name."""
        return self.artefact is None or (model in NAMES and shipped(model, self.artefact).is_dir())


def build_drafter(name: str, target: Target, options: Mapping[str, Any], tokenizer: Any = None) -> Drafter:
    """The drafter `name` for a target. options: those of its `Method.options` that the caller set.

    tokenizer: the target's, for methods that compare vocabularies. Raises InputError for an unknown method, an option
    that the method does not read, or a bad value.
    """
    method = find_method(name, options)
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
        if option not in method.options:
            known = f"it takes {', '.join(method.options)}" if method.options else "it takes none"
            raise InputError(f"method {name!r} has no option {option!r}; {known}")
    return method


def _pick(settings: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are fields of a settings class."""
    return {field.name: options[field.name] for field in fields(settings) if field.name in options}


def _plain(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafters.plain import PlainDrafter

    return PlainDrafter()


def _prompt_lookup(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafters.prompt_lookup import PromptLookupDrafter, PromptLookupSettings

    return PromptLookupDrafter(PromptLookupSettings(**_pick(PromptLookupSettings, options)))


def _lookahead(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafters.lookahead import LookaheadDrafter, LookaheadSettings

    return LookaheadDrafter(LookaheadSettings(**_pick(LookaheadSettings, options)))


def _layer_skip(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafters.exit_threshold import ChainSettings
    from slipstream.drafters.growth import TreeShape
    from slipstream.drafters.layer_skip import LayerSkipDrafter
    from slipstream.skipping.adaptive import adapt_settings

    adapt = adapt_settings(options)
    return LayerSkipDrafter(
        target,
        options.get("skip_set" if adapt is None else "start_set"),
        tree=options.get("tree", "dynamic"),
        shape=TreeShape(**_pick(TreeShape, options)),
        chain_settings=ChainSettings(**_pick(ChainSettings, options)),
        adapt=adapt,
    )


def _eagle2(target: Target, options: Mapping[str, Any]) -> Drafter:
    from dataclasses import replace

    from slipstream.drafters.auto_shape import AutoShape
    from slipstream.drafters.eagle import EagleDrafter
    from slipstream.drafters.eagle_checkpoint import load_head
    from slipstream.drafters.eagle_shape import default_shape
    from slipstream.drafters.growth import TreeShape

    given = _pick(TreeShape, options)
    by_cost = given.get("total", "auto") == "auto" and given.keys() <= {"width", "depth", "total"}
    if by_cost:
        given.pop("total", None)
    shape = replace(default_shape(target.model.num_parameters()), **given)
    head = load_head(_draft("eagle2", target, options), target)
    return EagleDrafter(target, head, AutoShape(shape) if by_cost else shape)


def _eagle(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafters.eagle import EagleDrafter
    from slipstream.drafters.eagle_checkpoint import load_head
    from slipstream.drafters.static_tree import EAGLE_1, StaticTree

    paths = (path for path in EAGLE_1 if max(path) < target.vocab_size)
    head = load_head(_draft("eagle", target, options), target)
    return EagleDrafter(target, head, StaticTree(paths, target.device))


def _draft_model(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafters.auto_shape import AutoShape
    from slipstream.drafters.draft_checkpoint import load_draft
    from slipstream.drafters.draft_model import DraftChainSettings, DraftModelDrafter
    from slipstream.drafters.growth import TreeShape

    tree, sizes, chain = options.get("tree", "dynamic"), _pick(TreeShape, options), _pick(DraftChainSettings, options)
    if idle := chain if tree == "dynamic" else sizes:
        raise InputError(f"draft-model with tree={tree!r} does not read {', '.join(idle)}; leave it out or change tree")
    by_cost = sizes.get("total", "auto") == "auto"
    if by_cost:
        sizes.pop("total", None)
    shape = TreeShape(**{"width": 8, "depth": 5, "total": 20, **sizes})
    chain_settings = DraftChainSettings(**chain)
    draft = load_draft(
        _draft("draft-model", target, options), target, options.get("tokenizer"), options.get("draft_tokenizer")
    )
    fitted = AutoShape(shape) if by_cost else shape
    return DraftModelDrafter(target, draft, tree=tree, shape=fitted, chain_settings=chain_settings)


def _medusa(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafters.growth import TreeShape
    from slipstream.drafters.head_drafter import choose_shape
    from slipstream.drafters.medusa import MedusaDrafter
    from slipstream.drafters.medusa_checkpoint import load_heads

    heads = load_heads(_draft("medusa", target, options), target)
    given = _pick(TreeShape, options)
    return MedusaDrafter(
        target, heads, choose_shape("medusa", target, heads.sizes.num_heads, options.get("tree", "dynamic"), given)
    )


def _hydra(target: Target, options: Mapping[str, Any]) -> Drafter:
    from slipstream.drafters.growth import TreeShape
    from slipstream.drafters.head_drafter import choose_shape
    from slipstream.drafters.hydra import HydraDrafter
    from slipstream.drafters.hydra_checkpoint import load_heads

    heads = load_heads(_draft("hydra", target, options), target)
    given = _pick(TreeShape, options)
    return HydraDrafter(
        target, heads, choose_shape("hydra", target, heads.sizes.num_heads, options.get("tree", "dynamic"), given)
    )


def packaged_artefact(method: str, target_hash: str) -> Path | None:
    """The artefact of a method that ships with the package, if one was made for the target of this hash."""
    artefact = METHODS[method].artefact
    for folder in () if artefact is None else shipped_for_any(artefact):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["slipstream"]["target"] == target_hash:
            return folder
    return None


def _draft(method: str, target: Target, options: Mapping[str, Any]) -> str | Path:
    """The artefact that the caller gave, or the packaged one if it was made for this target."""
    given: str | Path | None = options.get("draft")
    artefact = METHODS[method].artefact
    assert artefact is not None
    if given is not None:
        if isinstance(given, str | Path) and Path(given).is_dir():
            check_kind(Path(given), artefact)
        return given
    if packaged := packaged_artefact(method, target.hash):
        return packaged
    raise InputError(
        f"method {method!r} needs {METHODS[method].needs}: give draft=PATH (--draft PATH) or a hub id; "
        f"`slipstream train {artefact}` makes one for {target.name}"
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
                *("skip_set", "tree", "width", "depth", "total", "calibrated"),
                *("length", "threshold", "adaptive", "target_acceptance"),
                *("start_set", "overhead", "trial_rows"),
            ),
            build=_layer_skip,
        ),
        Method(
            name="eagle2",
            summary="a one-layer head on the target's features grows a tree by its confidence (EAGLE-2)",
            needs="an EAGLE head trained for the target",
            paper="arXiv 2406.16858",
            options=("draft", "width", "depth", "total", "by_value", "rerank", "calibrated"),
            build=_eagle2,
            artefact="eagle",
        ),
        Method(
            name="eagle",
            summary="the same head fills a tree of fixed shape (EAGLE-1)",
            needs="an EAGLE head trained for the target",
            paper="arXiv 2401.15077",
            options=("draft",),
            build=_eagle,
            artefact="eagle",
        ),
        Method(
            name="draft-model",
            summary="a smaller model drafts: a tree by its confidence, or the published chain (speculative sampling)",
            needs="a smaller model with the target's vocabulary",
            paper="arXiv 2211.17192, 2302.01318",
            options=(
                *("draft", "draft_tokenizer", "tree", "width", "depth", "total", "calibrated"),
                *("length", "schedule", "threshold", "adaptive", "target_acceptance"),
            ),
            build=_draft_model,
            reads_tokenizer=True,
            artefact="draft",
        ),
        Method(
            name="medusa",
            summary="heads that each guess one token further ahead fill a tree (Medusa)",
            needs="Medusa heads trained for the target",
            paper="arXiv 2401.10774",
            options=("draft", "tree", "width", "depth", "total", "calibrated"),
            build=_medusa,
            artefact="medusa",
        ),
        Method(
            name="hydra",
            summary="heads that each know the tokens drafted before them grow a tree (Hydra, Hydra++)",
            needs="Hydra heads trained for the target",
            paper="arXiv 2402.05109",
            options=("draft", "tree", "width", "depth", "total", "calibrated"),
            build=_hydra,
            artefact="hydra",
        ),
        Method(
            name="prompt-lookup",
            summary="drafts what followed the last tokens earlier in the text (PLD)",
            needs="nothing",
            paper="github.com/apoorvumang/prompt-lookup-decoding",
            options=("max_ngram", "length", "branches"),
            build=_prompt_lookup,
        ),
        Method(
            name="lookahead",
            summary="the target guesses further ahead in the same pass; what it says there becomes n-grams (Lookahead)",
            needs="nothing",
            paper="arXiv 2402.02057",
            options=("window", "level", "guesses", "pool_from_prompt"),
            build=_lookahead,
        ),
    )
}
