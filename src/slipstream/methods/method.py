"""What a decoding method is: its name, what it needs and reads, and how its drafter is built."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from slipstream.drafting.artefact_files import check_kind
from slipstream.drafting.base import Drafter
from slipstream.errors import InputError
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
    """Keyword options of `load` that the method reads."""
    build: Callable[[Target, Mapping[str, Any]], Drafter]
    reads_tokenizer: bool = False
    """Whether `build` finds the target's tokenizer among its options, as `tokenizer`."""
    artefact: str | None = None
    """What `draft` must name, unless the demo's own fits: its folder in the package; None: it needs no artefact."""

    @property
    def runs_on_demo(self) -> bool:
        """Whether the package ships all that the method needs on the demo target."""
        return self.artefact is None or _packaged(self.artefact).is_dir()

    def packaged(self, target_hash: str) -> Path | None:
        """The artefact that ships with the package, if it was made for the target of this hash."""
        config = None if self.artefact is None else _packaged(self.artefact) / "config.json"
        if config is None or not config.is_file():
            return None
        made_for = json.loads(config.read_text(encoding="utf-8"))["slipstream"]["target"]
        return config.parent if made_for == target_hash else None

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


def pick(settings: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are fields of a settings class."""
    return {field.name: options[field.name] for field in fields(settings) if field.name in options}


def _packaged(artefact: str) -> Path:
    return Path(str(files("slipstream"))) / "demo" / artefact
