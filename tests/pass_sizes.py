"""Marks of tests that run in exact and in fixed sizes of passes (the fixture `pass_sizes`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., Any])

both_sizes = pytest.mark.usefixtures("pass_sizes")
"""Runs a test in both."""


def in_both_sizes(name: str, values: Iterable[Any], fixed: Iterable[Any] | None = None) -> Callable[[Test], Test]:
    """Parametrise by `name`: all values in exact sizes, those of `fixed` in fixed ones, too; by default the last."""
    values = list(values)
    cases = [("exact", value) for value in values]
    cases += [("fixed", value) for value in (values[-1:] if fixed is None else fixed)]

    def mark(test: Test) -> Test:
        return both_sizes(pytest.mark.parametrize(("pass_sizes", name), cases, indirect=["pass_sizes"])(test))

    return mark
