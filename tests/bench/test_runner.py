from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import slipstream
from bench_run import carry_out
from slipstream.bench.entrants import ExactEntrants, load_entrants
from slipstream.bench.runner import Watcher
from slipstream.errors import ArtifactError, InputError
from slipstream.records.journal import read_answers
from slipstream.records.run_files import JOURNAL_FILE, SETTINGS_FILE, read_run
from slipstream.records.schema import Answer
from slipstream.runtime.compiled import CompiledPasses
from slipstream.target.passes import Executor

NUM_TURNS = 6
ANSWERS = NUM_TURNS * 4 * (1 + 2)  # entrants; one greedy answer and two samples


def answers_of(run) -> list[Answer]:
    return list(read_answers(run.folder / JOURNAL_FILE))


def asked(answer) -> tuple:
    return tuple(getattr(answer, name) for name in ("task", "prompt_id", "turn", "sample", "temperature"))


def test_every_entrant_answers_every_turn_at_every_temperature(finished) -> None:
    answers = answers_of(finished)
    assert len(answers) == ANSWERS
    assert set(Counter((*asked(one), one.entrant) for one in answers).values()) == {1}
    assert {len(one.seconds) for one in answers} == {2}


def test_our_answers_are_those_of_generate(finished, byte_plain: slipstream.Model) -> None:
    for one in answers_of(finished):
        if one.entrant == "plain" and (one.task, one.prompt_id) == ("mine", 81):
            expected = byte_plain.generate(
                "Two two two?",
                max_new_tokens=8,
                temperature=one.temperature,
                seed=0,
                stream_id=one.sample,
            )
            assert one.token_ids == expected.token_ids


def test_samples_of_one_prompt_differ(finished) -> None:
    sampled = [
        one.token_ids
        for one in answers_of(finished)
        if one.temperature == 1.0 and (one.entrant, one.task, one.prompt_id) == ("plain", "mine", 80)
    ]
    assert len(sampled) == 2
    assert sampled[0] != sampled[1]


def test_every_answer_of_ours_is_compared_and_sampled_peers_are_not(finished) -> None:
    for one in answers_of(finished):
        free = one.entrant == "hf-plain" and one.temperature > 0
        assert one.verdict == (None if free else "identical")


def test_a_second_turn_continues_plain_decodings_answer(finished, byte_plain: slipstream.Model) -> None:
    answers = [one for one in answers_of(finished) if one.prompt_id == 80 and one.task == "mt_bench"]
    first = {asked(one): one for one in answers if one.entrant == "plain" and one.turn == 0}
    for one in answers:
        if one.turn == 1 and one.entrant == "layer-skip":
            before = first[(one.task, one.prompt_id, 0, one.sample, one.temperature)]
            messages = [("user", "Hello there!"), ("assistant", before.text), ("user", "And then?")]
            ids = byte_plain.encode([{"role": role, "content": text} for role, text in messages])
            assert one.num_prompt_tokens == len(ids)


def test_a_prompt_beyond_the_context_is_cut_and_counted(finished) -> None:
    context = 160
    for one in answers_of(finished):
        too_long = (one.task, one.prompt_id) == ("mt_bench", 82)
        assert (one.num_tokens_cut > 0) == too_long
        if too_long:
            assert one.num_prompt_tokens == context - 8
    first = next(one for one in answers_of(finished) if one.prompt_id == 82)
    assert first.num_tokens_cut == len("word " * 60) + 3 - (context - 8)  # the template's tokens stay


