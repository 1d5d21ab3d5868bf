"""The library for few rows, as tests get it."""

from __future__ import annotations

import pytest

from slipstream.runtime import few_rows as module
from slipstream.runtime.few_rows import FewRows, FewRowsError

LACKING = ("no C compiler is installed", "it is written for Linux on x86-64", "this processor has no AVX-512")
"""What a machine may lack. Any other reason, such as wrong results, is a fault."""


@pytest.fixture(scope="session")
def library() -> FewRows:
    """Built, whether it is faster here or not."""
    try:
        return FewRows(module._built() / module._LIBRARY)
    except FewRowsError as error:
        if any(one in str(error) for one in LACKING):
            pytest.skip(f"the library is not built here: {error}")
        raise
