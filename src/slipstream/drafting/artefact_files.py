"""Files of trained draft artefacts: `config.json` beside one file of tensors, in a folder or on the hub.

What the tensors mean is the method's own affair; reading them safely, and saying in one line what is wrong with a
file, is the same for all. `what` names the artefact in messages, for instance "Medusa heads".
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from slipstream.core.confidence import ConfidenceScale
from slipstream.errors import ArtifactError, ArtifactWarning, InputError
from slipstream.target.target import Target

CONFIG, SAFETENSORS, PICKLED = "config.json", "model.safetensors", "pytorch_model.bin"
SAFETENSORS_INDEX = f"{SAFETENSORS}.index.json"
_WRAPPERS = ("module.", "model.")  # what a training loop leaves before every name
PROVENANCE = "slipstream"
"""Key of config.json under which artefacts trained here record their target and how they were made."""


def local_folder(source: str | Path, names: Sequence[str], what: str) -> Path:
    """The folder itself, or a local copy of a hub repository's config and `names`. Raises ArtifactError."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not isinstance(source, str) or source.count("/") != 1 or source.startswith((".", "/")):
        raise ArtifactError(f"there is no folder {str(source)!r}; give the folder or the hub id of {what}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from slipstream.target.hub import is_offline

    try:
        return Path(snapshot_download(source, allow_patterns=[CONFIG, *names], local_files_only=is_offline()))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ArtifactError(f"{source!r} is no folder, and the hub does not give it: {reason}") from error


KINDS = {
    "eagle": ("an EAGLE head", "eagle2"),
    "eagle3": ("an EAGLE-3 head", "eagle3"),
    "medusa": ("Medusa heads", "medusa"),
    "hydra": ("Hydra heads", "hydra"),
    "draft": ("a language model", "draft-model"),
}
"""What a folder may hold, by the artefact's name: in words, and the method that drafts with it."""


def artefact_kind(folder: Path) -> str | None:
    """Which of `KINDS` a folder holds; None where its files do not tell."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    for kind in ("hydra", "medusa"):
        if f"{kind}_num_heads" in config or (folder / f"{kind}_lm_head.pt").is_file():
            return kind
    path = folder / SAFETENSORS
    names = _unwrapped(dict.fromkeys(_tensor_names(path) if path.is_file() else _pickled_names(folder / PICKLED)))
    if "fc.weight" in names:
        return "eagle3" if any(name.endswith(".hidden_norm.weight") for name in names) else "eagle"
    if any(name.startswith("medusa_head.") for name in names):
        return "medusa"
    return "draft" if "model_type" in config and any(name.endswith("layernorm.weight") for name in names) else None


def check_kind(folder: Path, artefact: str) -> None:
    """Raise ArtifactError, naming what it is, if a folder holds another artefact than the one that is asked for."""
    kind = artefact_kind(folder)
    if kind not in (None, artefact):
        wanted = KINDS[artefact][0]
        holds, method = KINDS[str(kind)]
        raise ArtifactError(f"{folder} holds {holds}, not {wanted}; use it with method {method!r}, or give {wanted}")


def _tensor_names(path: Path) -> list[str]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError):
        return []


def _pickled_names(path: Path) -> list[str]:
    """The names alone: the tensors stay on disk."""
    try:
        return [str(name) for name in torch.load(path, map_location="cpu", weights_only=True, mmap=True)]
    except (OSError, ValueError, RuntimeError, EOFError, TypeError, UnpicklingError):
        return []


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that others may read as they may read any new file here."""
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata={"format": "pt"})
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def read_config(folder: Path, what: str) -> dict[str, Any]:
    """The artefact's config.json. Raises ArtifactError where there is none that can be read."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} has no readable {CONFIG} ({error}); give the folder of {what}") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{folder / CONFIG} is not a JSON object; give the folder of {what}")
    recorded(config, folder / CONFIG)
    return config


def recorded(config: Mapping[str, Any], where: str | Path) -> Mapping[str, Any]:
    """What an artefact that was trained here records of its making; empty for any other.

    config: its config.json; where: that file in words, for the ArtifactError if the record is not an object.
    """
    record = config.get(PROVENANCE)
    if record is not None and not isinstance(record, Mapping):
        raise ArtifactError(f"{where}: {PROVENANCE} is {record!r}; it must be an object, or be left out")
    return record or {}


def recorded_confidence(config: Mapping[str, Any], where: str | Path) -> ConfidenceScale:
    """The scale found by calibration; artefacts that were not calibrated get the default. Arguments: `recorded`'s."""
    try:
        return ConfidenceScale.of(recorded(config, where).get("confidence_scale"))
    except InputError as error:
        raise ArtifactError(f"{where}: {error}") from error


