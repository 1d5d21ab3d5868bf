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
    for figure in ("6 tokens", "tau 3.00", "accept rate 50%", "target passes saved 67%", "seed 7", "auto: "):
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
    load["runtime"] = "compiled"
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


def test_the_method_that_auto_chose_is_named():
    from slipstream.cli.answering import chosen

    assert chosen("prompt-lookup", "auto") == "prompt-lookup (chosen by auto)"
    assert chosen("prompt-lookup", "prompt-lookup") == "prompt-lookup"


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(2.04, "2.0 times plain's speed"), (0.5, "0.50 times plain's speed, a loss"), (1.02, "plain's speed")],
)
def test_the_speed_against_plain_is_told_and_a_loss_is_called_one(ratio, words):
    from slipstream.cli.answering import statistics_line
    from slipstream.output import Output, Stats

    def line(method: str, **more: float) -> str:
        stats = Stats(num_tokens=6, num_cycles=3, total_s=3.0, verify_s=2.0, **more)
        output = Output(text="", token_ids=[1], prompt_ids=[1], finish_reason="eos", seed=None, stats=stats)
        return statistics_line(output, method)

    told = line("eagle2", num_drafted=8, num_accepted=3, plain_s=2.0 * ratio)
    assert f"target passes saved 50% | about {words} | ended by eos" in told
    assert "plain's speed" not in line("eagle2", num_drafted=8, num_accepted=3)
    assert line("eagle2", plain_s=2.0) == "6 tokens in 3.00 s (2.0 tokens/s) | eagle2: nothing drafted | " + (
        "about plain's speed | ended by eos"
    )
    assert line("plain", plain_s=2.0) == "6 tokens in 3.00 s (2.0 tokens/s) | plain | ended by eos"


def test_a_line_break_at_the_end_is_no_part_of_the_prompt(cli, loader, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"from a file\r\n")
    cli("generate", stdin="from a pipe\n")
    cli("generate", stdin="two\n\n")
    cli("generate", "--prompt-file", file)
    asked = [prompt for model in loader.models for prompt in model.prompts]
    assert asked == ["from a pipe", "two\n", "from a file"]


def test_system_message_conversation_and_tools_reach_the_model(cli, loader, tmp_path):
    talk, tools = tmp_path / "talk.json", tmp_path / "tools.json"
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Well"}]
    talk.write_text(json.dumps(messages))
    tools.write_text('[{"type": "function"}]')
    cli("generate", "-p", "x", "--system", "Be kind.", "--tools", tools, "--template", "enable_thinking=false")
    cli("generate", "--messages", talk)
    cli("generate", "--messages", talk, "-p", "And?", "--system", "Be kind.")
    system, more = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "And?"}
    assert [model.prompts for model in loader.models] == [
        [[system, {"role": "user", "content": "x"}]],
        [messages],
        [[system, *messages, more]],
    ]
    assert loader.models[0].requests == [
        {"tools": [{"type": "function"}], "chat_template_kwargs": {"enable_thinking": False}}
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--raw", "--system", "x"), "--raw has no chat template; leave out --system"),
        (("--tools", "missing.json"), "cannot read"),
        (("--template", "x"), "is not of the form NAME=VALUE, such as enable_thinking=false"),
    ],
)
def test_what_a_template_is_given_is_checked_before_loading(cli, loader, arguments, line):
    done = cli("generate", "-p", "x", *arguments)
    assert (done.exit_code, loader.models) == (2, [])
    assert line in done.stderr


@pytest.mark.parametrize(
    ("text", "value"), [("4096", 4096), ("all", "all"), ("words.safetensors", "words.safetensors")]
)
def test_a_draft_vocabulary_is_a_number_a_file_or_all(cli, loader, text, value):
    cli("generate", "-p", "x", "-d", "eagle2", "--draft-vocabulary", text)
    assert loader.models[0].settings["draft_vocabulary"] == value


def test_16_bit_dtypes_are_noted_once_and_not_in_json(cli):
    arguments = ("generate", "-p", "Hi", "-n", 2, "-d", "prompt-lookup", "--dtype")
    assert cli(*arguments, "bfloat16").stderr.count("docs/losslessness.md") == 1
    assert cli(*arguments, "float32").stderr.count("\n") == 1
    assert cli(*arguments, "bfloat16", "--json").stderr == ""
