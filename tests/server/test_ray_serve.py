"""The example of Ray Serve: two replicas answer as the model does by itself, whole and streamed."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import slipstream

ray = pytest.importorskip("ray", reason="ray[serve] is not installed")
serve = pytest.importorskip("ray.serve", reason="ray[serve] is not installed", exc_type=ImportError)
openai = pytest.importorskip("openai", reason="openai is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # what Ray warns of is not ours to mend

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "ray_serve.py"
PROMPTS = [f"Rain on roof {n}." for n in range(6)]


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ray_serve", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Any]:
    """Of two replicas on two processors."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level="error")
    serve.start(http_options={"port": port})
    words = {"model": str(folder), "method": "prompt-lookup", "dtype": "float64", "gpus": "0", "fewest": "2"}
    serve.run(example().app(words))
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60, max_retries=0)
    serve.shutdown()
    ray.shutdown()


def test_two_replicas_answer_as_the_model_does(client: Any, folder: Path, alone: slipstream.Model) -> None:
    deployment = serve.status().applications["default"].deployments["slipstream"]
    assert deployment.replica_states == {"RUNNING": 2}

    def answer(prompt: str) -> str:
        asked = client.completions.create(model=str(folder), prompt=prompt, max_tokens=12, temperature=0.8, seed=5)
        return asked.choices[0].text

    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        found = list(threads.map(answer, PROMPTS))
    assert found == [
        alone.generate(alone.encode_raw(one), max_new_tokens=12, temperature=0.8, seed=5).text for one in PROMPTS
    ]
    asked = {"model": str(folder), "prompt": PROMPTS[0], "max_tokens": 12, "temperature": 0.8, "seed": 5}
    assert "".join(part.choices[0].text for part in client.completions.create(**asked, stream=True)) == found[0]


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40
