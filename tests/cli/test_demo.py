from __future__ import annotations

import json

import pytest

from slipstream.methods.registry import METHODS
from slipstream.prompts import load_prompts


@pytest.fixture
def demo(cli, loader):
    return lambda *arguments: cli("demo", *arguments)


def record(done):
    return json.loads(done.stdout)


def test_table_has_every_method_greedily_and_sampled(demo):
    done = demo("--prompts", 2)
    assert done.exit_code == 0
    for method in METHODS.values():
        assert done.stdout.count(f"  {method.name} ") == (2 if method.runs_on_demo else 0)
    assert "reference" in done.stdout
    assert "3 of 3" in done.stdout  # two prompts, one of two turns
    assert "2 prompts, at most 64 tokens each, float32 on cpu" in done.stdout


def test_figures_are_totals_over_all_answers(demo):
    rows = {(row["method"], row["temperature"]): row for row in record(demo("--prompts", 2, "--json"))["methods"]}
    row = rows["layer-skip", 1.0]
    assert (row["num_tokens"], row["num_cycles"], row["tau"], row["passes_saved"]) == (18, 6, 3.0, pytest.approx(2 / 3))
    assert row["verdicts"] == {"identical": 3, "rounding": 0, "fault": 0}
    assert rows["plain", 0.0]["tau"] == 1.0


def test_json_holds_every_answer(demo):
    answers = record(demo("--prompts", 2, "--methods", "layer-skip", "--json"))["answers"]
    assert len(answers) == 3 * 2 * 2
    assert {answer["seed"] for answer in answers} == {None, 1}
    assert all(answer["token_ids"] for answer in answers)


def test_temperatures_methods_and_budget_can_be_chosen(demo, loader):
    rows = record(demo("--prompts", 1, "--methods", "prompt-lookup", "-t", "0.5", "-n", "5", "--json"))["methods"]
    assert [(row["method"], row["temperature"]) for row in rows] == [("plain", 0.5), ("prompt-lookup", 0.5)]
    assert loader.models[0].requests[-1] == {"max_new_tokens": 5, "temperature": 0.5, "seed": 1}


def test_target_is_loaded_once_and_shared(demo, loader):
    demo("--prompts", 1)
    plain, *others = loader.models
    assert plain.settings["model"] == "tiny"
    assert all(model.settings["model"] is plain for model in others)


def test_methods_take_turns_within_a_prompt_and_in_going_first(demo, loader):
    demo("--prompts", 3, "--methods", "layer-skip", "-t", "0")
    timed = [method for method, _ in loader.calls[2:]]  # after the warm-up of both
    assert timed == ["plain", "layer-skip"] * 2 + ["layer-skip", "plain"] + ["plain", "layer-skip"]


def test_a_second_turn_follows_plain_decodings_answer(demo, loader):
    demo("--prompts", 1, "--methods", "layer-skip", "-t", "0")
    for model in loader.models:
        assert [message["role"] for message in model.prompts[-1]] == ["user", "assistant", "user"]
        assert model.prompts[-1][1]["content"] == "Rain falls on the quiet sea."


def test_a_difference_that_float64_does_not_have_is_rounding(demo, loader):
    loader.alters = lambda model, prompt: model.method == "layer-skip" and model.dtype == "float32"
    done = demo("--prompts", 2, "--methods", "layer-skip", "-t", "0")
    assert done.exit_code == 0
    assert "0 of 3" in done.stdout
    assert "3 rounding" in done.stdout
    assert loader.calls.count(("layer-skip", "float64")) == loader.calls.count(("plain", "float64")) == 3


def test_a_difference_that_float64_has_too_is_a_fault_and_exits_1(demo, loader):
    loader.alters = lambda model, prompt: model.method == "layer-skip" and len(prompt) == 3
    done = demo("--prompts", 2, "--methods", "layer-skip")
    assert done.exit_code == 1
    assert "2 of 3" in done.stdout
    assert "1 FAULT" in done.stdout
    assert "2 of 12 answers differ from plain decoding in float64 too" in done.stderr
    assert "the first is layer-skip at T=0 on prompt 1 (chat), turn 2, from generated token 0 on" in done.stderr


def test_json_run_with_a_fault_exits_1_too(demo, loader):
    loader.alters = lambda model, prompt: model.method == "prompt-lookup"
    done = demo("--prompts", 1, "--json")
    assert done.exit_code == 1
    verdicts = {(answer["method"], answer["verdict"]) for answer in record(done)["answers"]}
    assert {("layer-skip", "identical"), ("prompt-lookup", "fault")} <= verdicts


def test_time_limit_ends_the_run_between_prompts_and_says_so(demo):
    done = demo("--time-limit", 0)
    assert done.exit_code == 0
    assert f"1 prompts of {len(load_prompts())} (the time limit came first)" in done.stdout


def test_sample_answers_stand_before_the_table(demo):
    shown = demo("--prompts", 5).stdout
    question = next(prompt for prompt in load_prompts() if prompt.kind == "maths")
    assert f"maths: {question.turns[0]} Rain falls on the quiet sea." in " ".join(shown.split())
    assert shown.index("Rain falls") < shown.index("accept")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompts", 0), "--prompts is 0; it must lie from 1 to 36"),
        (("--prompts", 37), "--prompts is 37; it must lie from 1 to 36"),
        (("--methods", "layer_skip"), "unknown method 'layer_skip'"),
        (("--prompts", 1, "-t", "-1"), "temperature is -1.0"),
        (("--prompts", 1, "-n", 0), "max_new_tokens is 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(demo, arguments, message):
    done = demo(*arguments)
    assert done.exit_code == 2
    *notes, line = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not any("error" in note for note in notes)
