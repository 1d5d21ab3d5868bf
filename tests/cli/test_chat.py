from __future__ import annotations

import json

import pytest

from byte_model import save_byte_model

ANSWER = "Rain falls on the quiet sea."


def said(loader):
    """The messages of every generation, as (role, content)."""
    (model,) = loader.models
    return [[(m["role"], m["content"]) for m in messages] for messages in model.prompts]


def test_chat_remembers_the_conversation(cli, loader):
    done = cli("chat", stdin="Hello\n\nAnd then?\n")
    assert (done.exit_code, done.stdout) == (0, f"{ANSWER}\n{ANSWER}\n")
    first = [("user", "Hello")]
    assert said(loader) == [first, [*first, ("assistant", ANSWER), ("user", "And then?")]]


def test_end_of_input_without_a_newline_ends_the_chat(cli, loader):
    assert cli("chat", stdin="Hello").stdout == f"{ANSWER}\n"


def test_reset_forgets_the_conversation(cli, loader):
    cli("chat", stdin="Hello\n/reset\nAgain\n")
    assert said(loader)[-1] == [("user", "Again")]


def test_quit_leaves(cli, loader):
    done = cli("chat", stdin="/quit\nHello\n")
    assert (done.exit_code, done.stdout, loader.models[0].prompts) == (0, "", [])


def test_stats_shows_the_last_answer_and_the_sum(cli, loader):
    done = cli("chat", stdin="/stats\nHello\nAgain\n/stats\n")
    assert "no answers yet" in done.stderr
    assert "last: 6 tokens" in done.stderr
    assert "in all: 12 tokens in 4 target passes, tau 3.00" in done.stderr


def test_unknown_command_is_explained_and_not_sent(cli, loader):
    done = cli("chat", stdin="/rest now\n")
    assert "unknown command /rest; /help lists them" in done.stderr
    assert loader.models[0].prompts == []


def test_message_interrupted_before_anything_is_said_is_dropped(cli, loader):
    loader.interrupt = True
    done = cli("chat", stdin="Hello\nAgain\n")
    assert done.exit_code == 0
    assert "interrupted before anything was said" in done.stderr
    assert said(loader) == [[("user", "Hello")], [("user", "Again")]]
    assert done.stdout.endswith(f"{ANSWER}\n")


def test_half_an_answer_stays_after_an_interrupt_and_can_be_continued(cli, loader):
    loader.interrupt, loader.tokens_before_interrupt = True, 3
    done = cli("chat", stdin="Hello\n/CONTINUE\nAnd?\n")
    half = "Rain falls on "
    assert "interrupted; what was said stays, and /continue goes on with it" in done.stderr
    hello = ("user", "Hello")
    assert said(loader) == [
        [hello],
        [hello, ("assistant", half)],
        [hello, ("assistant", half + ANSWER), ("user", "And?")],
    ]


def test_there_is_nothing_to_continue_at_first(cli, loader):
    done = cli("chat", "--system", "Be kind.", stdin="/continue\n")
    assert "there is nothing to continue yet" in done.stderr
    assert loader.models[0].prompts == []


def test_system_message_outlives_a_reset(cli, loader):
    cli("chat", "--system", "Be kind.", stdin="Hello\n/Reset\nAgain\n")
    assert said(loader) == [[("system", "Be kind."), ("user", text)] for text in ("Hello", "Again")]


def test_help_lists_every_command(cli, loader):
    from slipstream.cli.chat import COMMANDS

    shown = cli("chat", stdin="/HELP\n").stderr
    assert [name for name in COMMANDS if name not in shown and name != "/exit"] == []
    assert loader.models[0].prompts == []


def test_lines_between_quotes_are_one_message(cli, loader):
    cli("chat", stdin='"""first\n second\n\nthird"""\n"""one line"""\n"""\nopen')
    assert [messages[-1][1] for messages in said(loader)] == ["first\n second\n\nthird", "one line", "open"]


