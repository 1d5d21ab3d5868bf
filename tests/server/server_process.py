"""Real servers in processes of their own, and the official client. Skips where a package is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason="the server needs it: pip install 'slipstream-llm[server]'")
openai = pytest.importorskip("openai", reason="the tests call the server by the official client: pip install openai")

METHOD = ("-d", "layer-skip", "--width", "3", "--depth", "3", "--total", "6", "--dtype", "float64", "--device", "cpu")
"""Drafts of a fixed size, in an arithmetic in which passes of all shapes agree."""
PATIENCE_S = 300
"""With a machine that has other work to do."""


@dataclass
class Served:
    """A server under way."""

    url: str
    process: subprocess.Popen[str]
    name: str

    def client(self, **more: Any) -> Any:
        return openai.OpenAI(base_url=self.url, **{"api_key": "none", "max_retries": 0, "timeout": PATIENCE_S, **more})

    def chat(self, text: str = "Hello, hello", **more: Any) -> Any:
        """One answer to one message."""
        messages = [{"role": "user", "content": text}]
        return self.client().chat.completions.create(**{"model": self.name, "messages": messages, **more})

    def send(self, path: str, body: bytes | dict[str, Any] | None = None, **headers: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a raw request."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        asked = urllib.request.Request(
            self.url.removesuffix("/v1") + path, data, {"Content-Type": "application/json", **headers}
        )
        try:
            with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def figure(self, name: str, **labels: str) -> float:
        """One of the figures for Prometheus."""
        from prometheus_client.parser import text_string_to_metric_families

        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/metrics", timeout=PATIENCE_S) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        samples = [one for family in families for one in family.samples if one.name == name and one.labels == labels]
        return samples[0].value if samples else 0.0


@contextmanager
def serving(folder: Path | str, *arguments: str, **environment: str) -> Iterator[Served]:
    """A server on a free port, until the block ends."""
    command = [sys.executable, "-m", "slipstream", "serve", "-m", str(folder), "--port", "0", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on "), line
            yield Served(line.removeprefix("listening on ").strip(), process, str(folder))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)
