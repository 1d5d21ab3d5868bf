"""`bench run --peer`: peers in processes of their own, in turns with the others."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.main import get_command

from byte_model import save_byte_model
from peer_doubles import VERSION, install_llama_cpp
from slipstream.bench.processes.software import OTHERS, PROCESS_PEERS
from slipstream.cli.app import app
from slipstream.records.journal import read_answers

VOCABULARY = 261


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command with a stand-in for llama.cpp; its folder is `run`."""
    path = f"{install_llama_cpp(tmp_path)}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    monkeypatch.setenv("PYTHONPATH", path)
    (tmp_path / "mine.jsonl").write_text(
        '{"question_id": 1, "turns": ["Hm?"]}\n{"question_id": 2, "turns": ["Hm??"]}\n'
    )

    def invoke(*arguments: object, **told: object):
        (tmp_path / "mine.gguf").write_text(json.dumps({"vocab_size": VOCABULARY, **told}))
        words = ("-m", model, "--data", tmp_path / "mine.jsonl", "-n", 5, "--dtype", "float32", "--device", "cpu")
        return cli("bench", "run", *words, "--no-report", "--out", tmp_path / "run", *arguments)

    invoke.folder, invoke.peer = tmp_path / "run", f"llama-cpp:gguf={tmp_path / 'mine.gguf'}"
    return invoke


def test_a_peer_answers_every_question_beside_ours(run) -> None:
    found = run("-d", "plain", "--peer", run.peer, "--json")
    assert found.exit_code == 0, found.stderr
    assert "starting llama-cpp in a process of its own" in found.stderr
    record = json.loads(found.stdout)
    (peer,) = (one for one in record["run"]["entrants"] if one["kind"] == "peer")
    assert (peer["name"], peer["process"]) == ("llama-cpp", True)
    assert record["run"]["peers"]["llama-cpp"] == {
        "software": f"llama-cpp-python {VERSION}",
        "weights": "mine.gguf, as it was given",
        "is_another_model": False,
    }
    answers = [one for one in read_answers(run.folder / "answers.jsonl") if one.entrant == "llama-cpp"]
    assert [(one.prompt_id, one.temperature) for one in answers] == [(1, 0.0), (1, 1.0), (2, 0.0), (2, 1.0)]
    assert [one.verdict for one in answers] == ["differs", None] * 2  # it has no float64 to be judged in
    assert [one.token_ids for one in answers] == [[259, 260]] * 4  # the prompt ends with 258, 260 ends an answer
    assert {one.num_cycles for one in answers} == {2}
    assert all(0 < one.prefill_s < one.seconds[0] for one in answers)
    rows = [row for row in record["rows"] if row["entrant"] == "llama-cpp" and row["task"] == "all"]
    assert all(row["tokens_per_second"] > 0 and row["ratio_to_plain"] > 0 and row["prefill_s"] > 0 for row in rows)


def test_another_model_is_not_compared_and_marked_in_the_table(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OTHERS, "llama-cpp", replace(OTHERS["llama-cpp"], is_another_model=True))
    found = run("-d", "plain", "--peer", run.peer, "-t", 0)
    assert found.exit_code == 0, found.stderr
    answers = [one for one in read_answers(run.folder / "answers.jsonl") if one.entrant == "llama-cpp"]
    assert [one.verdict for one in answers] == [None, None]
    assert "llama-cpp (another model)" in found.stdout


def test_help_names_every_peer() -> None:
    command = get_command(app).commands["bench"].commands["run"]
    (option,) = (one for one in command.params if one.name == "processes")
    assert [name for name in PROCESS_PEERS if name not in re.findall(r"[a-z0-9-]+", option.help)] == []


def test_a_peer_that_dies_ends_the_run_with_one_line_and_what_is_done_is_kept(run) -> None:
    first, second = 6, 7  # tokens of the prompts
    found = run("-d", "plain", "--peer", run.peer, "-t", 0, dies=second)
    assert found.exit_code == 1
    (line,) = [one for one in found.stderr.splitlines() if one.startswith("error:")]
    assert "llama-cpp: its process ended with exit code 3: terminate called: no memory left" in line
    kept = list(read_answers(run.folder / "answers.jsonl"))
    assert [(one.prompt_id, one.num_prompt_tokens) for one in kept] == [(1, first)] * 2
    resumed = run("-d", "plain", "--peer", run.peer, "-t", 0, "--resume", "--json")
    assert resumed.exit_code == 0, resumed.stderr
    assert json.loads(resumed.stdout)["complete"]
    described = json.loads((run.folder / "run.json").read_text())
    described["peers"]["llama-cpp"]["software"] = "llama-cpp-python 0.0.1"
    (run.folder / "run.json").write_text(json.dumps(described))
    other = run("-d", "plain", "--peer", run.peer, "-t", 0, "--resume")
    assert 'has software "llama-cpp-python 0.0.1", this one "llama-cpp-python 0.0.7"' in other.stderr
    assert list(read_answers(run.folder / "answers.jsonl"))[:2] == kept


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--peer", "llama-cp"], "unknown peer 'llama-cp'"),
        (["-d", "llama-cpp"], "llama-cpp runs in a process of its own: --peer llama-cpp"),
        (["--peer", "llama-cpp", "--peer-python", "/no/python"], "cannot run /no/python"),
        (["--peer-python", "llama-cpp=/python"], "none of --peer"),
        (["-d", "hf-plain", "--peer", "hf-plain"], "'hf-plain' is entered twice"),
        (["-d", "plain", "--peer", "llama-cpp"], "llama-cpp has no GGUF file of"),
        (["-d", "plain", "--peer", "hf-assisted"], "hf-assisted: hf-assisted needs a draft model"),
    ],
)
def test_bad_input_is_one_line(run, arguments, says: str) -> None:
    found = run(*arguments)
    assert found.exit_code == 2, found.stderr
    (line,) = [one for one in found.stderr.splitlines() if one.startswith("error:")]
    assert says in line


def test_transformers_in_a_process_of_its_own_gives_our_tokens(run) -> None:
    """Without `-d` it takes the place of the one that runs in this process."""
    found = run("--peer", "hf-plain", "--prompts", 1, "-t", 0, "--dtype", "float64", "--json")
    assert found.exit_code == 0, found.stderr
    record = json.loads(found.stdout)
    names = [one["name"] for one in record["run"]["entrants"]]
    assert names == ["plain", "auto", "layer-skip", "prompt-lookup", "lookahead", "hf-prompt-lookup", "hf-plain"]
    assert record["run"]["peers"]["hf-plain"]["weights"] == "the target's own, in float64"
    assert record["run"]["peers"]["hf-plain"]["software"].startswith("transformers ")
    (row,) = (one for one in record["rows"] if one["entrant"] == "hf-plain" and one["task"] == "all")
    assert row["verdicts"] == {"identical": 1, "rounding": 0, "fault": 0, "differs": 0}
    assert row["prefill_s"] > 0
