"""Which peers `--peer` knows, what each must be able to do, and who runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from slipstream.bench.processes.entrants import Processes
from slipstream.bench.processes.software import Interpreters, check_other, parse_peer
from slipstream.bench.settings import BenchSettings, EntrantSpec
from slipstream.errors import InputError, SlipstreamError
from slipstream.target.target import Target

PLAIN = EntrantSpec(name="plain", kind="ours", method="plain")


def settings(**changes: object) -> BenchSettings:
    return BenchSettings(entrants=(PLAIN,), tasks=("qa",), data="made up", questions_hash="", **changes)


@pytest.fixture
def target(family_model) -> Target:
    return Target(family_model("llama"))  # float64


def test_a_peer_is_read_with_its_name_and_options() -> None:
    found = parse_peer("mine=llama-cpp:gguf=a/b.gguf")
    assert (found.name, found.kind, found.method, found.process) == ("mine", "peer", "llama-cpp", True)
    assert found.options == {"gguf": "a/b.gguf"}
    assert parse_peer("hf-early-exit:exit_layer=3").options == {"exit_layer": 3}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("llama-cp", "unknown peer 'llama-cp'; choose from hf-plain"),
        ("eagle2", "unknown peer 'eagle2'"),
        ("llama-cpp:threads=3", "the peer llama-cpp takes no option 'threads'; it takes gguf"),
        ("llama-cpp-q4:gguf=x", "takes no option 'gguf', nor any other"),
        ("hf-plain:draft=x", "takes no option 'draft', nor any other"),
    ],
)
def test_what_is_no_peer_or_option_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_peer(text)


def test_a_python_may_be_named_for_all_peers_or_for_one() -> None:
    specs = [parse_peer("llama-cpp"), parse_peer("llama-cpp-q4"), parse_peer("mine=hf-plain")]
    found = Interpreters.parse(["/a/python", "llama-cpp=/b/python"], specs)
    named = [found.of(spec.method) for spec in specs]
    assert named == ["/b/python", "/a/python", sys.executable], "transformers is run by ours unless it is named"
    assert Interpreters.parse(["hf-plain=/c/python"], specs).of("hf-plain") == "/c/python"
    assert Interpreters.parse([], specs).of("llama-cpp") == sys.executable


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["hf-assisted=/b"], "names 'hf-assisted', which is none of --peer"),
        (["/b"], "--peer-python /b is for llama-cpp, llama-cpp-q4, openvino"),
        (["hf-plain=/b", "hf-plain=/c"], "given twice for hf-plain"),
    ],
)
def test_a_python_for_nothing_is_refused(texts: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Interpreters.parse(texts, [parse_peer("hf-plain")])


def test_software_that_is_not_there_is_one_line_with_the_command(tmp_path: Path) -> None:
    llama = [parse_peer("llama-cpp")]
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(InputError, match=f"llama-cpp needs llama-cpp-python: {python} -m pip install llama-cpp-python"):
        Interpreters.parse([str(python)], llama).check(llama)
    with pytest.raises(InputError, match="llama-cpp: cannot run /no/python: No such file"):
        Interpreters.parse(["/no/python"], llama).check(llama)


def test_another_dtype_is_refused(target: Target) -> None:
    with pytest.raises(InputError, match="llama-cpp runs bfloat16 or float32, the target is float64"):
        check_other("llama-cpp", target, settings())


@pytest.fixture
def float32(family_model, monkeypatch: pytest.MonkeyPatch) -> Target:
    found = Target(family_model("llama"))
    monkeypatch.setattr(found, "dtype", torch.float32)
    return found


def test_the_same_settings_are_accepted(float32: Target) -> None:
    check_other("llama-cpp", float32, settings(top_p=0.9))
    check_other("llama-cpp", float32, settings(temperatures=(0.7,)))


def test_a_nucleus_that_would_be_another_is_refused(float32: Target) -> None:
    with pytest.raises(InputError, match="cuts the nucleus before the temperature"):
        check_other("llama-cpp", float32, settings(top_p=0.9, temperatures=(0.0, 0.7)))


def test_a_model_that_asks_for_more_is_refused(float32: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float32.model.generation_config, "repetition_penalty", 1.1)
    with pytest.raises(InputError, match="sets repetition_penalty, which the peer llama-cpp is not given"):
        check_other("llama-cpp", float32, settings())


def test_a_top_k_of_the_model_is_off_for_all(float32: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float32.model.generation_config, "top_k", 20)
    check_other("llama-cpp", float32, settings())


@pytest.mark.parametrize(
    ("peer", "says"),
    [
        ("llama-cpp", "llama-cpp has no GGUF file of mine; give it: --peer llama-cpp:gguf=FILE"),
        ("llama-cpp-q4", "llama-cpp-q4 has no GGUF file of mine; use -m smollm2"),
        ("llama-cpp:gguf=none.gguf", "there is no file none.gguf"),
    ],
)
def test_a_model_without_a_file_is_refused(float32: Target, peer: str, says: str) -> None:
    children = Processes("mine", {}, Interpreters(), lambda line: None)
    with pytest.raises(SlipstreamError, match=says):
        children.start(parse_peer(peer), float32, settings())
    children.close()
