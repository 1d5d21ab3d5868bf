"""OpenVINO GenAI: the export is made once; OPENVINO_PYTHON names a Python that has it, if this one does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import slipstream
from byte_model import save_byte_model
from slipstream.bench.processes import child
from slipstream.bench.processes.process import PeerProcess, environment_of_others
from slipstream.bench.processes.weights import openvino_folder
from slipstream.errors import InputError
from slipstream.target.adapters import ADAPTER_CONFIG

PYTHON = os.environ.get("OPENVINO_PYTHON", sys.executable)
OPTIMUM = """
import sys
from pathlib import Path

def main():
    words = dict(zip(sys.argv[3:-1:2], sys.argv[4:-1:2]))
    if words["--weight-format"] != "fp32" or not (Path(words["--model"]) / "config.json").is_file():
        raise ValueError("no such model\\n")
    (Path(sys.argv[-1]) / "openvino_model.xml").write_text("exported")
"""


@pytest.fixture
def optimum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for optimum-intel; returns the file that says what it does."""
    folder = tmp_path / "site" / "optimum" / "commands"
    folder.mkdir(parents=True)
    (folder / "optimum_cli.py").write_text(OPTIMUM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    return folder / "optimum_cli.py"


def test_a_model_is_exported_once(byte_plain: slipstream.Model, byte_folder: Path, optimum: Path) -> None:
    said: list[str] = []
    folder = openvino_folder(str(byte_folder), byte_plain.target, sys.executable, said.append)
    assert (folder / "openvino_model.xml").read_text() == "exported"
    assert said == [f"exporting {byte_folder} for OpenVINO, once"]
    optimum.write_text("raise AssertionError('exported again')")
    assert openvino_folder(str(byte_folder), byte_plain.target, sys.executable, said.append) == folder
    assert len(said) == 1


def test_a_failed_export_is_one_line_and_leaves_nothing(byte_plain, byte_folder, optimum, tmp_path: Path) -> None:
    optimum.write_text("def main():\n    raise ImportError('no torchvision')\n")
    with pytest.raises(InputError, match=r"optimum-intel cannot export .*: ImportError: no torchvision") as caught:
        openvino_folder(str(byte_folder), byte_plain.target, sys.executable, lambda line: None)
    assert "\n" not in str(caught.value)
    assert [one.name for one in (tmp_path / "no-cache" / "models").iterdir() if one.suffix != ".lock"] == []


def test_an_adapter_is_refused(byte_plain, tmp_path: Path) -> None:
    (tmp_path / ADAPTER_CONFIG).write_text('{"base_model_name_or_path": "tiny"}')
    with pytest.raises(InputError, match="is an adapter"):
        openvino_folder(str(tmp_path), byte_plain.target, sys.executable, lambda line: None)


@pytest.mark.parametrize("peer", ["openvino", "openvino-prompt-lookup"])
def test_its_greedy_tokens_are_those_of_our_plain_decoding(peer: str, tmp_path: Path) -> None:
    look = "import openvino_genai, optimum.intel"
    if subprocess.run([PYTHON, "-c", look], capture_output=True, check=False).returncode != 0:
        pytest.skip("OpenVINO is not installed: pip install openvino-genai optimum-intel")
    folder = save_byte_model(tmp_path / "model", context=160)
    ours = slipstream.load(folder, "plain", dtype="float32", device="cpu")
    exported = openvino_folder(str(folder), ours.target, PYTHON, lambda line: None)
    settings = {"peer": peer, "model": str(exported), "dtype": "float32", "threads": 1}
    process = PeerProcess(peer, [PYTHON, child.__file__], settings, environment_of_others())
    try:
        check(process, ours)
    finally:
        process.close()


def check(process: PeerProcess, ours: slipstream.Model) -> None:
    """Greedy answers are ours, with an end token and without; the seed decides a sampled one."""
    request = {"max_new_tokens": 32, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0, "eos_token_ids": [260]}
    for text in ("again and again and again", "One?"):
        expected = ours.generate(text, max_new_tokens=32, temperature=0)
        found = process.ask({**request, "prompt_ids": expected.prompt_ids})
        assert found["token_ids"] == expected.token_ids
        assert sum(number * length for length, number in enumerate(found["accept_lengths"])) == 32
        assert 0 < found["prefill_s"] < found["seconds"]
        end = expected.token_ids[5]
        ended = process.ask({**request, "prompt_ids": expected.prompt_ids, "eos_token_ids": [end]})
        assert ended["token_ids"] == expected.token_ids[: expected.token_ids.index(end) + 1]
    sampled = [
        process.ask({**request, "prompt_ids": [65, 66], "temperature": 1.0, "seed": seed})["token_ids"]
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
