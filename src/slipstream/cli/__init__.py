"""The command line: one file a command. Nothing in the package imports this."""

from __future__ import annotations

from slipstream.cli.app import run

__all__ = ["run"]
