"""Answers for training: planned, written in whole blocks, the same after an interruption as without."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from byte_model import byte_tokenizer, save_byte_model
from slipstream.errors import ArtifactError, InputError
from slipstream.target.loading import load_model
from slipstream.target.target import Target
from slipstream.training.data.answers import AnswerRun, AnswerSettings, plan

SETTINGS = AnswerSettings(max_new_tokens=6, block=4, batch_size=3, max_prompt_tokens=40)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder = save_byte_model(tmp_path_factory.mktemp("model"))
    return Target(load_model(folder, dtype="float64", device="cpu", attention=None))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    one = [{"messages": [{"role": "user", "content": f"question {i}"}]} for i in range(11)]
    two: list[dict[str, Any]] = [
        {"text": "no prompt here"},
        {"messages": [{"role": "user", "content": "x" * 60}]},  # too long
        *(
            {
                "messages": [
                    {"role": "user", "content": f"a{i}"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                ]
            }
            for i in range(5)
        ),
    ]
    paths = []
    for name, records in (("one", one), ("two", two)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        paths.append(path)
    return paths


def make(target: Target, files: list[Path], out: Path, settings: AnswerSettings = SETTINGS) -> list[dict[str, Any]]:
    run = AnswerRun(target, plan(files, byte_tokenizer(), settings), out, settings)
    for _ in run.blocks():
        pass
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_the_plan_mixes_the_files_and_leaves_out_what_cannot_be_asked(files: list[Path]) -> None:
    prompts = plan(files, byte_tokenizer(), SETTINGS)
    assert len(prompts) == 11 + 5
    assert {one.source for one in prompts[:8]} == {"one", "two"}
    assert [one.temperature for one in prompts[:4]] == [0.0, 1.0, 0.0, 1.0]
    assert {one.turn for one in prompts if one.source == "two"} <= {0, 1}
    assert prompts == plan(files, byte_tokenizer(), SETTINGS)
    assert prompts != plan(files, byte_tokenizer(), AnswerSettings(max_prompt_tokens=40, seed=1))
    few = plan(files, byte_tokenizer(), AnswerSettings(max_prompt_tokens=40, per_file=2))
    assert sum(one.source == "one" for one in few) == 2


def test_no_prompt_is_an_error(files: list[Path]) -> None:
    with pytest.raises(InputError, match="no prompt of at most 3 tokens"):
        plan(files, byte_tokenizer(), AnswerSettings(max_prompt_tokens=3))


def test_greedy_answers_are_the_targets(target: Target, files: list[Path], tmp_path: Path) -> None:
    import torch

    for record in make(target, files, tmp_path / "answers.jsonl"):
        assert record["target"] == target.hash
        if record["temperature"] == 0:
            prompt = record["prompt_ids"]
            whole = target.model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0].tolist()
            assert record["ids"] == whole[len(prompt) :]


@pytest.mark.parametrize("torn", [0, 1, 30])
def test_an_interrupted_run_gives_the_same_file(target: Target, files: list[Path], tmp_path: Path, torn: int) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    make(target, files, whole)
    first = AnswerRun(target, plan(files, byte_tokenizer(), SETTINGS), out, SETTINGS)
    list(islice(first.blocks(), 2))
    with out.open("a") as file:
        file.write(whole.read_text().splitlines()[8][:torn] if torn != 1 else whole.read_text().splitlines()[8] + "\n")
    again = AnswerRun(target, plan(files, byte_tokenizer(), SETTINGS), out, SETTINGS)
    assert again.num_done == 8
    make(target, files, out)
    assert out.read_bytes() == whole.read_bytes()


def test_parts_share_the_work(target: Target, files: list[Path], tmp_path: Path) -> None:
    whole = make(target, files, tmp_path / "whole.jsonl")
    parts = [
        make(
            target,
            files,
            tmp_path / f"{k}.jsonl",
            AnswerSettings(max_new_tokens=6, block=4, batch_size=3, max_prompt_tokens=40, part=(k, 2)),
        )
        for k in (1, 2)
    ]
    assert parts[0][:4] == whole[:4]
    assert parts[1][:4] == whole[4:8]
    assert sum(map(len, parts)) == len(whole)


def test_other_settings_do_not_go_on_in_a_file(target: Target, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    make(target, files, out)
    other = AnswerSettings(max_new_tokens=5, block=4, batch_size=3, max_prompt_tokens=40)
    with pytest.raises(InputError, match="other settings"):
        make(target, files, out, other)
    out.write_text("hello\n")
    with pytest.raises(ArtifactError, match="line 1"):
        make(target, files, out)


@pytest.mark.parametrize(
    "bad", [{"batch_size": 0}, {"per_file": 0}, {"temperatures": (-1.0,)}, {"temperatures": ()}, {"part": (3, 2)}]
)
def test_settings_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        AnswerSettings(**bad)