def test_the_entrant_that_goes_first_rotates(start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(tmp_path / "run", repeats=1, samples=1, temperatures=(0.0,))
    order: list[str] = []
    entrants = load_entrants(run.plain, run.settings)
    for entrant in entrants.values():
        inner = entrant.answer

        def answer(*args, name=entrant.name, inner=inner):
            order.append(name)
            return inner(*args)

        monkeypatch.setattr(entrant, "answer", answer)
    run.run(entrants, ExactEntrants(lambda: run.plain, run.settings))
    turns = [order[2 * 4 + 4 * turn] for turn in range(NUM_TURNS)]  # after the warm-up
    assert set(turns) == {"plain", "layer-skip", "prompt-lookup", "hf-plain"}


class Notes(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def warming_up(self, entrant, number, num_entrants) -> None:
        self.told.append(("warming up", entrant, number, num_entrants))

    def starting(self, plan) -> None:
        self.told.append(("starting", plan))

    def answered(self, entrant) -> None:
        self.told.append(("answered", entrant))

    def finished(self, progress) -> None:
        self.told.append(("finished", progress))


SMALL = {"entrants": ("plain", "prompt-lookup"), "repeats": 1, "samples": 1, "temperatures": (0.0,)}


def test_the_warm_up_is_shown_and_the_size_of_the_run_is_said_before_it_starts(start, tmp_path: Path) -> None:
    notes = Notes()
    run = start(tmp_path / "run", **SMALL)
    carry_out(run, notes)
    assert notes.told[:2] == [("warming up", "plain", 1, 2), ("warming up", "prompt-lookup", 2, 2)]
    kind, plan = notes.told[2]
    assert (kind, plan.num_answers) == ("starting", 2 * NUM_TURNS)
    expected = read_run(run.folder)["expected_s"]
    assert plan.left_s == pytest.approx(sum(expected.values()) * NUM_TURNS)
    assert [one[0] for one in notes.told[3:]].count("answered") == 2 * NUM_TURNS
    assert notes.told[-1][1].left_s == 0


def test_the_time_left_is_that_of_finished_turns_alone(start, tmp_path: Path) -> None:
    notes = Notes()
    run = start(tmp_path / "run", **SMALL)
    carry_out(run, notes)
    (first,) = [told for kind, *told in notes.told if kind == "finished"][:1]
    lines = (run.folder / JOURNAL_FILE).read_text().splitlines()
    wall_s = json.loads(next(line for line in lines if "prompt_done" in line))["wall_s"]
    turns = 2  # of the first prompt
    assert first[0].left_s == pytest.approx(wall_s / turns * (NUM_TURNS - turns), rel=1e-3, abs=1e-3)


def test_going_on_calls_each_entrant_once_and_measures_nothing_again(start, tmp_path: Path, monkeypatch) -> None:
    run = start(tmp_path / "run", **{**SMALL, "temperatures": (0.0, 1.0)})
    calls: list[str] = []

    def watched() -> dict:
        entrants = load_entrants(run.plain, run.settings)
        for entrant in entrants.values():
            inner = entrant.answer

            def answer(*args, name=entrant.name, inner=inner):
                calls.append(name)
                return inner(*args)

            monkeypatch.setattr(entrant, "answer", answer)
        return entrants

    class Stop(Watcher):
        def starting(self, plan) -> None:
            raise Interrupted

    for each in (3, 1):
        calls.clear()
        with pytest.raises(Interrupted):
            run.run(watched(), watched(), Stop())
        assert calls == ["plain"] * each + ["prompt-lookup"] * each
        run = start(tmp_path / "run", resume=True, **{**SMALL, "temperatures": (0.0, 1.0)})
    assert set(read_run(run.folder)["expected_s"]) == {"plain", "prompt-lookup"}


class Interrupted(Exception):  # noqa: N818 (not an error of ours)
    """In place of a kill."""


def test_an_interrupted_run_goes_on_and_ends_as_one_that_was_not(start, finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    class Stop(Watcher):
        def finished(self, progress) -> None:
            if progress.num_done == 2:
                raise Interrupted

    with pytest.raises(Interrupted):
        carry_out(start(folder), Stop())
    with (folder / JOURNAL_FILE).open("a") as file:
        file.write('{"task": "mine", "half a li')  # killed while writing
    resumed = start(folder, resume=True)
    assert resumed.num_done == 2
    carry_out(resumed)
    whole = {(*asked(one), one.entrant): one.token_ids for one in answers_of(finished)}
    assert {(*asked(one), one.entrant): one.token_ids for one in answers_of(resumed)} == whole
    assert len(answers_of(resumed)) == ANSWERS


def test_a_finished_run_has_nothing_left(start, finished) -> None:
    before = (finished.folder / JOURNAL_FILE).read_bytes()
    carry_out(start(finished.folder, resume=True))
    assert (finished.folder / JOURNAL_FILE).read_bytes() == before


def test_a_folder_in_use_needs_resume(start, finished, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--resume"):
        start(finished.folder)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        start(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_new_tokens": 13}, "max_new_tokens 8, this one 13"),
        ({"seed": 1}, "seed 0, this one 1"),
        ({"prompts_per_task": 1}, "prompts_per_task null, this one 1"),
    ],
)
def test_a_run_is_resumed_with_the_same_settings_only(start, finished, changes, says) -> None:
    with pytest.raises(ArtifactError, match=says):
        start(finished.folder, resume=True, **changes)


def test_a_run_says_how_passes_are_run_and_goes_on_in_that_way_only(
    start, byte_plain, tmp_path: Path, monkeypatch
) -> None:
    run = start(tmp_path / "run")
    assert read_run(run.folder)["runtime"] == "eager"
    monkeypatch.setattr(byte_plain.target, "executor", CompiledPasses())
    with pytest.raises(ArtifactError, match='runtime "eager", this one "compiled"'):
        start(run.folder, resume=True)


class Twice(Executor):
    """Makes every call that is to be settled twice."""

    def settled(self, call):
        call()
        return call()


def test_an_answer_is_that_of_settled_passes_and_entrants_share_them(start, byte_plain, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(byte_plain.target, "executor", Twice())
    run = start(tmp_path / "run", **SMALL)
    entrants = load_entrants(run.plain, run.settings)
    replies: list[list[int]] = []
    for entrant in entrants.values():
        inner = entrant._run
        monkeypatch.setattr(entrant, "_run", lambda *args, inner=inner: replies.append(inner(*args)) or replies[-1])
        assert entrant.answer([5, 6, 7], 0.0, 0, 4).token_ids == replies[-1][0]
    assert len(replies) == 2 * len(entrants)


def test_going_on_with_other_versions_is_remembered(start, finished, tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    described = read_run(run.folder)
    described["versions"]["torch"] = "1.0"
    (run.folder / SETTINGS_FILE).write_text(json.dumps(described))
    start(run.folder, resume=True)
    assert read_run(run.folder)["continued"][0]["versions"]["torch"] != "1.0"
    assert read_run(run.folder)["versions"]["torch"] == "1.0"


class Wrong:
    """An entrant that says something else than plain decoding."""

    def __init__(self, inner) -> None:
        self.inner, self.name, self.is_peer, self.spec = inner, inner.name, inner.is_peer, inner.spec

    def answer(self, *args):
        reply = self.inner.answer(*args)
        reply.token_ids[-1] ^= 1
        return reply


@pytest.mark.parametrize(
    ("judge", "wrong_in_float64", "verdict"),
    [("float64", False, "rounding"), ("float64", True, "fault"), ("auto", True, "fault"), ("none", True, "differs")],
)
def test_an_answer_that_differs_is_judged(
    start, tmp_path: Path, judge: str, wrong_in_float64: bool, verdict: str
) -> None:
    run = start(
        tmp_path / "run", judge=judge, repeats=1, samples=1, prompts_per_task=1, entrants=("plain", "prompt-lookup")
    )
    entrants = load_entrants(run.plain, run.settings)
    wrong = {**entrants, "prompt-lookup": Wrong(entrants["prompt-lookup"])}
    run.run(wrong, wrong if wrong_in_float64 else entrants)
    found = {(one.entrant, one.verdict) for one in answers_of(run)}
    assert found == {("plain", "identical"), ("prompt-lookup", verdict)}
    differing = next(one for one in answers_of(run) if one.entrant == "prompt-lookup")
    assert differing.first_difference == len(differing.token_ids) - 1


@pytest.mark.parametrize(("wrong_in_float64", "verdict"), [(False, "rounding"), (True, "fault")])
def test_peers_are_judged_too(start, tmp_path: Path, wrong_in_float64: bool, verdict: str) -> None:
    few = {"repeats": 1, "samples": 1, "prompts_per_task": 1, "entrants": ("plain", "hf-plain")}
    run = start(tmp_path / "run", judge="float64", temperatures=(0.0,), **few)
    entrants = load_entrants(run.plain, run.settings)
    wrong = {**entrants, "hf-plain": Wrong(entrants["hf-plain"])}
    run.run(wrong, wrong if wrong_in_float64 else entrants)
    assert {(one.entrant, one.verdict) for one in answers_of(run)} == {("plain", "identical"), ("hf-plain", verdict)}


def test_a_benchmark_needs_a_tokenizer(start, byte_plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_plain, "tokenizer", None)
    with pytest.raises(InputError, match="tokenizer"):
        start(tmp_path / "run")
