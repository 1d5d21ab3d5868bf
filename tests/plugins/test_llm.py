"""The plug-in of `llm`, through `llm`'s own registry, conversation and command line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import slipstream
from byte_model import save_byte_model

llm = pytest.importorskip("llm", reason="the plug-in needs llm: pip install 'slipstream-llm[llm]'")

from llm.plugins import pm  # noqa: E402

from slipstream.plugins import llm as plugin  # noqa: E402


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """`llm` with our plug-in alone, and with its database in a folder of the test's."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    monkeypatch.setattr("llm.plugins.LLM_LOAD_PLUGINS", "")
    pm.register(plugin, name="slipstream")
    yield
    pm.unregister(plugin)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("model"), context=512)


def test_the_entry_point_is_this_module() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert import_module(project["entry-points"]["llm"]["slipstream"]) is plugin


def test_an_answer_is_streamed_and_is_the_models(folder: Path) -> None:
    model = llm.get_model("slipstream")
    options = {"model": str(folder), "drafter": "prompt-lookup", "max_new_tokens": 30, "temperature": 0}
    response = model.prompt("Hello, hello", system="Be brief.", **options)
    pieces = list(response)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello, hello"}]
    expected = slipstream.load(folder, "plain").generate(messages, max_new_tokens=30, temperature=0)
    assert "".join(pieces) == response.text() == expected.text
    assert len(pieces) > 1
    assert response.usage().input == len(expected.prompt_ids)
    assert response.usage().output == len(expected.token_ids)


def test_a_conversation_holds_what_was_said(folder: Path) -> None:
    conversation = llm.get_model("slipstream").conversation()
    options = {"model": str(folder), "drafter": "plain", "max_new_tokens": 10, "temperature": 0}
    first = conversation.prompt("One", **options).text()
    second = conversation.prompt("Two", **options).text()
    messages = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Two"},
    ]
    assert second == slipstream.load(folder, "plain").generate(messages, max_new_tokens=10, temperature=0).text


def test_a_model_stays_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []
    load = slipstream.load
    monkeypatch.setattr(slipstream, "load", lambda *args, **more: loads.append(args) or load(*args, **more))
    model = llm.get_model("slipstream")
    for _ in range(2):
        model.prompt("Hi", model=str(folder), drafter="plain", max_new_tokens=2).text()
    assert len(loads) == 1


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("slipstream", {}, "name a model"),
        ("slipstream/tiny", {"model": "x"}, "a model by itself"),
        ("slipstream/tiny", {"drafter": "eagel2"}, "unknown method 'eagel2'"),
        ("slipstream/tiny", {"temperature": -1}, "temperature is -1"),
    ],
)
def test_bad_options_are_one_line(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(llm.ModelError, match=words):
        llm.get_model(name).prompt("Hi", **options).text()


def test_the_command_prints_the_answer() -> None:
    from click.testing import CliRunner
    from llm.cli import cli

    command = ["-m", "slipstream/tiny", "-o", "max_new_tokens", "12", "-o", "temperature", "0", "--no-log", "Hello"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    expected = slipstream.load("tiny", "plain").generate("Hello", max_new_tokens=12, temperature=0)
    assert result.stdout.strip() == expected.text.strip()


@pytest.mark.usefixtures("real_smollm2")
def test_smollm2_answers() -> None:
    answer = llm.get_model("slipstream/smollm2").prompt(
        "What is the capital of France? Answer with one word.", max_new_tokens=12, temperature=0
    )
    assert "Paris" in answer.text()
