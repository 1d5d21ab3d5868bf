from __future__ import annotations

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
    assert "unknown command /rest; /reset forgets" in done.stderr
    assert loader.models[0].prompts == []


def test_interrupted_answer_is_dropped_and_the_chat_goes_on(cli, loader):
    loader.interrupt = True
    done = cli("chat", stdin="Hello\nAgain\n")
    assert done.exit_code == 0
    assert "interrupted" in done.stderr
    assert said(loader) == [[("user", "Hello")], [("user", "Again")]]
    assert done.stdout.endswith(f"{ANSWER}\n")


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
    assert chat._read_line() == (None if signal is EOFError else "hello")
    if signal is KeyboardInterrupt:
        assert "Ctrl-D or /quit leaves" in capsys.readouterr().err
