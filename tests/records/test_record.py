"""Records are read whole or refused with the place of the damage."""

from __future__ import annotations

import json

import pytest

from report.record_factory import make_record, make_tree
from slipstream.errors import InputError
from slipstream.records.record import load_record, parse_record


def test_a_record_is_read_from_its_folder_and_from_its_file(tmp_path):
    (tmp_path / "record.json").write_text(json.dumps(make_record()), encoding="utf-8")
    record = load_record(tmp_path)
    assert record == load_record(tmp_path / "record.json")
    row = record.row("gsm8k", "eagle2", 1.0)
    assert (row.tau, row.ratio_to_plain, row.cycle_ms.verify) == (pytest.approx(2.2), pytest.approx(1.65), 8.0)
    assert record.run.commit == "abc1234"
    assert record.trees[0].nodes[1].text == " sea"


def test_unknown_keys_are_left_alone():
    data = make_record()
    data["run"]["later_addition"] = 1
    assert parse_record(data).run.left_out == {}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data.update(format=2), "of format 2, newer than this version reads (1)"),
        (lambda data: data.pop("rows"), "has no 'rows'"),
        (lambda data: data["rows"][3].pop("tau"), r"rows[3] has no 'tau'"),
        (lambda data: data["rows"][0].update(tau="fast"), "rows[0].tau is 'fast'; it must be a number"),
        (lambda data: data["rows"][0].update(num_tokens=1.5), "num_tokens is 1.5; it must be a whole number"),
        (lambda data: data["rows"][0].update(num_answers=True), "num_answers is True"),
        (lambda data: data["rows"][0].update(tau=float("nan")), "a finite number"),
        (lambda data: data["rows"][0].update(task="xsum"), "'xsum', which is not among its tasks"),
        (lambda data: data["depths"][0].update(entrant="x"), "'x', which is not among its entrants"),
        (lambda data: data["trees"][0]["nodes"][0].update(parent=4), "trees[0] has a node that stands before"),
        (lambda data: data["verify_cost"].append([1.0]), "verify_cost must hold pairs"),
        (lambda data: data.update(tasks=[]), "tasks is []; it must be an object"),
        (lambda data: data["rows"][1].update(verdicts={"identical": 1}), "rows[1].verdicts has no 'rounding'"),
    ],
)
def test_damage_is_named_by_its_place_in_one_line(damage, said):
    data = make_record()
    damage(data)
    with pytest.raises(InputError) as error:
        parse_record(data, "record.json")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_and_no_json_are_refused(tmp_path):
    with pytest.raises(InputError, match="no record at"):
        load_record(tmp_path)
    (tmp_path / "record.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is damaged"):
        load_record(tmp_path)
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is damaged"):
        load_record(tmp_path / "record.json")


def test_rows_without_answers_count_as_missing():
    data = make_record()
    for row in data["rows"]:
        if row["task"] == "gsm8k":
            row["num_answers"] = 0
    record = parse_record(data)
    assert record.measured_tasks == ["mt_bench"]
    assert record.row("gsm8k", "plain", 0.0) is None


def test_prompt_ids_may_be_texts():
    data = make_record(trees=[{**make_tree("eagle2", 0.0), "prompt_id": "HumanEval/3"}])
    assert parse_record(data).trees[0].prompt_id == "HumanEval/3"
