"""What `gpu.py measure` and `gpu_measure.py` are both told; apart, since the first need not wait for PyTorch."""

from __future__ import annotations

import argparse

RECORD = "gpu.json"
SHARES = {
    "build": 1.5,
    "tests": 1.5,
    "identity": 2.0,
    "passes": 1.0,
    "bench-captured": 3.0,
    "bench-eager": 2.0,
    "peers": 4.0,
}
"""The steps in their order, and how much of the time each may take."""
SIZES = ("8b", "small")
"""Names of what is measured; `small` is for a trial on a CPU."""
PEERS = ("hf-plain", "hf-compiled")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that `gpu.py measure` hands on."""
    parser.add_argument("--shape", choices=SIZES, default=SIZES[0], help="measure: sizes of the target")
    parser.add_argument("--peers", default=",".join(PEERS), help="measure: transformers' own to compare with")
    parser.add_argument("--steps", default=",".join(SHARES), help="measure: only these")
    parser.add_argument("--commit", help="measure: of the code, where git is not at hand")


def step_names(parser: argparse.ArgumentParser, text: str) -> list[str]:
    """Names of steps separated by commas, in their order."""
    asked = text.split(",")
    if unknown := [name for name in asked if name not in SHARES]:
        parser.error(f"unknown step {unknown[0]!r}; choose from {', '.join(SHARES)}")
    return [name for name in SHARES if name in asked]
