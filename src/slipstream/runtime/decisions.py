"""What hangs on a clock, decided once for all processes that run a target together.

Processes that share a target must run the same passes, and their clocks differ. So whatever is read off a clock, or
off what a machine has kept of it, goes through `agree` before anything is made to depend on it. Tokens hang on none of
it; those that are chosen go through it too, for processes may round differently.
"""

from __future__ import annotations

from typing import TypeVar

from slipstream.target.sharding import from_first

Value = TypeVar("Value")


def agree(value: Value) -> Value:
    """The value that all processes go by, the first one's. A target that runs in one process goes by its own."""
    return from_first(value)
