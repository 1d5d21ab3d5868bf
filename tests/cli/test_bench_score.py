"""`slipstream bench score` shows scores as a table or JSON, and says in one line what cannot be scored."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from bench_answers import line
from slipstream.cli.app import ErrorLines
from slipstream.cli.bench_score import score
from slipstream.records.journal import Journal


@pytest.fixture
def command():
    app = typer.Typer(cls=ErrorLines, pretty_exceptions_enable=False)
    app.command("score")(score)
    app.command("other")(lambda: None)  # with one command alone typer would leave its name out

    def invoke(*words: object):
        return CliRunner().invoke(app, ["score", *map(str, words)], env={"COLUMNS": "160", "NO_COLOR": "1"})

    return invoke


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    journal = Journal(folder / "answers.jsonl")
    for number, (plain, eagle2) in enumerate([("2", "2"), ("3", "4")], 1):
        texts = {"plain": plain, "eagle2": eagle2}
        journal.finish(
            "sums",
            number,
            [line(task="sums", prompt_id=number, entrant=name, text=texts[name]) for name in texts],
            1.0,
        )
    return folder


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "sums.jsonl"
    lines = [{"question_id": number, "turns": ["?"], "reference": [f"#### {number + 1}"]} for number in (1, 2)]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return path


def test_the_table_shows_scores_beside_plains_and_names_differing_items(command, run, data):
    done = command(run, "--data", data)
    assert done.exit_code == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "eagle2" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["0", "eagle2", "0.500", "1.000", "1 of 2", "2"]
    assert "2 items by exact match of the final number" in done.stdout


def test_json_is_one_object_and_what_scores_json_holds(command, run, data):
    printed = json.loads(command(run, "--data", data, "--json").stdout)
    assert printed == json.loads((run / "scores.json").read_text())
    assert printed["rows"][1]["differing"][0]["prompt_id"] == 2


def test_what_cannot_be_scored_is_said_on_stderr(command, run, data, tmp_path):
    (tmp_path / "plainly.jsonl").write_text('{"question_id": 1, "turns": ["?"]}\n', encoding="utf-8")
    Journal(run / "answers.jsonl").finish("plainly", 1, [line(task="plainly")], 1.0)
    done = command(run, "--data", tmp_path, "--json")
    assert json.loads(done.stdout)["tasks"].keys() == {"sums"}
    assert "not scored: plainly: the questions carry neither references" in done.stderr


@pytest.mark.parametrize("words", [["--scorer", "numbers"], ["--scorer", "code"]])
def test_bad_input_is_one_line_and_exit_code_2(command, run, data, words):
    done = command(run, "--data", data, *words)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_folder_without_a_run_is_refused(command, data, tmp_path):
    done = command(tmp_path, "--data", data)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "bench run" in done.stderr


def test_unconfined_without_run_code_is_refused_and_with_it_is_announced(command, run, data):
    done = command(run, "--data", data, "--unconfined")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "add --run-code" in done.stderr
    done = command(run, "--data", data, "--run-code", "--unconfined")
    assert done.exit_code == 0
    assert "code runs unconfined" in done.stderr
