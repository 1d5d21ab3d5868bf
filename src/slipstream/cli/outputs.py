"""Where commands write: what cannot be written is refused before any work is done."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from slipstream.errors import InputError


def check_out_file(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Of an option that names a file. Raises InputError if no file can be written there."""
    if path is not None:
        if path.is_dir():
            raise InputError(f"{_name(option)} {path} is a folder; name a file")
        _check_reachable(_name(option), path)
    return path


def check_out_folder(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Of an option that names a folder, which is made if need be. Raises InputError if it cannot be written to."""
    if path is not None:
        if path.exists() and not path.is_dir():
            raise InputError(f"{_name(option)} {path} is a file; name a folder")
        _check_reachable(_name(option), path)
    return path


def _check_reachable(name: str, path: Path) -> None:
    nearest = next(one for one in (path, *path.absolute().parents) if one.exists())
    if nearest != path and not nearest.is_dir():
        raise InputError(f"{name} {path} lies below {nearest}, which is a file; name another place")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"{name} {path} cannot be written: {nearest} is not writable; name another place")


def _name(option: typer.CallbackParam) -> str:
    return next((one for one in option.opts if one.startswith("--")), option.opts[0])
