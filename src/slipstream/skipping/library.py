"""Skip sets by name: those that a search found on this machine, and those that ship with the package.

A search keeps its best set as `skip_sets/<hash of the target>/<name>.json` under the user's cache folder
(`slipstream.files.cache_folder`). A set found here goes before a shipped one of the same name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from slipstream.errors import InputError, SkipSetError
from slipstream.files.cache_folder import cache_folder
from slipstream.files.packaged import shipped_for_any
from slipstream.skipping.skip_set import SkipSet

DEFAULT = "default"
"""The set that `layer-skip` takes when none is asked for, if there is one for the target."""
ADAPTIVE = "adaptive"
"""No set but the wish to find one while generating; no set can have this name."""

_ALIASES = {"general": DEFAULT, "math": "maths", "summarization": "summarisation", "summary": "summarisation"}

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*", re.IGNORECASE)


def canonical(name: str) -> str:
    """The one name of a task that goes by several."""
    return _ALIASES.get(name.lower(), name)


def found_folder(target_hash: str) -> Path:
    """Where the sets that were found for a target on this machine are, and the studies of their searches."""
    return cache_folder() / "skip_sets" / target_hash


def shipped_folders() -> list[Path]:
    """Where the package's own sets lie: a folder for each model that it has some for."""
    return shipped_for_any("skip_sets")


def keep(skip_set: SkipSet, name: str) -> Path:
    """Keep a set under `name` for its target; one of that name is replaced. Returns the file."""
    assert skip_set.target is not None
    path = found_folder(skip_set.target) / f"{check_name(canonical(name))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    skip_set.save(path)
    return path


def find(name: str, target_hash: str) -> SkipSet:
    """The set `name` for a target.

    Raises:
        SkipSetError: there is none; the message lists what there is.
        ArtifactError: its file is damaged.
    """
    wanted = canonical(check_name(name))
    for known, path in _entries(target_hash):
        if known == wanted:
            return SkipSet.load(path)
    known_names = names(target_hash)
    there = f"there are {', '.join(known_names)}" if known_names else "there is none yet"
    raise SkipSetError(
        f"no skip set {name!r} for target {target_hash}; {there}. "
        f"Find one with `slipstream skip search -m MODEL --task {name}`, or give a file."
    )


def find_default(target_hash: str) -> SkipSet | None:
    """The set to use when none is asked for; None where only the built-in rule is left."""
    return find(DEFAULT, target_hash) if DEFAULT in names(target_hash) else None


def names(target_hash: str) -> list[str]:
    """Names of the sets for a target, sorted."""
    return sorted({name for name, _ in _entries(target_hash)})


def is_name(value: str | Path) -> bool:
    """Whether a `skip_set` is the name of a found set rather than a file: one plain word, with no such file there."""
    text = str(value)
    return bool(_NAME.fullmatch(text)) and not text.endswith(".json") and not Path(text).is_file()


def check_name(name: str) -> str:
    """`name` if a set may be called that, else an InputError."""
    if not _NAME.fullmatch(name) or name.endswith(".json") or name == ADAPTIVE:
        raise InputError(
            f"a skip set cannot be called {name!r}; take one word of letters, digits, '-', '_' or '.', "
            f"that does not end in .json and is not {ADAPTIVE!r}"
        )
    return name


def _entries(target_hash: str) -> Iterator[tuple[str, Path]]:
    """(name, file) of every set for a target, this machine's own first."""
    for path in sorted(found_folder(target_hash).glob("*.json")):
        yield path.stem, path
    for path in sorted(path for folder in shipped_folders() for path in folder.glob("*.json")):
        if SkipSet.load(path).target == target_hash:
            yield path.stem, path
