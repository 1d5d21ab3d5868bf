"""The tables hold the record's figures, in the layouts that they name."""

from __future__ import annotations

import pytest

from report.record_factory import ENTRANTS, make_record, make_row
from slipstream.records.record import parse_record
from slipstream.report.markdown import markdown
from slipstream.report.tables import (
    detail_tables,
    eagle_table,
    header_groups,
    spec_bench_table,
    table_json,
    tables,
)


def row_of(table, method):
    return next(row for row in table.rows if row["method"] == method)


def text_of(table, method, key):
    column = next(column for column in table.columns if column.key == key)
    return column.text(row_of(table, method))


def test_eagle_layout_has_speed_up_and_tau_by_task_and_the_mean_over_tasks():
    table = eagle_table(parse_record(make_record()), 0.0)
    assert [group for group, _ in header_groups(table.columns)] == ["", "MT-bench", "GSM8K", "mean", ""]
    assert [row["method"] for row in table.rows] == [entrant["name"] for entrant in ENTRANTS]
    assert text_of(table, "eagle2", "mt_bench.speedup") == "1.50x"
    assert text_of(table, "eagle2", "gsm8k.tau") == "2.20"
    assert row_of(table, "eagle2")["mean.speedup"] == pytest.approx((1.5 + 1.65) / 2)
    assert row_of(table, "eagle2")["mean.tau"] == pytest.approx(2.1)  # of the two tasks; all answers together: 2.4
    assert "plain" in table.notes[0]


def test_every_row_has_its_speed_and_not_only_a_ratio():
    record = parse_record(make_record())
    for table in (eagle_table(record, 0.0), spec_bench_table(record, 0.0), detail_tables(record, 0.0)[0]):
        assert [text_of(table, name, "tokens_per_second") for name in ("plain", "hf-plain")] == ["100.0", "60.0"]


def test_another_model_is_marked_in_every_table_and_its_name_stays_in_json():
    data = make_record()
    peer = {"software": "llama-cpp-python 1.0", "weights": "4-bit blocks", "is_another_model": True}
    data["run"]["peers"] = {"hf-assisted": peer, "hf-plain": {**peer, "is_another_model": False}}
    record = parse_record(data)
    for layout in ("eagle", "spec-bench", "details"):
        for table in tables(record, layout, [0.0]):
            shown = [table.columns[0].text(row) for row in table.rows]
            if "hf-assisted" in [row["method"] for row in table.rows]:
                assert "hf-assisted (another model)" in shown
                assert "hf-plain" in shown
            assert "hf-assisted: another model, with other weights: 4-bit blocks." in " ".join(table.notes)
            assert "another model" not in str(table_json(table)["rows"])


def test_a_peer_s_tau_is_not_known():
    table = eagle_table(parse_record(make_record()), 1.0)
    assert text_of(table, "hf-assisted", "mt_bench.tau") == "-"
    assert text_of(table, "hf-assisted", "mean.tau") == "-"
    assert text_of(table, "hf-assisted", "mt_bench.speedup") == "0.80x"


def test_no_mean_is_given_over_some_of_the_tasks():
    data = make_record()
    data["rows"] = [row for row in data["rows"] if (row["task"], row["entrant"]) != ("gsm8k", "eagle2")]
    table = eagle_table(parse_record(data), 0.0)
    assert text_of(table, "eagle2", "gsm8k.speedup") == "-"
    assert text_of(table, "eagle2", "mean.speedup") == "-"
    assert text_of(table, "eagle2-60", "mean.tau") == "4.20"


def test_spec_bench_layout_is_sorted_by_overall_speed_up():
    table = spec_bench_table(parse_record(make_record()), 0.0)
    assert [row["method"] for row in table.rows] == [
        "eagle2",
        "prompt-lookup",
        "plain",
        "hf-assisted",
        "eagle2-60",
        "hf-plain",
    ]
    assert [column.heading for column in table.columns] == [
        "method",
        "MT-bench",
        "GSM8K",
        "# mean accepted tokens",
        "overall",
        "tokens/s",
    ]
    assert text_of(table, "eagle2", "tau") == "2.40"
    assert text_of(table, "eagle2", "overall") == "1.80x"
    assert text_of(table, "eagle2", "tokens_per_second") == "180.0"


def test_details_have_speed_cycle_and_evidence():
    data = make_record()
    for row in data["rows"]:
        if row["entrant"] == "eagle2":
            row["verdicts"] = {"identical": 37, "rounding": 2, "fault": 1, "differs": 0}
    speed, cycle, evidence = detail_tables(parse_record(data), 0.0)
    assert text_of(speed, "eagle2", "tokens_per_second") == "180.0"
    assert text_of(speed, "eagle2", "ratio_to_plain_spread") == "1.80x (1.62-1.98)"
    assert text_of(speed, "eagle2", "ratio_to_transformers") == "3.60x"
    assert text_of(speed, "eagle2", "efficiency") == "0.75"
    assert text_of(cycle, "eagle2", "total") == "11.75"
    assert text_of(cycle, "eagle2", "acceptance_rate") == "25%"
    assert "hf-plain" not in [row["method"] for row in cycle.rows]
    assert text_of(evidence, "eagle2", "verdicts") == "37 of 40, 2 rounding, 1 FAULT"
    assert text_of(evidence, "eagle2", "repetition_rate") == "10%"


def test_everything_that_may_be_null_may_be_null():
    empty = {key: None for key, value in make_row("all", "plain", 0.0).items() if not isinstance(value, (str, int))}
    keep = ("temperature", "total_s")
    rows = [
        {**make_row(task, "plain", 0.0), **{key: None for key in empty if key not in keep}}
        for task in ("mt_bench", "all")
    ]
    record = parse_record(make_record(temperatures=[0.0], tasks=["mt_bench"], entrants=ENTRANTS[:1], rows=rows))
    for layout in ("eagle", "spec-bench", "details"):
        for table in tables(record, layout, record.temperatures):
            assert all(column.text(row) for row in table.rows for column in table.columns)


def test_json_holds_unrounded_numbers():
    table = spec_bench_table(parse_record(make_record()), 1.0)
    found = table_json(table)
    assert found["table"] == "spec-bench"
    assert found["temperature"] == 1.0
    assert found["rows"][0]["gsm8k.speedup"] == 1.5 * 1.1


def test_markdown_joins_a_group_s_columns_and_escapes_bars():
    entrants = [ENTRANTS[0], {**ENTRANTS[1], "name": "eagle2|x"}]
    data = make_record(entrants=ENTRANTS[:2], calibration=[], positions=[], depths=[], trees=[])
    data["run"]["entrants"] = entrants
    for row in data["rows"]:
        row["entrant"] = row["entrant"].replace("eagle2", "eagle2|x")
    lines = markdown(eagle_table(parse_record(data), 0.0)).split("\n")
    assert lines[0] == "| method | MT-bench | GSM8K | mean | tokens/s |"
    assert lines[1] == "|---|---:|---:|---:|---:|"
    assert lines[3] == "| `eagle2\\|x` | 1.50x / 2.00 | 1.65x / 2.20 | 1.58x / 2.10 | 180.0 |"
