"""What a figure was measured on: the machine and the versions, for records and provenance."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import slipstream


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
    found = {"slipstream": slipstream.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("transformers", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
