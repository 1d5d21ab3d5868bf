"""What a figure was measured on: command, commit, versions, machine, model; for records."""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch

from slipstream import __version__


class Described(Protocol):
    """What a record says of a target."""

    model: Any

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""

    @property
    def hash(self) -> str:
        """Names its weights."""


def provenance(target: Described, model: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What a run must say of itself. Ask before the run: a commit made meanwhile is not what ran.

    model: what the user calls the target. arguments: the command line, program first.
    """
    return {
        "command": shown_command(arguments),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(target.device),
        "device": str(target.device),
        "dtype": str(target.dtype).removeprefix("torch."),
        "model": shown_name(model),
        "target": target.hash,
        "num_parameters": target.model.num_parameters(),
    }


def shown_name(model: str) -> str:
    """What a record calls a model: as the user does, but of an absolute path only the end."""
    return Path(model).name if Path(model).is_absolute() else model


def commit() -> str | None:
    """The commit of the code that runs, marked where files differ from it; None for an installed package."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return found or None


def shown_command(arguments: Sequence[str]) -> str:
    """The command line as it can be shown: the program by name, absolute paths relative to here or by their end."""

    def shown(argument: str) -> str:
        name, equals, value = argument.rpartition("=")  # METHOD=PATH, NAME=PATH
        path = Path(value)
        if not path.is_absolute():
            return argument
        place = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else f".../{path.name}"
        return name + equals + place

    program = Path(arguments[0]).name if arguments else ""
    program = "python -m slipstream" if program == "__main__.py" else program
    return " ".join([program, *(shlex.quote(shown(one)) for one in arguments[1:])])


def hardware(device: torch.device) -> str:
    """The name of the GPU that a device is, else of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    """The processor's name and number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def versions(*packages: str) -> dict[str, str]:
    """Versions of this package, Python, torch, transformers and further packages; those not installed are left out."""
    found = {"slipstream": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("transformers", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
