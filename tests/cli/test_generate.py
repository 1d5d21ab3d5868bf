from __future__ import annotations

import json

import pytest

ANSWER = "Rain falls on the quiet sea."


@pytest.mark.parametrize("how", ["--stream", "--no-stream"])
def test_answer_goes_to_stdout_and_figures_to_stderr(cli, loader, how):
    done = cli("generate", "-p", "Write a haiku", "-t", "0.7", how)
    assert done.exit_code == 0
    assert done.stdout == ANSWER + "\n"
    assert done.stderr.count("\n") == 1
    for figure in ("6 tokens", "tau 3.00", "accept rate 50%", "target passes saved 67%", "seed 7", "auto"):
        assert figure in done.stderr


def test_json_holds_token_ids_and_statistics_and_nothing_else_is_printed(cli, loader):
    done = cli("generate", "-p", "Write a haiku", "--seed", "3", "-t", "1", "--json")
    record = json.loads(done.stdout)
    assert done.stderr == ""
    assert (record["text"], record["seed"], record["method"]) == (ANSWER, 3, "auto")
    assert len(record["token_ids"]) == 6
    assert record["stats"]["accept_lengths"] == [0, 0, 0, 2]
    assert {"draft_s", "build_s", "verify_s", "sample_s", "host_s", "prefill_s", "tau"} <= set(record["stats"])
    assert record["settings"] == {"temperature": 1.0, "seed": 3}


def test_greedy_answer_reports_no_seed(cli, loader):
    assert "seed" not in cli("generate", "-p", "x").stderr


def test_only_options_that_were_given_reach_the_library(cli, loader):
    cli("generate", "-p", "x")
    (model,) = loader.models
    assert model.settings == {"model": "tiny", "verification": "coupled"}
    assert model.requests == [{}]


def test_every_option_reaches_the_library(cli, loader, tmp_path):
    load = {"draft": "head", "dtype": "float64", "device": "cpu", "attention": "eager", "verification": "rejection"}
    shape = {"tree": "chain", "width": 2, "depth": 3, "total": 4}
    request = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 1, "repetition_penalty": 1.1}
    options = {**load, **shape, **request, "max_new_tokens": 9, "stop": "END", "skip_set": tmp_path / "set.json"}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    done = cli("generate", "-m", "folder", "-d", "prompt-lookup", "-p", "x", "--stop", "STOP", *flags)
    assert done.exit_code == 0
    (model,) = loader.models
    assert model.method == "prompt-lookup"
    assert model.settings == {"model": "folder", **load, **shape, "skip_set": str(tmp_path / "set.json")}
    assert model.requests == [{**request, "max_new_tokens": 9, "stop": ["STOP", "END"]}]


@pytest.mark.parametrize(("text", "total"), [("12", 12), ("auto", "auto")])
def test_total_is_a_number_or_auto(cli, loader, text, total):
    cli("generate", "-p", "x", "-d", "eagle2", "--total", text)
    assert loader.models[0].settings["total"] == total


def test_total_that_is_neither_is_a_usage_error(cli, loader):
    assert cli("generate", "-p", "x", "--total", "many").exit_code == 2


def test_raw_continues_the_text_without_a_template(cli, loader):
    cli("generate", "-p", "ab", "--raw")
    assert loader.models[0].prompts == [[97, 98]]


def test_prompt_comes_from_the_option_a_file_or_stdin(cli, loader, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("from a file: é", encoding="utf-8")
    cli("generate", "-p", "from the option")
    cli("generate", "--prompt-file", file)
    cli("generate", "-p", "-", stdin="from stdin")
    cli("generate", stdin="from a pipe")
    asked = [prompt for model in loader.models for prompt in model.prompts]
    assert asked == ["from the option", "from a file: é", "from stdin", "from a pipe"]


@pytest.mark.parametrize("arguments", [(), ("-p", ""), ("-p", " \n"), ("-p", "-")])
def test_empty_prompt_is_refused_before_anything_is_loaded(cli, loader, arguments):
    done = cli("generate", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: the prompt is empty; give at least one word\n"
    assert loader.models == []


def test_prompt_given_twice_is_refused(cli, tmp_path):
    done = cli("generate", "-p", "x", "--prompt-file", tmp_path)
    assert done.exit_code == 2
    assert "both --prompt and --prompt-file" in done.stderr


def test_unreadable_prompt_file_is_refused(cli, tmp_path):
    done = cli("generate", "--prompt-file", tmp_path / "missing.txt")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: cannot read the prompt file {tmp_path / 'missing.txt'}: No such file")


def test_prompt_file_that_is_not_utf8_is_refused(cli, tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    done = cli("generate", "--prompt-file", tmp_path / "latin.txt")
    assert done.exit_code == 2
    assert "is not UTF-8 text (byte 3)" in done.stderr


def test_prompt_that_is_not_utf8_is_refused(cli, loader):
    done = cli("generate", "-p", b"Caf\xe9".decode("utf-8", "surrogateescape"))
    assert (done.exit_code, done.stderr) == (2, "error: the prompt is not UTF-8 text; convert it first\n")
    assert not loader.models


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_other_options_of_a_method_are_given_by_name(cli, loader, command):
    prompt = ("-p", "x") if command == "generate" else ()
    flags = ("-o", "length=8", "-o", "threshold=0.5", "-o", "adaptive=false", "--option", "mood=calm")
    assert cli(command, *prompt, *flags, stdin="").exit_code == 0
    settings = loader.models[0].settings
    assert {name: settings[name] for name in ("length", "threshold", "adaptive", "mood")} == {
        "length": 8,
        "threshold": 0.5,
        "adaptive": False,
        "mood": "calm",
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [("length", "is not of the form NAME=VALUE"), ("=8", "NAME=VALUE"), ("width=8", "use --width")],
)
def test_a_malformed_option_is_one_line(cli, loader, text, line):
    done = cli("generate", "-p", "x", "-o", text)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert line in done.stderr
