"""What a report says in words follows from the record."""

from __future__ import annotations

import pytest

from report.record_factory import ENTRANTS, make_record
from slipstream.records.record import parse_record
from slipstream.report.summary import best_here, headlines, identity, notes, provenance, setting


def said(**changes):
    return " ".join(note.text for note in notes(parse_record(make_record(**changes))))


def test_the_setting_names_model_hardware_and_size():
    text = setting(parse_record(make_record()))
    assert "demo (10.7 million parameters) in float32 on Imaginary CPU, 2 cores (device cpu, 1 thread)" in text
    assert "4 entrants of this package and 2 peers answered 40 prompts of MT-bench and GSM8K" in text
    assert "at temperature 0 and 1" in text
    assert "commit abc1234" in provenance(parse_record(make_record()))


def test_the_headline_names_the_fastest_and_the_highest_tau():
    first = headlines(parse_record(make_record()))[0]
    assert first.startswith("T = 0: eagle2 is the fastest, 1.80 times plain's tokens per second")
    assert "quartiles 1.62 to 1.98; 3.60 times that of transformers' plain; tau 2.40" in first
    assert "; the fastest peer is hf-assisted, 0.96 times plain's. " in first
    assert first.endswith("The highest tau is eagle2-60's, 4.80 at 0.90 times plain's speed.")


def test_the_headline_says_so_where_nothing_is_faster_than_plain():
    data = make_record(temperatures=[0.0], entrants=[ENTRANTS[0], ENTRANTS[2]])
    assert headlines(parse_record(data))[0].startswith("T = 0: no method is faster than plain; eagle2-60 comes nearest")


def test_a_peer_is_never_the_headline():
    data = make_record(temperatures=[0.0])
    for row in data["rows"]:
        if row["entrant"] == "hf-assisted":
            row["ratio_to_plain"] = 9.0
    assert "eagle2 is the fastest" in headlines(parse_record(data))[0]


def test_another_model_is_not_the_fastest_peer_and_stands_beside_it():
    data = make_record(temperatures=[0.0])
    data["run"]["peers"] = {"hf-assisted": {"software": "fast 1.0", "weights": "4 bits", "is_another_model": True}}
    for row in data["rows"]:
        if row["entrant"] == "hf-assisted":
            row["ratio_to_plain"] = 9.0
    record = parse_record(data)
    assert (
        "; the fastest peer is hf-plain, 0.60 times plain's; hf-assisted, another model, has 9.00 times"
        in (headlines(record)[0])
    )
    assert best_here(record) == "best here: eagle2, 1.80 times plain"
    assert "hf-assisted: fast 1.0, 4 bits." in provenance(record)


def test_a_peer_that_is_faster_is_named():
    data = make_record(temperatures=[0.0])
    for row in data["rows"]:
        if row["entrant"] == "hf-assisted":
            row["ratio_to_plain"] = 9.0
    assert best_here(parse_record(data)) == "best here: eagle2, 1.80 times plain (the peer hf-assisted: 9.00)"


def test_peers_are_counted_where_no_method_was_compared():
    text = identity(parse_record(make_record(temperatures=[0.0], entrants=[ENTRANTS[0], ENTRANTS[4]])))
    assert text == "No answer of a method was compared with plain decoding's; of the peers', 40 of 40."


def test_identity_counts_the_drafting_methods_alone():
    assert identity(parse_record(make_record())).startswith("240 of 240 answers")  # 3 methods, 2 temperatures, 40 each
    data = make_record()
    data["rows"][-5]["verdicts"] = {"identical": 37, "rounding": 2, "fault": 1, "differs": 0}
    assert data["rows"][-5]["entrant"] == "eagle2"
    text = identity(parse_record(data))
    assert "237 of 240" in text
    assert "2 differ by rounding alone" in text
    assert "1 are faults" in text


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"complete": False, "num_prompts_done": 7}, "not complete: 7 of 40 prompts done"),
        (
            {"tasks_counts": {"num_prompts": 20, "num_turns": 40, "num_truncated": 3}},
            "Prompts were cut to fit: 3 of 40 of GSM8K.",
        ),
        ({"row": {"verdicts": {"identical": 39, "rounding": 0, "fault": 1, "differs": 0}}}, "in float64 too: faults"),
        ({"row": {"verdicts": {"identical": 39, "rounding": 1, "fault": 0, "differs": 0}}}, "but not in float64"),
        ({"row": {"verdicts": {"identical": 39, "rounding": 0, "fault": 0, "differs": 1}}}, "were not judged"),
        ({"row": {"num_answers": 5}}, "Few answers: 5"),
        ({"plain": {"repetition_rate": 0.43}}, "At T = 0 the model repeats itself: 43%"),
        ({"run": {"left_out": {"hf-early-exit": "no exit layers"}}}, "hf-early-exit was left out: no exit layers"),
        (
            {"run": {"continued": [{"date": "2026-11-22", "commit": "fff", "versions": {"torch": "3"}}]}},
            "gone on with on 2026-11-22, under commit fff; versions torch 3.",
        ),
    ],
)
def test_what_to_beware_of_is_said(changes, warning):
    data = make_record()
    assert warning not in " ".join(note.text for note in notes(parse_record(data)))
    for kind, values in changes.items():
        match kind:
            case "tasks_counts":
                data["tasks"]["gsm8k"] = values
            case "row" | "plain":
                name = "plain" if kind == "plain" else "eagle2"
                of_all = (row for row in data["rows"] if row["task"] == "all" and row["entrant"] == name)
                next(of_all).update(values)
            case "run":
                data["run"].update(values)
            case _:
                data[kind] = values
    assert warning in " ".join(note.text for note in notes(parse_record(data)))


def test_a_clean_run_has_no_notes():
    assert said() == ""


def test_missing_baselines_are_said():
    assert "Plain decoding was not run" in said(entrants=ENTRANTS[1:])
    assert "transformers' own plain decoding was not run" in said(entrants=[*ENTRANTS[:2], ENTRANTS[5]])


def test_the_last_word_names_the_best_method_or_says_that_there_is_none():
    assert best_here(parse_record(make_record(temperatures=[0.0]))) == "best here: eagle2, 1.80 times plain"
    both = best_here(parse_record(make_record()))
    assert both == "best here: eagle2, 1.80 times plain at T = 0; eagle2, 1.80 times plain at T = 1"
    slow = make_record(temperatures=[0.0], entrants=[ENTRANTS[0], ENTRANTS[2]])
    assert best_here(parse_record(slow)) == "nothing is faster than plain here"


def test_a_method_that_is_faster_in_sum_but_slower_on_most_answers_is_not_the_best():
    data = make_record(temperatures=[0.0])
    for row in data["rows"]:
        if row["entrant"] == "eagle2":
            row["ratio_to_plain_spread"] = {"median": 0.9, "q1": 0.8, "q3": 1.9}
    assert "eagle2," not in best_here(parse_record(data))
