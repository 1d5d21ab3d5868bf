"""Writing a head as other codes read it: SafeAILab's, SGLang, vLLM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from slipstream.drafting.artefact_files import KINDS, artefact_kind, local_folder
from slipstream.errors import ArtifactError, unknown_choice
from slipstream.methods.eagle import checkpoint as eagle
from slipstream.methods.eagle3 import checkpoint as eagle3
from slipstream.methods.eagle3.layouts import OFFICIAL, SPECULATORS
from slipstream.target.target import Target

_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin")


def _as_eagle(source: Path, out: Path, target: Target) -> None:
    eagle.save_head(eagle.load_head(source, target, stored=True), out, target)


def _as_eagle3(source: Path, out: Path, target: Target) -> None:
    eagle3.save_head(eagle3.load_head(source, target, stored=True), out, target, origin=OFFICIAL, whole=True)


def _as_speculators(source: Path, out: Path, target: Target) -> None:
    eagle3.save_head(eagle3.load_head(source, target, stored=True), out, target, origin=SPECULATORS, whole=True)


FORMATS: dict[str, tuple[str, Callable[[Path, Path, Target], None]]] = {
    "eagle": ("eagle", _as_eagle),
    "eagle3": ("eagle3", _as_eagle3),
    "speculators": ("eagle3", _as_speculators),
}
"""By name: the kind of head that has this layout, and what writes it."""


def export_head(source: str | Path, out: Path, target: Target, layout: str) -> None:
    """Write a head in one of `FORMATS`, with its numbers as they are stored.

    EAGLE-3 heads get rows of the target's LM head where they have none of their own: other codes need them. Raises
    InputError for a layout that is unknown or has no words for the head, ArtifactError for another kind of head.
    """
    if layout not in FORMATS:
        raise unknown_choice("format", layout, FORMATS)
    wanted, write = FORMATS[layout]
    folder = local_folder(source, _FILES, "heads")
    kind = artefact_kind(folder)
    if kind is not None and kind != wanted:
        possible = [name for name, (one, _) in FORMATS.items() if one == kind]
        mend = f"write it as {' or '.join(possible)}" if possible else "only EAGLE and EAGLE-3 heads are written anew"
        raise ArtifactError(f"{source} holds {KINDS[kind][0]}, which has no layout {layout!r}; {mend}")
    write(folder, out, target)
