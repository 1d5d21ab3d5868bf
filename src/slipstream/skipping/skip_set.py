"""Skip sets: which attention and MLP sub-layers the target leaves out while it drafts for itself.

Draft & Verify (arXiv 2309.08168), section 3.1: two binary choices for every layer. Here they are two lists of 0-based
layer indices, kept as a small JSON file together with the target they were found for and how they were found.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slipstream.errors import ArtifactError, SkipSetError
from slipstream.skipping.default_rule import default_rule

FORMAT = "slipstream-skip-set"
VERSION = 1
_KEYS = {"format", "version", "target", "num_layers", "attention", "mlp", "provenance"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipSet:
    """The sub-layers to leave out of a target with `num_layers` layers.

    Raises:
        SkipSetError: an index is not an integer, stands twice, or is not a layer of such a target.
    """

    num_layers: int
    """Depth of the target that the set is for."""
    attention: tuple[int, ...]
    """Layers whose attention is skipped; 0-based, sorted."""
    mlp: tuple[int, ...]
    """Layers whose MLP (or mixture of experts) is skipped; 0-based, sorted."""
    target: str | None = None
    """Hash of the target that the set was found for; None: not bound to one."""
    provenance: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """How the set was found, with figures; JSON values."""

    def __post_init__(self) -> None:
        if not _is_int(self.num_layers) or self.num_layers < 1:
            raise SkipSetError(f"num_layers must be a whole number of at least 1, not {self.num_layers!r}.")
        for name in ("attention", "mlp"):
            object.__setattr__(self, name, _checked_layers(name, getattr(self, name), self.num_layers))

    @classmethod
    def default(cls, num_layers: int, attention_bytes: Sequence[int], mlp_bytes: Sequence[int]) -> SkipSet:
        """The built-in set for any depth: at least 40 % of the layers' weight bytes, first and last layer kept.

        See `default_rule` for the choice. Targets of two or three layers may lose (parts of) their last layer.
        """
        attention, mlp = default_rule(attention_bytes, mlp_bytes)
        skipped = sum(attention_bytes[i] for i in attention) + sum(mlp_bytes[i] for i in mlp)
        fraction = skipped / (sum(attention_bytes) + sum(mlp_bytes))
        provenance = {"method": "built-in default", "skipped_fraction": round(fraction, 4)}
        return cls(num_layers=num_layers, attention=tuple(attention), mlp=tuple(mlp), provenance=provenance)

    def to_json(self) -> str:
        """The set as the text of a skip-set file."""
        record = {
            "format": FORMAT,
            "version": VERSION,
            "target": self.target,
            "num_layers": self.num_layers,
            "attention": list(self.attention),
            "mlp": list(self.mlp),
            "provenance": dict(self.provenance),
        }
        try:
            return json.dumps(record, indent=1, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise SkipSetError(f"the provenance of a skip set must hold finite JSON values only: {error}.") from error

    @classmethod
    def from_json(cls, text: str, *, source: str = "skip set") -> SkipSet:
        """Read the text of a skip-set file; `source` names it in errors.

        Raises:
            ArtifactError: the text is not a skip-set file of a known version.
            SkipSetError: it is one, but its layers make no sense.
        """
        record = _checked_record(text, source)
        try:
            return cls(**{key: value for key, value in record.items() if key not in ("format", "version")})
        except SkipSetError as error:
            raise SkipSetError(f"{source}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the set to a JSON file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> SkipSet:
        """Read a set from a JSON file.

        Raises:
            ArtifactError: there is no such file, or it is not a skip set.
            SkipSetError: its layers make no sense.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ArtifactError(
                f"cannot read the skip set {str(path)!r}: {error.strerror}. Give a JSON file of format {FORMAT!r}."
            ) from error
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{path}: not a JSON text file (byte {error.start} is not UTF-8).") from error
        return cls.from_json(text, source=str(path))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _checked_layers(name: str, layers: Iterable[int], num_layers: int) -> tuple[int, ...]:
    """`layers` sorted, or an error in one line."""
    if isinstance(layers, str | bytes | Mapping) or not isinstance(layers, Iterable):
        raise SkipSetError(f"{name} must be a list of layer indices, not {layers!r}.")
    layers = list(layers)
    if wrong := [i for i in layers if not _is_int(i)]:
        raise SkipSetError(f"{name} must list whole numbers, not {wrong[0]!r}.")
    layers.sort()
    if twice := [a for a, b in itertools.pairwise(layers) if a == b]:
        raise SkipSetError(f"layer {twice[0]} stands twice in {name}. Remove one.")
    if layers and layers[0] < 0:
        raise SkipSetError(f"layer {layers[0]} is in {name}, but layers are counted from 0. Remove {layers[0]}.")
    check_depth(layers, num_layers)
    return tuple(layers)


def check_depth(layers: Sequence[int], num_layers: int) -> None:
    """Raise SkipSetError if one of the sorted `layers` is beyond a target of `num_layers` layers."""
    beyond = [i for i in layers if i >= num_layers]
    if not beyond:
        return
    count = f"{num_layers} layers (0-{num_layers - 1})" if num_layers > 1 else "1 layer (0)"
    raise SkipSetError(
        f"layer {beyond[-1]} is in the skip set, but this target has {count}. "
        f"Search a set for this target, or remove {', '.join(map(str, beyond))}."
    )


def _checked_record(text: str, source: str) -> dict[str, Any]:
    """The JSON object in `text`, with the keys and the types of a skip set."""
    try:
        record = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{source}: not a skip set, for it is not JSON ({error}).") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ArtifactError(f'{source}: not a skip set, for it has no "format": "{FORMAT}".')
    if record.get("version") != VERSION or not _is_int(record["version"]):
        raise ArtifactError(
            f"{source}: skip-set version {record.get('version')!r} is not known here (only {VERSION}). "
            "Update slipstream, or search the set again."
        )
    for problem, keys in (("unknown", record.keys() - _KEYS), ("missing", _KEYS - {"provenance"} - record.keys())):
        if keys:
            raise ArtifactError(f"{source}: {problem} key in the skip set: {', '.join(map(repr, sorted(keys)))}.")
    if not isinstance(record["target"], str | None):
        raise ArtifactError(f"{source}: target must be a hash (text) or null, not {record['target']!r}.")
    if not isinstance(record.get("provenance", {}), dict):
        raise ArtifactError(f"{source}: provenance must be an object, not {record['provenance']!r}.")
    for name in ("attention", "mlp"):
        if not isinstance(record[name], list):
            raise SkipSetError(f"{source}: {name} must be a list of layer indices, not {record[name]!r}.")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")
