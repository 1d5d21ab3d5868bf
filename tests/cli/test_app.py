from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import typer

import slipstream
from slipstream.cli import generate
from slipstream.cli.app import app
from slipstream.errors import InputError, LosslessnessError


def commands(command=None, path=()):
    """Every command and its path, groups left out."""
    command = command or typer.main.get_command(app)
    if not hasattr(command, "commands"):
        return [(path, command)]
    return [found for name, sub in command.commands.items() for found in commands(sub, (*path, name))]


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_version_is_the_packages(cli):
    assert cli("--version").stdout == f"slipstream {slipstream.__version__}\n"


def test_module_and_command_are_the_same_program():
    done = python("-m", "slipstream", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"slipstream {slipstream.__version__}\n", "")


def test_help_imports_no_heavy_package():
    code = (
        "import sys, slipstream, slipstream.cli.app\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'tokenizers', 'rich.table'} & set(sys.modules)))"
    )
    done = python("-c", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_public_names_are_reachable_and_no_others():
    assert set(slipstream.__all__) <= set(dir(slipstream))
    for name in slipstream.__all__:
        assert getattr(slipstream, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = slipstream.nonsense


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_help_has_a_worked_example(cli, path):
    done = cli(*path, "--help")
    assert done.exit_code == 0
    assert f"Example: slipstream {' '.join(path)}" in " ".join(done.stdout.split())


def test_options_are_these_and_adding_one_is_deliberate():
    found = {" ".join(path): {p.name for p in command.params} for path, command in commands() if path[0] != "train"}
    sampling = {"temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "max_new_tokens"}
    place = {"dtype", "device", "attention", "runtime", "threads"}
    loading = {"model", "drafter", "draft", "skip_set", "verification"} | place
    drafting = {"tree", "width", "depth", "total", "option", "draft_vocabulary"}
    asking = {"system", "messages", "template"}
    always = {"verbose"}
    assert found == {
        "generate": sampling | loading | drafting | asking | always
        | {"prompt", "prompt_file", "raw", "tools", "stop", "stream", "tp_size", "as_json"},
        "chat": sampling | loading | drafting | asking | always | {"colour"},
        "answer": sampling | loading | drafting | always | {"prompts", "out", "stop", "ray", "workers"},
        "demo": {"methods", "num_prompts", "max_new_tokens", "temperature", "seed", "time_limit", "dtype", "device"}
        | {"model", "threads", "as_json"} | always,
        "methods": {"as_json"} | always,
        "certify": (sampling - {"repetition_penalty", "seed"}) | loading | drafting | always
        | {"data", "num_prompts", "num_seeds", "first_seed", "num_samples", "judge", "out", "tp_size", "as_json"},
        "bench run": {"model", "method", "drafts", "peers", "data", "datasets", "tasks", "prompts_per_task"}
        | {"processes", "interpreters"}
        | {"max_new_tokens", "max_prompt_tokens", "temperatures", "top_p", "seed", "samples", "repeats", "verification"}
        | {"judge", "out", "resume", "report", "as_json"} | place | always,
        "bench show": {"run", "layout", "temperature", "as_markdown", "as_json"} | always,
        "bench report": {"run", "out", "figures"} | always,
        "bench score": {"run", "data", "run_code", "unconfined", "scorer", "as_json"} | always,
        "bench merge": {"runs", "out"} | always,
        "bench costs": {"model", "drafter", "draft", "fresh", "plot", "option", "as_json"} | place | always,
        "export custom-generate": {"folder"} | always,
        "heads check": {"model", "draft", "drafter", "temperature", "seconds", "dtype", "device", "threads", "as_json"}
        | always,
        "heads export": {"model", "draft", "out", "layout"} | always,
        "heads vocabulary": {"model", "data", "out", "size"} | always,
        "serve": loading | drafting | always
        | {"host", "port", "api_key", "cors_origin", "most_running", "most_waiting", "keep", "max_tokens"}
        | {"time_limit", "max_body_kib", "drain"},
        "skip show": {"file", "as_json"} | always,
        "skip search": {"model", "task", "prompts", "trials", "objective", "out", "sampler", "study", "warm_start"}
        | {"num_prompts", "max_new_tokens", "temperature", "rows", "repeats", "seed", "plot", "starting_points"}
        | {"keep_first", "keep_last", "max_skipped", "tree", "width", "depth", "total", "length", "threshold"}
        | {"as_json"} | place | always,
    }  # fmt: skip


def raising(monkeypatch, error):
    def read_prompt(*_):
        raise error

    monkeypatch.setattr(generate, "read_prompt", read_prompt)


@pytest.mark.parametrize(("kind", "code"), [(InputError, 2), (LosslessnessError, 1)])
def test_an_error_raised_on_purpose_is_one_line_and_an_exit_code(cli, monkeypatch, kind, code):
    raising(monkeypatch, kind("first line,\n   second line"))
    done = cli("generate", "-p", "x")
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", "error: first line, second line\n")


@pytest.mark.parametrize("arguments", [("-v", "generate", "-p", "x"), ("generate", "-p", "x", "-v")])
def test_verbose_adds_the_traceback(cli, monkeypatch, arguments):
    raising(monkeypatch, InputError("wrong"))
    done = cli(*arguments)
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("error: wrong\n")


def test_interrupt_is_one_line_and_exit_130(cli, monkeypatch):
    raising(monkeypatch, KeyboardInterrupt())
    done = cli("generate", "-p", "x")
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_bug_keeps_its_traceback(cli, monkeypatch):
    raising(monkeypatch, ZeroDivisionError())
    done = cli("generate", "-p", "x")
    assert done.exit_code == 1
    assert isinstance(done.exception, ZeroDivisionError)


@pytest.mark.filterwarnings("default")
def test_a_warning_of_the_library_is_one_line_on_stderr(cli, monkeypatch, loader):
    def read_prompt(*_):
        warnings.warn("the skip set was found for another target", UserWarning, stacklevel=1)
        return "x"

    monkeypatch.setattr(generate, "read_prompt", read_prompt)
    done = cli("generate", "-p", "x", "--no-stream")
    assert done.exit_code == 0
    assert done.stderr.startswith("warning: the skip set was found for another target\n")


def test_an_unknown_option_is_a_usage_error(cli):
    assert cli("generate", "--nonsense").exit_code == 2


def test_shells_can_complete_commands_and_options():
    words = {"_SLIPSTREAM_COMPLETE": "complete_bash", "COMP_WORDS": "slipstream generate --draft-v", "COMP_CWORD": "2"}
    code = "import sys; sys.argv[0] = 'slipstream'; from slipstream.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **words}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["--draft-vocabulary"]