def read_tensors(
    folder: Path, names: Sequence[str], what: str, *, prefix: str = "", source: str | Path = ""
) -> dict[str, Tensor]:
    """The tensors of the first of the files `names` that is there, on the CPU. Pickles are read as weights only.

    A prefix that all names share because a training loop wrapped the module is left out. prefix: where some names of
    a safetensors file have it, only those are read. source: where pieces that an index names are fetched from.
    """
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise ArtifactError(f"{folder} holds no {' or '.join(names)}; the weights of the {what} are missing")
    try:
        if path.name == SAFETENSORS_INDEX:
            tensors = _read_pieces(path, prefix, source, what)
        elif path.suffix == ".safetensors":
            tensors = _read_safetensors(path, prefix)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ArtifactError(f"cannot read {path}: {reason}; fetch the {what} again") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ArtifactError(f"{path} is not a dictionary of tensors; give the folder of {what}")
    spoilt = next((name for name, value in tensors.items() if not torch.isfinite(value).all()), None)
    if spoilt is not None:
        raise ArtifactError(f"{path}: {spoilt} holds numbers that are not finite; fetch the {what} again")
    return _unwrapped(tensors)


def _read_safetensors(path: Path, prefix: str) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        wanted = [name for name in names if name.startswith(prefix)] or names
        return {name: file.get_tensor(name) for name in wanted}


def _read_pieces(index: Path, prefix: str, source: str | Path, what: str) -> dict[str, Tensor]:
    """The tensors with a prefix from the files that an index names for them; no other file is needed."""
    places = json.loads(index.read_text(encoding="utf-8"))
    places = places.get("weight_map") if isinstance(places, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ArtifactError(f"{index} names no file for each tensor; fetch the {what} again")
    wanted = [name for name in places if name.startswith(prefix)] or list(places)
    files = sorted({Path(places[name]).name for name in wanted})
    folder = (
        index.parent if all((index.parent / name).is_file() for name in files) else local_folder(source, files, what)
    )
    missing = next((name for name in files if not (folder / name).is_file()), None)
    if missing is not None:
        raise ArtifactError(f"{folder} lacks {missing}, in which {index.name} places some of the {what}")
    read = [_read_safetensors(folder / name, prefix) for name in files]
    return {name: tensor for tensors in read for name, tensor in tensors.items()}


def _unwrapped(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The same under names without what stands before every one of them because a module was wrapped."""
    for wrapper in _WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            return _unwrapped({name.removeprefix(wrapper): one for name, one in tensors.items()})
    return dict(tensors)


def stored_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that holds all numbers of an artefact as they are stored."""
    return reduce(torch.promote_types, (one.dtype for one in tensors.values() if one.is_floating_point()))


def check_names(folder: Path, found: Iterable[str], wanted: Iterable[str], ignored: Iterable[str], what: str) -> None:
    """Every wanted tensor must be there, and nothing else but the ignored ones. Raises ArtifactError naming them."""
    found, wanted = set(found), set(wanted)
    missing = sorted(wanted - found)
    if missing:
        raise ArtifactError(f"{folder} lacks {shortened(missing)}; these {what} are not complete")
    unknown = sorted(found - wanted - set(ignored))
    if unknown:
        raise ArtifactError(
            f"{folder} has tensors that {what} of its config do not have: {shortened(unknown)}; it is a variant that "
            "would draft wrongly without them"
        )


def shortened(names: Sequence[str], most: int = 6) -> str:
    """The first names of a list, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def check_shapes(folder: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> None:
    """Every tensor must have its wanted shape. Raises ArtifactError naming the first that has not."""
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise ArtifactError(
                f"{folder}: {name} has shape {tuple(tensors[name].shape)}, but the config, the other tensors and the "
                f"target call for {tuple(shape)}; was it made for another target?"
            )


def warn_of_other_target(folder: Path, config: Mapping[str, Any], target: Target, what: str) -> None:
    """ArtifactWarning where the artefact records another target; one that records none is taken as it is."""
    made_for = recorded(config, folder / CONFIG).get("target")
    if made_for not in (None, target.hash):
        warnings.warn(
            f"the {what} in {folder} were trained for target {made_for}, not for {target.hash}: output stays exact, "
            "but the draft may be poor. Train some for this target.",
            ArtifactWarning,
            stacklevel=4,
        )
