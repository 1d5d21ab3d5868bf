"""`slipstream certify` on a tiny target whose texts are lists of token ids."""

from __future__ import annotations

import json

import pytest
import torch

import slipstream
from certify.certify_doubles import NUMBERS, target_of
from families import prompt_ids
from slipstream.cli import certify as command
from slipstream.cli.certify_report import show
from slipstream.methods.registry import build_drafter
from slipstream.model import Model
from slipstream.records.certificate import load_certificate, write_certificate
from slipstream.target.cache import SlotLayer

TREE = ("--width", 3, "--depth", 3, "--total", 6)
FEW = ("--seeds", 1, "-n", 12, "--samples", 0)


@pytest.fixture
def loads(monkeypatch):
    """What the command asked `slipstream.load` for, in order."""
    asked = []

    def load(model, drafter, dtype=None, **options):
        asked.append({"model": model, "drafter": drafter, "dtype": dtype, **options})
        target = target_of("llama", getattr(torch, dtype or "float32"))
        return Model(target, build_drafter(drafter, target, options), NUMBERS)

    monkeypatch.setattr(slipstream, "load", load)
    return asked


@pytest.fixture
def questions(tmp_path):
    """A file of three questions."""
    path = tmp_path / "ids.jsonl"
    lines = [{"question_id": n, "turns": [" ".join(map(str, prompt_ids(12, seed=n)))]} for n in (1, 2, 3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def certify(cli, loads, questions):
    return lambda *arguments: cli("certify", "-m", "tiny", "-d", "layer-skip", "--data", questions, *arguments)


def test_a_lossless_method_passes_with_a_summary(certify):
    done = certify("--prompts", 2, *TREE, *FEW)
    assert done.exit_code == 0
    assert "layer-skip on tiny (float32 on cpu" in done.stdout
    for reference in ("same shape", "row by row", "transformers"):
        assert reference in done.stdout
    assert "no bit of a row depended on the rows beside it" in " ".join(done.stdout.split())
    assert "Verdict: lossless" in done.stdout
    assert "4 of 4 answers" in done.stderr


def test_every_part_tells_how_far_it_is_and_when_it_ends(certify, monkeypatch):
    monkeypatch.setattr(command, "_NOTE_EVERY_S", 0.0)
    done = certify("--prompts", 2, *TREE, "--seeds", 1, "-n", 4, "--samples", 100)
    for part, total in {"answers": 4, "rulings": 4, "laws": 2, "samples": 200}.items():
        assert f"1 of {total} {part}, about " in done.stderr
        assert f"{total} of {total} {part}\n" in done.stderr


def test_too_few_samples_are_refused_before_loading(certify, loads):
    done = certify("--samples", 20)
    assert (done.exit_code, loads) == (2, [])
    assert done.stderr.startswith("error: num_samples (--samples) is 20; give at least 100")


def test_the_certificate_says_what_was_run(certify, tmp_path, loads):
    out = tmp_path / "certificate.json"
    done = certify("--prompts", 2, *TREE, *FEW, "--dtype", "bfloat16", "--out", out, "--json")
    record = json.loads(out.read_text(encoding="utf-8"))
    shown = json.loads(done.stdout)
    assert record == shown
    assert record["verdict"] in ("lossless", "lossless up to rounding")
    assert (record["model"], record["method"], record["dtype"]) == ("tiny", "layer-skip", "bfloat16")
    assert record["options"] == {"width": 3, "depth": 3, "total": 6}
    assert record["target"] == target_of("llama", torch.bfloat16).hash
    assert {"command", "commit", "versions", "hardware", "num_threads"} <= record.keys()
    assert record["settings"]["first_seed"] == 1
    assert [(one["prompt_id"], one["seed"]) for one in record["answers"]] == [(1, None), (1, 1), (2, None), (2, 1)]
    greedy, seeded = record["answers"][:2]
    assert greedy["references"].keys() == {"same shape", "row by row", "transformers"}
    assert seeded["references"].keys() == {"same shape", "row by row"}
    assert greedy["floor"] == {"logits": 0.0, "hidden": 0.0, "num_passes": greedy["floor"]["num_passes"]}
    assert [one["reference"] for one in record["greedy"]] == ["same shape", "row by row", "transformers"]


def test_a_certificate_shows_the_same_when_it_is_read_again(certify, tmp_path, capsys, monkeypatch):
    out = tmp_path / "certificate.json"
    done = certify("--prompts", 1, *TREE, "--seeds", 1, "-n", 12, "--samples", 100, "--dtype", "bfloat16", "--out", out)
    record = load_certificate(out)
    monkeypatch.setenv("COLUMNS", "120")  # as the command had it
    show(record, NUMBERS)
    assert capsys.readouterr().out == done.stdout
    write_certificate(record, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == out.read_text()


def test_the_distribution_of_both_rules_is_tested(certify):
    record = json.loads(certify("--prompts", 1, "--seeds", 0, "-n", 4, "--samples", 100, "--json").stdout)
    tests = record["distribution"]["tests"]
    assert [test["rule"] for test in tests] == ["coupled", "rejection"]
    for test in tests:
        assert test["num_samples"] == 100
        assert 0 < test["p_value"] <= test["adjusted_p_value"] <= 1
        assert 0 < test["smallest_bias"] < 1


def test_a_fault_is_printed_and_exits_1(certify, tmp_path, monkeypatch):
    right = SlotLayer.move
    monkeypatch.setattr(SlotLayer, "move", lambda self, slots, places: right(self, slots - 1, places))
    out = tmp_path / "certificate.json"
    done = certify(*TREE, *FEW, "--out", out)
    assert done.exit_code == 1
    assert "Verdict: FAULT" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: FAULT: prompt ")
    assert json.loads(out.read_text(encoding="utf-8"))["verdict"] == "FAULT"


def test_nothing_drafted_is_inconclusive_and_exits_1(certify):
    done = certify("--prompts", 1, "-n", 1, "--seeds", 0, "--samples", 0)
    assert done.exit_code == 1
    assert "Verdict: inconclusive" in done.stdout
    assert "error: inconclusive: the method drafted nothing" in done.stderr


def test_options_of_the_method_reach_it(certify, loads):
    done = certify("--prompts", 1, *FEW, "--tree", "chain", "-o", "length=3", "--dtype", "float32")
    assert done.exit_code == 0
    (asked,) = loads
    assert asked == {"model": "tiny", "drafter": "layer-skip", "dtype": "float32", "tree": "chain", "length": 3}


@pytest.mark.parametrize(("judge", "asked"), [("auto", True), ("float64", True), ("none", False)])
def test_a_difference_in_doubt_is_put_to_float64_where_wanted(certify, loads, monkeypatch, judge, asked):
    monkeypatch.setattr("slipstream.certify.judgement.TOLERANCE", -1.0)  # no logits are near enough
    done = certify("--prompts", 1, *TREE, *FEW, "--judge", judge)
    assert ([one["dtype"] for one in loads] == [None, "float64"]) == asked
    assert done.exit_code == (0 if asked else 1)


def test_four_shipped_prompts_are_the_default():
    assert [prompt.id for prompt in command._chosen_prompts(None, None)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompts", 0), "--prompts is 0; it must lie from 1 to 3"),
        (("--judge", "maybe"), "unknown judge 'maybe'"),
        (("--verification", "typical"), "unknown verification 'typical'"),
        (("--samples", 5), "num_samples (--samples) is 5; give at least 100"),
        (("--seeds", -1), "num_seeds is -1"),
        (("-n", 0), "max_new_tokens is 0"),
        (("-t", 0), "temperature is 0"),
        (("--out", "nowhere/certificate.json"), "the folder of --out nowhere/certificate.json does not exist"),
        (("-d", "layer_skip"), "unknown method 'layer_skip'"),
        (("--data", "nowhere.jsonl"), "cannot read nowhere.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(certify, arguments, message):
    done = certify(*arguments)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr
    assert done.stdout == ""
