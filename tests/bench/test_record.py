from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from slipstream.bench.record import build_record, write_record
from slipstream.bench.spec_bench import write_answers
from slipstream.errors import ArtifactError
from slipstream.records.journal import Journal, answer_line, read_answers
from slipstream.records.record import json_text, load_record, record_json
from slipstream.records.run_files import JOURNAL_FILE, SETTINGS_FILE, read_run
from slipstream.runtime.clock import PARTS

NO_TIME = dict.fromkeys(PARTS, 0.0)


@pytest.fixture(scope="module")
def record(finished) -> dict:
    return record_json(build_record(finished.folder))


def row(record: dict, **wanted: object) -> dict:
    (found,) = [one for one in record["rows"] if all(one[name] == value for name, value in wanted.items())]
    return found


def planted(path: Path, answers: list[dict]) -> None:
    """A journal of made-up answers."""
    for number, one in enumerate(answers):
        line = {
            "task": "qa", "prompt_id": number, "category": "", "turn": 0, "sample": 0, "temperature": 0.0,
            "num_prompt_tokens": 5, "num_tokens_cut": 0, "text": "", "num_drafted": 0, "num_accepted": 0,
            "prefill_s": 0.0, "cycle_ms": {**NO_TIME, "verify": 1.0}, "memory_peak_gib": None,
            "memory_growth_gib": None, "verdict": "identical", "first_difference": None, **one,
        }  # fmt: skip
        Journal(path).finish(line["task"], f"{number}", [line], 1.0)


@pytest.fixture
def planted_record(finished, tmp_path: Path) -> dict:
    shutil.copy(finished.folder / SETTINGS_FILE, tmp_path)
    ten = list(range(10))
    plain = {"entrant": "plain", "num_cycles": 10, "accept_lengths": [0, 10], "token_ids": ten}
    quick = {"entrant": "prompt-lookup", "num_cycles": 4, "accept_lengths": [0, 1, 0, 3], "token_ids": ten}
    planted(
        tmp_path / JOURNAL_FILE,
        [
            {**plain, "prompt_id": 1, "seconds": [9.0, 2.0, 1.0], "cycle_ms": {**NO_TIME, "verify": 4.0}},
            {**plain, "prompt_id": 2, "seconds": [4.0]},
            {**quick, "prompt_id": 1, "seconds": [0.5], "memory_peak_gib": 2.0, "num_drafted": 9, "num_accepted": 6},
            {**quick, "prompt_id": 2, "seconds": [4.0], "memory_peak_gib": 3.0, "verdict": "rounding",
             "token_ids": [5] * 10},
            {"entrant": "hf-plain", "prompt_id": 1, "seconds": [4.0], "num_cycles": 10, "accept_lengths": [0, 10],
             "token_ids": ten, "verdict": None, "cycle_ms": NO_TIME},
        ],
    )  # fmt: skip
    described = read_run(tmp_path)
    described["settings"]["tasks"], described["num_prompts"] = ["qa"], {"qa": 2}
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(described))
    return record_json(build_record(tmp_path))


def test_figures_are_those_of_the_planted_answers(planted_record: dict) -> None:
    quick = row(planted_record, task="all", entrant="prompt-lookup")
    assert (quick["num_answers"], quick["num_tokens"], quick["num_cycles"]) == (2, 20, 8)
    assert quick["tau"] == 2.5
    assert quick["accept_lengths"] == [0, 2, 0, 6]
    assert quick["total_s"] == 4.5
    assert quick["tokens_per_second"] == pytest.approx(20 / 4.5, abs=1e-4)
    assert quick["ratio_to_plain"] == pytest.approx(6.0 / 4.5, abs=1e-4)  # plain: 2 s (the median of its repeats) + 4 s
    assert quick["efficiency"] == pytest.approx(6.0 / 4.5 / 2.5, abs=1e-4)
    assert quick["ratio_to_plain_spread"] == {"median": 2.5, "q1": 1.75, "q3": 3.25}  # of 4 and 1
    assert quick["ms_per_token"]["median"] == 225.0
    assert quick["ratio_to_transformers"] == pytest.approx((20 / 4.5) / (10 / 4.0), abs=1e-4)
    assert quick["memory_peak_gib"] == 3.0
    assert (quick["num_drafted"], quick["num_accepted"]) == (9, 6)
    assert (quick["num_repeated"], quick["num_ngrams"]) == (6, 14)  # the second answer is one token again and again
    assert quick["verdicts"] == {"identical": 1, "rounding": 1, "fault": 0, "differs": 0}


def test_a_mean_cycle_weighs_each_cycle_alike(planted_record: dict) -> None:
    assert row(planted_record, task="all", entrant="plain")["cycle_ms"]["verify"] == 2.5  # 10 cycles of 4, 10 of 1


def test_a_peer_has_no_figures_that_only_we_know(planted_record: dict) -> None:
    peer = row(planted_record, task="all", entrant="hf-plain")
    assert [peer[name] for name in ("cycle_ms", "prefill_s", "num_drafted", "num_accepted", "verdicts")] == [None] * 5
    assert peer["tau"] == 1.0


def test_what_is_not_identical_is_listed(planted_record: dict) -> None:
    (one,) = planted_record["faults"]
    assert (one["entrant"], one["prompt_id"], one["verdict"]) == ("prompt-lookup", 2, "rounding")


