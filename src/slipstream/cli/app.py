"""The root command."""

from __future__ import annotations


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    raise SystemExit(f"not here yet: {arguments}")
