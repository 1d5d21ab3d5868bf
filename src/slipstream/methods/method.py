"""What a decoding method is: its name, what it needs and reads, and how its drafter is built."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from slipstream.drafting.artefact_files import check_kind
from slipstream.drafting.base import Drafter
from slipstream.errors import InputError
from slipstream.files.packaged import NAMES, TINY, shipped, shipped_for_any
from slipstream.target.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A decoding method."""

    name: str
    summary: str
    needs: str
    """What has to be at hand besides the target."""
    paper: str
    options: tuple[str, ...]
    """Keyword options of `load` that the method reads: `option_names` takes them from its settings classes."""
    build: Callable[[Target, Mapping[str, Any]], Drafter]
    reads_tokenizer: bool = False
    """Whether `build` finds the target's tokenizer among its options, as `tokenizer`."""
    moved_options: Mapping[str, str] = field(default_factory=dict)
    """Options that the method had once, and a sentence that says what to do instead."""
    chosen: Callable[[Target, Mapping[str, Any]], Method] | None = None
    """For a method that stands for others: which of them it is for a target and options."""
    artefact: str | None = None
    """What `draft` must name, unless a packaged one fits: its folder in the package; None: it needs no artefact."""

    @property
    def runs_on_demo(self) -> bool:
        """Whether the package ships all that the method needs on the tiny model."""
        return self.runs_on(TINY)

    def runs_on(self, model: str) -> bool:
        """Whether the package ships all that the method needs on a model of this name."""
        return self.artefact is None or (model in NAMES and shipped(model, self.artefact).is_dir())

    def packaged(self, target_hash: str) -> Path | None:
        """The artefact that ships with the package, if one was made for the target of this hash."""
        for folder in () if self.artefact is None else shipped_for_any(self.artefact):
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if config["slipstream"]["target"] == target_hash:
                return folder
        return None

    def draft(self, target: Target, options: Mapping[str, Any]) -> str | Path:
        """The artefact that the caller gave, or the packaged one if it was made for this target."""
        given: str | Path | None = options.get("draft")
        assert self.artefact is not None
        if given is not None:
            if isinstance(given, str | Path) and Path(given).is_dir():
                check_kind(Path(given), self.artefact)
            return given
        if packaged := self.packaged(target.hash):
            return packaged
        raise InputError(
            f"method {self.name!r} needs {self.needs}: give draft=PATH (--draft PATH) or a hub id; "
            f"`slipstream train {self.artefact}` makes one for {target.name}"
        )


def option_names(*sources: str | type) -> tuple[str, ...]:
    """The options of a method: each source is one by its name, or a settings class whose fields are options."""
    names: list[str] = []
    for source in sources:
        names += [source] if isinstance(source, str) else [one.name for one in fields(source)]
    return tuple(dict.fromkeys(names))


def pick(settings: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are fields of a settings class."""
    return {one.name: options[one.name] for one in fields(settings) if one.name in options}