def test_a_real_runs_record_adds_up(record: dict, finished) -> None:
    assert record["complete"]
    assert record["num_prompts_done"] == record["num_prompts"] == 5
    assert record["tasks"]["mt_bench"] == {"num_prompts": 3, "num_turns": 4, "num_truncated": 1}
    for entrant in ("plain", "layer-skip", "prompt-lookup", "hf-plain"):
        for temperature in (0.0, 1.0):
            parts = [one for one in record["rows"] if (one["entrant"], one["temperature"]) == (entrant, temperature)]
            *tasks, everything = parts
            assert everything["task"] == "all"
            for name in ("num_answers", "num_tokens", "num_cycles"):
                assert everything[name] == sum(one[name] for one in tasks)
            assert sum(k * count for k, count in enumerate(everything["accept_lengths"])) == everything["num_tokens"]
            assert (
                everything["ms_per_token"]["q1"]
                <= everything["ms_per_token"]["median"]
                <= everything["ms_per_token"]["q3"]
            )
    assert row(record, task="all", entrant="plain", temperature=0.0)["tau"] == 1.0
    assert row(record, task="all", entrant="hf-plain", temperature=0.0)["tau"] == 1.0


def test_acceptance_by_depth_is_what_the_cycles_kept(record: dict) -> None:
    for one in record["depths"]:
        line = row(record, task="all", entrant=one["entrant"], temperature=one["temperature"])
        assert sum(one["num_accepted"]) >= line["num_accepted"]  # the target's word; cuts come after it
        assert all(0 <= kept <= reached for kept, reached in zip(one["num_accepted"], one["num_reached"], strict=True))


def test_pictures_are_of_each_tasks_first_prompt(record: dict) -> None:
    assert {(one["task"], one["prompt_id"]) for one in record["trees"]} <= {("mt_bench", 80), ("mine", 80)}
    assert {one["entrant"] for one in record["trees"]} >= {"layer-skip"}
    assert all(one["nodes"] and one["cycle"] <= 2 for one in record["trees"])


def test_the_report_reads_the_record(finished) -> None:
    assert write_record(finished.folder) == load_record(finished.folder)
    assert [one.name for one in load_record(finished.folder).run.entrants] == [
        *("plain", "layer-skip", "prompt-lookup", "hf-plain")
    ]


def test_json_has_a_line_for_each_entry_and_loses_nothing(record: dict) -> None:
    text = json_text(record)
    assert json.loads(text) == record
    assert len(text.splitlines()) > len(record["rows"])


def test_runs_split_by_task_make_the_record_of_one(finished, record: dict, tmp_path: Path) -> None:
    whole = list(read_answers(finished.folder / JOURNAL_FILE))
    parts = []
    for task in record["run"]["tasks"]:
        folder = tmp_path / task
        folder.mkdir()
        run = read_run(finished.folder)
        run["settings"]["tasks"], run["num_prompts"] = [task], {task: run["num_prompts"][task]}
        (folder / SETTINGS_FILE).write_text(json.dumps(run))
        journal = Journal(folder / JOURNAL_FILE)
        for number in {one.prompt_id for one in whole if one.task == task}:
            lines = [answer_line(one) for one in whole if (one.task, one.prompt_id) == (task, number)]
            journal.finish(task, number, lines, 1.0)
        parts.append(folder)
    merged = record_json(build_record(*reversed(parts)))
    assert merged["run"]["tasks"] == record["run"]["tasks"]
    for one in record["rows"]:
        if one["task"] != "all":
            assert one in merged["rows"]
    assert merged["complete"]
    assert merged["run"]["command"].splitlines() == 2 * [record["run"]["command"]]
    with pytest.raises(ArtifactError, match="both hold task"):
        build_record(parts[0], parts[0])
    run = read_run(parts[1])
    run["hardware"] = "another machine"
    (parts[1] / SETTINGS_FILE).write_text(json.dumps(run))
    with pytest.raises(ArtifactError, match="differ in hardware"):
        build_record(*parts)


def test_answers_are_written_as_spec_bench_reads_them(finished, tmp_path: Path) -> None:
    answers = list(read_answers(finished.folder / JOURNAL_FILE))
    paths = write_answers(tmp_path, answers, "tiny")
    assert {path.name for path in paths} == {
        f"{name}-t{t}.jsonl" for name in ("plain", "layer-skip", "prompt-lookup", "hf-plain") for t in (0, 1)
    }
    lines = [json.loads(line) for line in (tmp_path / "layer-skip-t1.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    first = next(line for line in lines if line["question_id"] == 80 and len(line["choices"][0]["turns"]) == 2)
    assert set(first) == {"question_id", "category", "answer_id", "model_id", "choices", "tstamp"}
    assert [choice["index"] for choice in first["choices"]] == [0, 1]  # one a sample
    for line in lines:
        for choice in line["choices"]:
            assert set(choice) == {"index", "turns", "decoding_steps", "new_tokens", "wall_time", "accept_lengths"}
            assert sum(choice["accept_lengths"]) == sum(choice["new_tokens"])
            assert len(choice["accept_lengths"]) == sum(choice["decoding_steps"])
            assert len(choice["turns"]) == len(choice["wall_time"])
