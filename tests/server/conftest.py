"""A server that the tests share, and the model by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import slipstream
from byte_model import save_byte_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("served"), context=4096)


@pytest.fixture(scope="session")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from server.server_process import METHOD, serving

    cache = tmp_path_factory.mktemp("cache")
    with serving(folder, *METHOD, "--max-body-kib", "64", SLIPSTREAM_CACHE=str(cache)) as served:
        yield served


@pytest.fixture(scope="session")
def alone(folder: Path) -> slipstream.Model:
    """What answers are compared with: plain decoding, one request at a time."""
    return slipstream.load(folder, "plain", dtype="float64", device="cpu")
