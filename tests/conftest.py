"""Settings and models shared by the tests: one thread, no transformers chatter, each tiny model built once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from families import FAMILIES

torch.set_num_threads(1)  # tiny models run faster so, and sums keep one order
transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def no_found_skip_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Skip sets that the developer has found on this machine have no part in the tests."""
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "no-cache"))


@functools.cache
def _family_model(name: str) -> PreTrainedModel:
    return FAMILIES[name]()


@pytest.fixture(scope="session")
def family_model() -> Callable[[str], PreTrainedModel]:
    """The tiny float64 model of a family by name; built once, so tests must not change it."""
    return _family_model
