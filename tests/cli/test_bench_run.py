"""The command: what it refuses, what it leaves behind, and that a kill costs at most one prompt."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from byte_model import save_byte_model
from report.record_factory import make_record
from slipstream.bench.run_folder import hold
from slipstream.bench.settings import BenchSettings
from slipstream.cli.bench_run import _raise_on_fault
from slipstream.errors import LosslessnessError
from slipstream.records.journal import read_answers
from slipstream.records.record import parse_record

SIZES = ("-n", 6, "-d", "prompt-lookup", "-d", "hf-plain", "--dtype", "float64", "--device", "cpu", "--no-report")
NUM_QUESTIONS = 24  # enough for a kill to come before the end


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"question_id": n, "turns": [f"Question {n}?"]}) + "\n" for n in range(6)))
    return path


def test_a_run_leaves_record_answers_and_a_table(cli, model: Path, questions: Path, tmp_path: Path) -> None:
    found = cli("bench", "run", "-m", model, "--data", questions, "--prompts", 2, "--out", tmp_path / "run", *SIZES)
    assert found.exit_code == 0, found.stderr
    says = found.stderr
    assert "12 answers (3 entrants, 2 prompts, T = 0, 1)" in says
    assert "12 answers take about" in says
    assert says.index("12 answers (") < says.index("warming up plain (1 of 3)") < says.index("12 answers take about")
    last = " ".join(found.stdout.split("\n\n")[-1].split())  # a line may be wrapped
    assert re.search(r"^(best here: .*prompt-lookup, |nothing is faster than plain here)", last)
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["complete"]
    assert record["run"]["model"] == model.name  # the path is nobody's business
    assert str(tmp_path) not in (tmp_path / "run" / "record.json").read_text()
    assert [one["name"] for one in record["run"]["entrants"]] == ["plain", "prompt-lookup", "hf-plain"]
    assert "prompt-lookup" in found.stdout
    assert {path.name for path in (tmp_path / "run" / "spec-bench").iterdir()} >= {
        "plain-t0.jsonl",
        "hf-plain-t1.jsonl",
    }


def test_without_methods_all_that_can_run_do(cli, model: Path, questions: Path, tmp_path: Path) -> None:
    found = cli(
        *("bench", "run", "-m", model, "--data", questions, "--prompts", 1, "-n", 3, "-t", 0, "--json", "--no-report"),
        *("--device", "cpu", "--out", tmp_path / "run"),
    )
    assert found.exit_code == 0, found.stderr
    names = [one["name"] for one in json.loads(found.stdout)["run"]["entrants"]]
    assert names == ["plain", "auto", "layer-skip", "prompt-lookup", "lookahead", "hf-plain", "hf-prompt-lookup"]


def test_a_peer_that_does_not_apply_is_left_out_with_its_reason(cli, model, questions, tmp_path: Path) -> None:
    found = cli(
        *("bench", "run", "-m", model, "--data", questions, "--prompts", 1, "--out", tmp_path / "run", *SIZES),
        *("-d", "hf-assisted"),
    )
    assert found.exit_code == 0, found.stderr
    assert "hf-assisted is left out: hf-assisted needs a draft model" in found.stderr
    assert "draft model" in json.loads((tmp_path / "run" / "record.json").read_text())["run"]["left_out"]["hf-assisted"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-d", "eagel2"], "Did you mean 'eagle2'"),
        (["--tasks", "gsm8k"], "unknown task 'gsm8k'"),
        (["--draft", "eagle2"], "METHOD=PATH"),
        (["--draft", "eagle9=x"], "unknown method 'eagle9'"),
        (["-d", "plain", "--draft", "eagle2=x"], "none of the methods of -d"),
        (["-n", "0"], "max_new_tokens is 0"),
        (["--judge", "maybe"], "unknown judge"),
        (["--threads", "0"], "--threads is 0"),
        (["--runtime", "compild"], "unknown runtime 'compild'; choose from auto, eager, packed, compiled, captured"),
        (["-d", "prompt-lookup", "-d", "prompt-lookup:length=3"], "'prompt-lookup' is entered twice"),
        (["-d", "eagle2", "-n", "8"], "eagle2: method 'eagle2' needs an EAGLE head"),
        (["--verification", "both"], "unknown verification"),
        (["-n", "96"], "max_new_tokens is 96, but the model's context is 96"),
    ],
)
def test_bad_input_is_one_line(cli, model: Path, questions: Path, tmp_path: Path, arguments, says: str) -> None:
    given = ("-m", model, "--data", questions, "--out", tmp_path / "run", "--device", "cpu", "--no-report")
    found = cli("bench", "run", *given, *arguments)
    assert found.exit_code == 2, found.stderr
    (line,) = [one for one in found.stderr.splitlines() if one.startswith("error:")]
    assert says in line


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_, **__):
        raise AssertionError("something was loaded")

    monkeypatch.setattr("slipstream.load", load)


def described(folder: Path, **changes: object) -> None:
    """A folder that holds the beginning of a run with `SIZES`."""
    folder.mkdir()
    settings = {"max_new_tokens": 6, "seed": 0}
    run = {"model": "mine", "dtype": "float64", "device": "cpu", "threads": 1, "settings": settings, **changes}
    (folder / "run.json").write_text(json.dumps(run))


@pytest.mark.parametrize(
    ("changes", "arguments", "says"),
    [
        ({}, [], "holds a run already; go on with --resume"),
        ({}, ["--resume", "-n", 7], "max_new_tokens 6, this one 7"),
        ({"model": "other"}, ["--resume"], 'model "other", this one "mine"'),
        ({"dtype": "bfloat16"}, ["--resume"], 'dtype "bfloat16", this one "float64"'),
        ({}, ["--resume", "--threads", 2], "threads 1, this one 2"),
        ({}, ["--resume", "--runtime", "compiled"], 'runtime "eager", this one "compiled"'),
        ({"runtime": "compiled"}, ["--resume", "--runtime", "packed"], 'runtime "compiled", this one "packed"'),
    ],
)
def test_a_folder_in_use_or_a_changed_setting_is_said_before_anything_is_loaded(
    cli,
    questions: Path,
    tmp_path: Path,
    unloadable: None,
    monkeypatch: pytest.MonkeyPatch,
    changes,
    arguments,
    says: str,
) -> None:
    described(tmp_path / "run", **changes)
    kept = ("max_new_tokens", "seed")
    monkeypatch.setattr(BenchSettings, "to_dict", lambda self: {name: getattr(self, name) for name in kept})
    found = cli("bench", "run", "-m", "mine", "--data", questions, "--out", tmp_path / "run", *SIZES, *arguments)
    assert found.exit_code in (1, 2)
    assert says in found.stderr
    assert "loading" not in found.stderr


def test_a_folder_that_another_run_writes_into_is_refused_before_anything_is_loaded(
    cli, questions: Path, tmp_path: Path, unloadable
) -> None:
    with hold(tmp_path / "run"):
        found = cli("bench", "run", "-m", "mine", "--data", questions, "--out", tmp_path / "run", *SIZES)
    assert found.exit_code == 2
    assert "another run is writing into" in found.stderr
    assert "loading" not in found.stderr


def test_only_a_fault_of_ours_fails_the_command() -> None:
    fault = {"temperature": 0.0, "task": "gsm8k", "prompt_id": 7, "turn": 0, "sample": 0, "first_difference": 3}
    faults = [{**fault, "entrant": "hf-plain", "verdict": "fault"}]
    _raise_on_fault(parse_record(make_record(faults=faults)))
    faults.append({**fault, "entrant": "eagle2", "verdict": "fault"})
    with pytest.raises(LosslessnessError, match=r"1 answers differ .* the first is eagle2"):
        _raise_on_fault(parse_record(make_record(faults=faults)))


def command(model: Path, questions: Path, out: Path) -> list[str]:
    words = ["-m", model, "--data", questions, "--out", out, *SIZES, "-t", 0, "--threads", 1]
    return [sys.executable, "-m", "slipstream", "bench", "run", *map(str, words)]


def test_two_processes_share_a_run_and_the_last_one_joins_it(model: Path, questions: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += command(model, questions, tmp_path / "run")[1:]
    done = subprocess.run([*words, "--json"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"process [01] of 2 is done; the last one writes", done.stderr)) == 1
    record = json.loads(done.stdout)
    assert (record["complete"], record["num_prompts_done"], record["num_prompts"]) == (True, 6, 6)
    assert sorted(line[:19] for line in record["run"]["command"].splitlines()) == [
        *("RANK=0 WORLD_SIZE=2", "RANK=1 WORLD_SIZE=2")
    ]
    answers = list(read_answers(tmp_path / "run" / "answers.jsonl"))
    assert [one.prompt_id for one in answers if one.entrant == "plain"] == [0, 2, 4, 1, 3, 5]
    alone = subprocess.run(command(model, questions, tmp_path / "alone"), capture_output=True, timeout=300, check=False)
    assert alone.returncode == 0
    tokens = {(one.prompt_id, one.entrant): one.token_ids for one in answers}
    assert tokens == {
        (one.prompt_id, one.entrant): one.token_ids for one in read_answers(tmp_path / "alone" / "answers.jsonl")
    }


def test_a_killed_run_loses_at_most_a_prompt_and_resumes(model: Path, questions: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    journal = tmp_path / "run" / "answers.jsonl"
    questions.write_text(
        "".join(json.dumps({"question_id": n, "turns": [f"Q{n}?"]}) + "\n" for n in range(NUM_QUESTIONS))
    )
    words = command(model, questions, tmp_path / "run")
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 120
        while not (journal.is_file() and journal.read_bytes().count(b"prompt_done") >= 2):
            assert run.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
    before = list(read_answers(journal))
    assert 2 * 3 <= len(before) < NUM_QUESTIONS * 3
    words += ["--resume", "--json"]
    resumed = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert resumed.returncode == 0, resumed.stderr
    after = list(read_answers(journal))
    assert after[: len(before)] == before
    assert [one.prompt_id for one in after if one.entrant == "plain"] == list(range(NUM_QUESTIONS))
    assert json.loads(resumed.stdout)["complete"]
