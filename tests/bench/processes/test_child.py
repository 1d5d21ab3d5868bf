"""The process of llama.cpp, with a stand-in for the library: what it is told, and what its answers are."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path

import pytest

from peer_doubles import VERSION, install_llama_cpp
from slipstream.bench.processes import child
from slipstream.bench.processes.process import PeerProcess
from slipstream.errors import InputError, SlipstreamError

REQUEST = {"max_new_tokens": 4, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 5, "eos_token_ids": [0]}


@pytest.fixture
def start(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(install_llama_cpp(tmp_path))}
    started: list[PeerProcess] = []

    def make(told: dict | None = None, **changes: object) -> PeerProcess:
        (tmp_path / "model.gguf").write_text(
            json.dumps({"vocab_size": 50, "log": str(tmp_path / "log"), **(told or {})})
        )
        settings = {"peer": "llama-cpp", "model": str(tmp_path / "model.gguf"), "dtype": "bfloat16", "threads": 2}
        settings |= {"context": 64, "vocab_size": 50, **changes}
        started.append(PeerProcess("llama-cpp", [sys.executable, child.__file__], settings, environment))
        return started[-1]

    yield make
    for one in started:
        one.close()


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def test_it_imports_nothing_of_this_package() -> None:
    tree = ast.parse(Path(child.__file__).read_text(encoding="utf-8"))
    imported = [one.module for one in ast.walk(tree) if isinstance(one, ast.ImportFrom)]
    imported += [name.name for one in ast.walk(tree) if isinstance(one, ast.Import) for name in one.names]
    assert "json" in imported
    assert not [name for name in imported if name and name.startswith("slipstream")]


def test_answers_end_with_the_budget_or_an_end_token_and_are_timed(start) -> None:
    process = start()
    assert process.software == f"llama-cpp-python {VERSION}"
    reply = process.ask({**REQUEST, "prompt_ids": [7, 8]})
    assert reply["token_ids"] == [9, 10, 11, 12]
    assert reply["accept_lengths"] == [0, 4]
    assert 0 < reply["prefill_s"] < reply["seconds"]
    ended = process.ask({**REQUEST, "prompt_ids": [48]})
    assert ended["token_ids"] == [49, 0]
    assert ended["accept_lengths"] == [0, 2]


def test_it_is_given_the_same_settings_and_no_prompt_is_kept(start, tmp_path: Path) -> None:
    process = start()
    process.ask({**REQUEST, "prompt_ids": [7, 8], "temperature": 1.0, "top_p": 0.9})
    process.ask({**REQUEST, "prompt_ids": [7, 8]})  # the stand-in refuses one that was not reset
    made, sampled, greedy = logged(tmp_path)
    assert made == {"n_ctx": 64, "n_threads": 2, "n_threads_batch": 2}
    law = {"top_k": 0, "min_p": 0.0}
    assert sampled == {**law, "tokens": [7, 8], "seed": 5, "temp": 1.0, "top_p": 0.9}
    assert greedy == {**law, "tokens": [7, 8], "seed": 5, "temp": 0.0, "top_p": 1.0}


def test_a_float32_target_has_a_float32_cache(start, tmp_path: Path) -> None:
    start(dtype="float32")
    assert logged(tmp_path)[0]["type_k"] == logged(tmp_path)[0]["type_v"] == 0


def test_a_file_of_another_vocabulary_is_refused(start) -> None:
    with pytest.raises(InputError, match="llama-cpp: the GGUF file has 51 token ids, the target 50"):
        start({"vocab_size": 51})


def test_an_error_of_the_library_is_one_line_and_the_process_goes_on(start) -> None:
    process = start({"fails": 3})
    with pytest.raises(SlipstreamError, match=r"llama-cpp: no such key$"):
        process.ask({**REQUEST, "prompt_ids": [1, 2, 3]})
    assert process.ask({**REQUEST, "prompt_ids": [1, 2]})["token_ids"] == [3, 4, 5, 6]


def test_a_process_that_dies_says_its_last_line(start) -> None:
    process = start({"dies": 3})
    with pytest.raises(SlipstreamError, match="ended with exit code 3: terminate called: no memory left"):
        process.ask({**REQUEST, "prompt_ids": [1, 2, 3]})
