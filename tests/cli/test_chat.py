from __future__ import annotations

import json
import re
import sys

import pytest

import slipstream
from byte_model import save_byte_model
from slipstream.cli.marking import can_mark, marked
from slipstream.target.loading import find_tokenizer

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


BEGIN, END = marked("|").split("|")
SPEAK = ("-m", "tiny", "--device", "cpu", "-n", 40)


@pytest.fixture
def steps(monkeypatch):
    """The steps of all answers."""
    found, stream = [], slipstream.Model.stream

    def kept(self, *arguments, **settings):
        answer = stream(self, *arguments, **settings)
        while True:
            try:
                found.append(next(answer))
            except StopIteration as end:
                return end.value
            yield found[-1]

    monkeypatch.setattr(slipstream.Model, "stream", kept)
    return found


def drafted_characters(tokenizer, steps):
    """An answer's text and, for each character, whether its token was drafted."""
    text, marks, ids = "", [], []
    for step in steps:
        for place, token in enumerate(step.token_ids):
            ids.append(token)
            grown = tokenizer.decode(ids, skip_special_tokens=True)
            assert grown.startswith(text)  # ASCII: no character needs several tokens
            marks += [place < step.num_accepted] * (len(grown) - len(text))
            text = grown
    return text, marks


def shown_characters(shown):
    """The same of what a terminal is sent."""
    parts = re.split(f"({re.escape(BEGIN)}.*?{re.escape(END)})", shown, flags=re.DOTALL)
    text, marks = "", []
    for part in parts:
        bare = part.removeprefix(BEGIN).removesuffix(END)
        text, marks = text + bare, marks + [bare != part] * len(bare)
    return text, marks


def test_marks_are_green_and_underlined():
    assert (BEGIN, END) == ("\x1b[4;32m", "\x1b[0m")


@pytest.mark.parametrize("method", ["eagle2", "plain"])
def test_what_is_marked_is_what_was_drafted(cli, steps, method):
    done = cli("chat", *SPEAK, "-d", method, "--colour", stdin="One day\n")
    text, marks = drafted_characters(find_tokenizer("tiny"), steps)
    assert shown_characters(done.stdout.removesuffix("\n")) == (text, marks)
    assert any(marks) == (method != "plain")
    assert not all(marks)
    assert "green and underlined: drafted" in done.stderr


def test_nothing_is_marked_in_a_pipe_and_colour_switches(cli):
    done = cli("chat", *SPEAK, "-d", "eagle2", stdin="One day\n/colour\n/reset\nOne day\n/colour\n/reset\nOne day\n")
    first, second, third = done.stdout.splitlines()
    assert first == third == second.replace(BEGIN, "").replace(END, "")
    assert second.count(BEGIN) == second.count(END) > 0
    assert "drafted text is no longer marked" in done.stderr


@pytest.mark.parametrize(
    ("environment", "is_terminal", "marks"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "xterm", "FORCE_COLOR": "1"}, False, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colour_is_for_terminals_that_show_it(monkeypatch, environment, is_terminal, marks):
    for name in ("TERM", "NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    assert can_mark() == marks


def test_another_method_goes_on_with_the_conversation(cli, tmp_path):
    file, alone = tmp_path / "talk.json", tmp_path / "alone.json"
    lines = f"One day\n/method prompt-lookup\nAnd then?\n/stats\n/save {file}\n"
    done = cli("chat", *SPEAK, "-d", "eagle2", "--width", 3, stdin=lines)  # prompt-lookup reads no width
    cli("chat", *SPEAK, "-d", "plain", stdin=f"One day\nAnd then?\n/save {alone}\n")
    assert json.loads(file.read_text("utf-8")) == json.loads(alone.read_text("utf-8"))
    assert "prompt-lookup from the next answer on" in done.stderr
    assert re.search(r"last: 40 tokens .* prompt-lookup: ", done.stderr)
    assert re.search(r"eagle2, in all: 40 tokens in \d+ target passes", done.stderr)
    assert re.search(r"prompt-lookup, in all: 40 tokens in \d+ target passes", done.stderr)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("prompt-lokup", "error: unknown method 'prompt-lokup'"),
        ("draft-model", "error: method 'draft-model' needs"),
        ("", "plain; /method NAME takes another: plain, auto, "),
    ],
)
def test_an_unfit_method_is_one_line_and_the_old_one_stays(cli, tmp_path, name, line):
    folder = save_byte_model(tmp_path / "model")
    options = ("-m", folder, "-n", 3, "--device", "cpu", "-d", "plain")
    done = cli("chat", *options, stdin=f"/method {name}\nHello\n/stats\n")
    assert done.stderr.count(line) == 1
    assert re.search(r"last: 3 tokens .* plain", done.stderr)


def test_seed_is_of_all_answers_until_it_is_drawn_again(cli, loader):
    done = cli("chat", "-t", "1", stdin="a\n/seed 12\nb\n/seed -3\n/seed x\nc\n/seed\nd\n")
    assert [request.get("seed") for request in loader.models[0].requests] == [None, 12, 12, None]
    assert "error: seed is '-3'; it must be a whole number from 0 to 2**64 - 1" in done.stderr
    assert "error: seed is 'x'; it must be a whole number" in done.stderr
    assert f"error: seed is {2**64}" in cli("chat", stdin=f"/seed {2**64}\n").stderr