def test_a_conversation_is_saved_loaded_and_gone_on_with(cli, loader, tmp_path):
    file = tmp_path / "talk.json"
    done = cli("chat", "--system", "Be kind.", stdin=f"Hé\n/save {file}\n/save\n")
    talk = [("system", "Be kind."), ("user", "Hé"), ("assistant", ANSWER)]
    assert [(one["role"], one["content"]) for one in json.loads(file.read_text("utf-8"))] == talk
    assert "error: name a file: /save FILE" in done.stderr
    cli("chat", stdin=f"Forgotten\n/load {file}\nAnd?\n")
    cli("chat", "--messages", file, stdin="And?\n")
    for model in loader.models[1:]:
        assert [(one["role"], one["content"]) for one in model.prompts[-1]] == [*talk, ("user", "And?")]


@pytest.mark.parametrize(
    ("content", "line"),
    [("{}", "is no list of messages"), ("[", "is not valid JSON"), (None, "cannot read"), ('[{"a": 1}]', "is no list")],
)
def test_a_file_that_is_no_conversation_is_one_line_and_the_chat_goes_on(cli, loader, tmp_path, content, line):
    file = tmp_path / "talk.json"
    if content is not None:
        file.write_text(content)
    done = cli("chat", stdin=f"Hello\n/load {file}\nAgain\n")
    assert done.stderr.count(line) == 1
    assert len(said(loader)[-1]) == 3
    assert cli("chat", "--messages", file).exit_code == 2


def test_two_system_messages_are_refused_before_loading(cli, loader, tmp_path):
    file = tmp_path / "talk.json"
    file.write_text('[{"role": "system", "content": "Be kind."}]')
    done = cli("chat", "--messages", file, "--system", "Be brief.")
    assert (done.exit_code, loader.models) == (2, [])
    assert "begins with a system message; leave --system out" in done.stderr


def test_arguments_of_the_chat_template_reach_it(cli, loader):
    cli("chat", "--template", "enable_thinking=false", "--template", "mood=calm", stdin="Hello\n")
    assert loader.models[0].requests == [{"chat_template_kwargs": {"enable_thinking": False, "mood": "calm"}}]
    assert "--template 'x' is not of the form NAME=VALUE" in cli("chat", "--template", "x").stderr


def test_refused_message_is_one_line_and_the_chat_goes_on(cli, loader):
    done = cli("chat", "-t", "-1", stdin="Hello\n/stats\n")
    assert done.exit_code == 0
    assert "error: temperature is -1.0" in done.stderr
    assert "no answers yet" in done.stderr


def test_message_that_the_chat_template_refuses_is_one_line_and_the_chat_goes_on(cli, tmp_path):
    folder = save_byte_model(tmp_path / "model")
    template = "{{ raise_exception('one turn only') if messages | length > 1 }}<|user|>{{ messages[0]['content'] }}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    done = cli("chat", "-m", folder, "-n", 3, "--device", "cpu", stdin="Hello\nAgain\n/reset\nHello\n/stats\n")
    assert done.exit_code == 0
    assert done.stderr.count("error: the chat template refuses these messages: one turn only (/reset starts over)") == 1
    assert "in all: 6 tokens" in done.stderr


@pytest.mark.parametrize("signal", [EOFError, KeyboardInterrupt])
def test_at_a_terminal_ctrl_d_leaves_and_ctrl_c_does_not(monkeypatch, capsys, signal):
    from slipstream.cli import chat

    keys = iter([signal, "hello", EOFError])

    def type_line(prompt):
        key = next(keys)
        if key == "hello":
            return key
        raise key

    monkeypatch.setattr(chat, "stdin_is_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", type_line)
    assert chat.read_message() == (None if signal is EOFError else "hello")
    if signal is KeyboardInterrupt:
        assert "Ctrl-D or /quit leaves" in capsys.readouterr().err
