"""What ships inside the package: the tiny model, and artefacts by the model they were made for.

They lie in `demo/<model>/<artefact>`; a target finds its own by its hash, whatever name it was loaded by.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from slipstream.errors import ArtifactError

TINY, SMOLLM2 = "tiny", "smollm2"
NAMES = (TINY, SMOLLM2)
"""Names under which `load` and `-m` know a model without a hub or a folder."""


def shipped(model: str, artefact: str) -> Path:
    """Where an artefact of a named model lies, if it ships: one of NAMES, and such as "eagle" or "skip_sets"."""
    return _root() / model / artefact


def shipped_for_any(artefact: str) -> list[Path]:
    """The folders of this artefact that ship, one a model."""
    return [folder for model in NAMES if (folder := shipped(model, artefact)).is_dir()]


def tiny_folder() -> Path:
    """Where the tiny target lies. Raises ArtifactError if it is not there."""
    folder = shipped(TINY, "target")
    if not (folder / "model.safetensors").is_file():
        raise ArtifactError(f"the tiny model is missing from this installation ({folder}); reinstall slipstream-llm")
    return folder


def _root() -> Path:
    return Path(str(files("slipstream"))) / "demo"
