"""The skip set that a user means: a name, a file, lists of layers, or none in particular."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from slipstream.errors import ArtifactWarning, SkipSetError
from slipstream.skipping import library
from slipstream.skipping.skip_set import SkipSet
from slipstream.skipping.sublayers import SubLayers

SkipSetLike: TypeAlias = SkipSet | str | Path | Mapping[str, Sequence[int]] | Sequence[Sequence[int]] | None


def resolve_skip_set(value: SkipSetLike, sublayers: SubLayers, target_hash: str | None = None) -> SkipSet:
    """The skip set that `value` means for this target.

    `value`: None (what was found as `default` for this target, else the built-in default for its depth), a path, the
    name of a set found for this target (`library`; needs its hash), `{"attention": [...], "mlp": [...]}`, a pair of
    lists (attention, mlp), or a `SkipSet`. Warns with `ArtifactWarning` if the set was found for another target.

    Raises:
        ArtifactError: not a skip set. SkipSetError: a skip set that does not fit this target.
    """
    if value is None:
        found = None if target_hash is None else library.find_default(target_hash)
        built_in = (sublayers.num_layers, sublayers.attention_bytes, sublayers.mlp_bytes)
        skip_set = found or SkipSet.default(*built_in)
    elif isinstance(value, str | Path) and target_hash is not None and library.is_name(value):
        skip_set = library.find(str(value), target_hash)
    elif isinstance(value, str | Path):
        skip_set = SkipSet.load(value)
    elif isinstance(value, SkipSet):
        skip_set = value
    else:
        skip_set = _from_lists(value, sublayers.num_layers)
    sublayers.check(skip_set)
    if target_hash is not None and skip_set.target not in (None, target_hash):
        warnings.warn(
            f"this skip set was found for target {skip_set.target}, not for {target_hash}: "
            "output stays exact, but the draft may be poor. Search a set for this target.",
            ArtifactWarning,
            stacklevel=2,
        )
    return skip_set


def _from_lists(value: object, num_layers: int) -> SkipSet:
    """A set from `{"attention": [...], "mlp": [...]}` or from a pair of lists."""
    if isinstance(value, Mapping):
        if unknown := value.keys() - {"attention", "mlp"}:
            raise SkipSetError(f"unknown key {sorted(map(str, unknown))[0]!r} in the skip set; give attention and mlp.")
        return SkipSet(num_layers=num_layers, attention=value.get("attention", ()), mlp=value.get("mlp", ()))
    if isinstance(value, Sequence) and len(value) == 2:
        return SkipSet(num_layers=num_layers, attention=value[0], mlp=value[1])
    raise SkipSetError(
        f"a skip set is a path, a SkipSet, or lists of layers for attention and mlp, not {type(value).__name__}."
    )
