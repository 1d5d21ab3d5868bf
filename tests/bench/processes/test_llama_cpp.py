"""llama.cpp itself, on the values of our target; LLAMA_CPP_PYTHON names a Python that has it, if this one does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import slipstream
from slipstream.bench.processes import child
from slipstream.bench.processes.process import PeerProcess, environment_of_others
from slipstream.bench.processes.weights import write_dequantised
from slipstream.target import smollm2

PYTHON = os.environ.get("LLAMA_CPP_PYTHON", sys.executable)
PROMPT = "Name three rivers of Europe, and say where each of them ends."


@pytest.fixture
def llama_cpp(converted_smollm2: Path, tmp_path: Path):
    if subprocess.run([PYTHON, "-c", "import llama_cpp"], capture_output=True, check=False).returncode != 0:
        pytest.skip("llama-cpp-python is not installed: pip install llama-cpp-python")
    write_dequantised(smollm2.source_file(), tmp_path / "smollm2.gguf", "float32")
    settings = {"peer": "llama-cpp", "model": str(tmp_path / "smollm2.gguf"), "dtype": "float32"}
    settings |= {"threads": 1, "context": 256, "vocab_size": 49152}
    process = PeerProcess("llama-cpp", [PYTHON, child.__file__], settings, environment_of_others())
    yield process
    process.close()


@pytest.mark.usefixtures("real_smollm2")
def test_its_greedy_tokens_are_those_of_our_plain_decoding(llama_cpp: PeerProcess) -> None:
    ours = slipstream.load("smollm2", "plain", dtype="float32", device="cpu")
    expected = ours.generate([{"role": "user", "content": PROMPT}], max_new_tokens=24, temperature=0)
    request = {"max_new_tokens": 24, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
    request |= {"eos_token_ids": list(ours.target.eos_token_ids), "prompt_ids": expected.prompt_ids}
    for _ in range(2):  # nothing is left of the first answer
        found = llama_cpp.ask(request)
        assert found["token_ids"] == expected.token_ids
    sampled = [llama_cpp.ask({**request, "temperature": 1.0, "seed": seed})["token_ids"] for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
