"""A tiny corpus made on the spot, a two-layer model's settings, and a finished short run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from slipstream.training.data.corpus import Source
from slipstream.training.settings import TargetSettings

WORDS = "red green blue fish bird tree runs sings over under the a quick slow and then why 1 2 3 + = ( ) :"
MIX = {"talk": Source("chat", 1.5, 2), "code": Source("code", 1, 0.5), "book": Source("plain text", 1, 0)}


@pytest.fixture(scope="session")
def mix() -> dict[str, Source]:
    """Three sources of three tasks."""
    return MIX


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three sources, a few hundred short documents each."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)

    pieces = [*WORDS.split(), "\n    return"]

    def words(count: int) -> str:
        return " ".join(rng.choice(pieces) for _ in range(count))

    def write(name: str, records: list[dict[str, object]]) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")

    def talk(user: str, assistant: str) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}

    write("talk", [talk(words(6), words(12)) for _ in range(300)])
    write("code", [talk("Complete the code.\n" + words(8), words(15)) for _ in range(300)])
    write("book", [{"text": words(40)} for _ in range(300)])
    return folder


@pytest.fixture(scope="session")
def settings() -> TargetSettings:
    """Two narrow layers, steps of 128 tokens."""
    return TargetSettings(
        vocab_size=300,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=24,
        context=64,
        tokens_per_step=128,
        tokens_per_pass=64,
        row_lengths=((0.5, 16), (1.0, 32)),
        warmup_steps=2,
    )
