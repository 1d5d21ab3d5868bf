"""A run that several processes share: every prompt once, and the same record as one process makes but for times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench_run import carry_out
from slipstream.bench.assembly import finish, finish_shared
from slipstream.bench.record import build_record
from slipstream.bench.shards import join, shard_folder, share_of_tasks
from slipstream.errors import ArtifactError, InputError
from slipstream.prompts import Prompt
from slipstream.records.journal import read_answers
from slipstream.records.run_files import JOURNAL_FILE, SETTINGS_FILE, read_run
from slipstream.records.schema import Answer, Record
from slipstream.share import Share

QUICK = {"entrants": ("plain", "prompt-lookup"), "samples": 1, "repeats": 1, "temperatures": (0.0,), "judge": "none"}


@pytest.fixture(scope="module")
def shared(start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished shares that are not joined."""
    folder = tmp_path_factory.mktemp("shared") / "run"
    for rank in (0, 1):
        share = Share(rank, 2)
        carry_out(start(shard_folder(folder, share), share=share, **QUICK))
    return folder


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    carry_out(start(folder, **QUICK))
    return folder


def prompts(*names: str) -> dict[str, list[Prompt]]:
    return {name: [Prompt(kind=name, id=n, turns=("x",)) for n in range(number)] for name, number in map(sized, names)}


def sized(name: str) -> tuple[str, int]:
    return name[:-1], int(name[-1])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("tasks", [("a4", "b4"), ("a1", "b1", "c1"), ("a3", "b2")])
def test_every_prompt_is_in_one_share_and_shares_are_even(tasks, size) -> None:
    whole = prompts(*tasks)
    shares = [share_of_tasks(whole, Share(rank, size)) for rank in range(size)]
    for name, every in whole.items():
        parts = [share[name] for share in shares]
        assert sorted(one.id for part in parts for one in part) == [one.id for one in every]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if set(tasks) == {"a1", "b1", "c1"} and size == 3:
        assert [sum(map(len, share.values())) for share in shares] == [1, 1, 1], "not all with the first process"


def same(record: Record) -> dict:
    """What does not hang on the clock."""
    rows = {(one.task, one.entrant): (one.num_answers, one.num_tokens, one.num_cycles, one.tau) for one in record.rows}
    return {"rows": rows, "tasks": record.tasks, "done": record.num_prompts_done, "complete": record.complete}


def test_the_joined_run_has_the_answers_and_counts_of_one_process(shared: Path, alone: Path) -> None:
    expected = same(finish(alone))
    assert same(build_record(shared / "0-of-2", shared / "1-of-2")) == expected
    record = finish_shared(shared, Share(1, 2))
    assert record is not None
    assert finish_shared(shared, Share(0, 2)) is None, "of two that find all done, one makes the run"
    assert same(finish_shared(shared, Share(1, 2))) == expected
    assert same(record) == expected
    assert [line.split()[:2] for line in record.run.command.splitlines()] == [
        [f"RANK={rank}", "WORLD_SIZE=2"] for rank in (0, 1)
    ]
    assert answers(shared) == answers(alone)
    assert {(one.task, one.entrant) for one in record.trees} == {(one.task, one.entrant) for one in finish(alone).trees}
    assert len(record.trees) == len(finish(alone).trees), "a task's first answer is drawn, not each share's"
    assert {path.name for path in (shared / "spec-bench").iterdir()} == {"plain-t0.jsonl", "prompt-lookup-t0.jsonl"}
    assert "share" not in read_run(shared)


def answers(folder: Path) -> list[tuple]:
    def told(one: Answer) -> tuple:
        return one.task, one.prompt_id, one.turn, one.entrant, tuple(one.token_ids), one.num_cycles

    return sorted(map(told, read_answers(folder / JOURNAL_FILE)))


def test_a_share_alone_is_no_whole_run(shared: Path) -> None:
    assert not build_record(shared / "0-of-2").complete
    with pytest.raises(ArtifactError, match="both hold task"):
        build_record(shared / "0-of-2", shared / "0-of-2")


def test_nothing_is_joined_before_all_are_done(start, tmp_path: Path) -> None:
    share = Share(1, 2)
    run = start(shard_folder(tmp_path, share), share=share, **QUICK)
    assert not join(tmp_path, 2)
    carry_out(run)
    assert finish_shared(tmp_path, share) is None
    assert not (tmp_path / SETTINGS_FILE).exists()


def test_shares_of_other_machines_are_not_joined(shared: Path, tmp_path: Path) -> None:
    for rank in (0, 1):
        folder = tmp_path / f"{rank}-of-2"
        folder.mkdir()
        (folder / JOURNAL_FILE).write_bytes((shared / folder.name / JOURNAL_FILE).read_bytes())
        run = {**read_run(shared / folder.name), "hardware": f"machine {rank}"}
        (folder / SETTINGS_FILE).write_text(json.dumps(run))
    with pytest.raises(ArtifactError, match="differ in hardware"):
        join(tmp_path, 2)


def test_gpus_of_one_kind_may_have_their_own_numbers(shared: Path, tmp_path: Path) -> None:
    for rank in (0, 1):
        folder = tmp_path / f"{rank}-of-2"
        folder.mkdir()
        (folder / JOURNAL_FILE).write_bytes((shared / folder.name / JOURNAL_FILE).read_bytes())
        (folder / SETTINGS_FILE).write_text(json.dumps({**read_run(shared / folder.name), "device": f"cuda:{rank}"}))
    assert join(tmp_path, 2)


def test_another_number_of_processes_is_refused(shared: Path) -> None:
    with pytest.raises(InputError, match="was begun by 2 processes; go on with as many"):
        shard_folder(shared, Share(0, 3))
    assert shard_folder(shared, Share()) == shared
