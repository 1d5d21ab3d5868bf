"""The search for a skip set: what it keeps to, that it survives a kill, and that processes share it."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import families
import search_doubles
from search_doubles import ALL_LAYERS, PROMPTS, small_search, tiny_model
from slipstream.drafting.shape import Chain
from slipstream.errors import ArtifactError, InputError, LayerSkipUnsupportedError, SkipSetError
from slipstream.methods.plain import PlainDrafter
from slipstream.model import Model
from slipstream.search.modelled import modelled_speed
from slipstream.search.options import DraftOptions
from slipstream.search.plots import write_plots
from slipstream.search.prompts import TASKS, read_prompts, task_prompts
from slipstream.search.search import SkipSearch
from slipstream.search.settings import SearchSettings, make_shape
from slipstream.search.space import Space, greedy, uniform
from slipstream.skipping.skip_set import SkipSet
from slipstream.target.target import Target

pytest.importorskip("optuna", reason="the search needs optuna")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def test_the_best_set_has_the_highest_value_of_all_and_says_how_it_was_found(model: Model, tmp_path: Path) -> None:
    search = small_search(tmp_path / "a.study", 16, model, sampler="tpe")
    trials = list(search.trials())
    best = search.best()
    assert [trial.number for trial in trials] == list(range(1, 17))
    assert len({(t.skip_set.attention, t.skip_set.mlp) for t in trials}) == 16, "a set was tried twice"
    assert {"default", "uniform 1/2"} <= {trial.origin for trial in trials}
    top = max(trials, key=lambda trial: trial.value)
    assert (best.attention, best.mlp, best.target) == (top.skip_set.attention, top.skip_set.mlp, model.target.hash)
    record = json.loads(best.to_json())["provenance"]
    assert record["figures"]["tokens_per_second"] == pytest.approx(top.value, abs=1e-3)
    assert (record["objective"], record["task"], record["trials"]) == ("modelled", "code", 16)
    assert {"costs", "device", "versions", "settings", "date"} <= record.keys()


def test_a_modelled_trial_is_the_models_figure_of_its_set(model: Model, tmp_path: Path) -> None:
    search = small_search(tmp_path / "a.study", 3, model)
    for trial in search.trials():
        agreement = search.modelled.answers.agreement(search.sublayers.plan(trial.skip_set), 2)
        figures = modelled_speed(
            agreement, search.modelled.answers.segments, search.settings.shape, search.costs, trial.skip_set
        )
        assert trial.value == figures.tokens_per_second
        assert figures.speedup == pytest.approx(trial.value / trial.plain)
        assert figures.speedup <= figures.bound


def test_the_best_set_is_timed_beside_plain_decoding(model: Model, tmp_path: Path) -> None:
    search = small_search(tmp_path / "a.study", 2, model)
    found = search.against_plain([trial.skip_set for trial in search.trials()][-1])
    assert 0 < found.low <= found.speedup <= found.high <= found.bound
    assert found.answers == len(PROMPTS)
    assert 1 <= found.tau <= 3


def test_the_value_of_any_set_is_what_a_trial_of_it_would_give(model: Model, tmp_path: Path) -> None:
    search = small_search(tmp_path / "a.study", 3, model)
    tried = list(search.trials())
    assert [search.value(trial.skip_set) for trial in tried] == [trial.value for trial in tried]
    other = SkipSet(num_layers=6, attention=(1, 2, 4), mlp=(1, 4), target=model.target.hash)
    assert other not in [trial.skip_set for trial in tried]
    assert search.value(other) == search.objective(other).value
    assert search.value(SkipSet(num_layers=6, attention=(0,), mlp=())) is None  # the first layer is kept


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_samplers_propose_after_the_starting_points(model: Model, tmp_path: Path, sampler: str) -> None:
    search = small_search(tmp_path / "a.study", 14, model, sampler=sampler)
    assert "sampler" in {trial.origin for trial in search.trials()}


def test_the_throughput_objective_measures_real_tokens(model: Model, tmp_path: Path) -> None:
    shape = Chain(length=2, threshold=0.0)
    search = small_search(tmp_path / "a.study", 3, model, objective="throughput", repeats=2, shape=shape)
    for trial in search.trials():
        assert 0 < trial.value / trial.plain == pytest.approx(trial.figures["speedup"], abs=1e-4)
        assert trial.figures["speedup"] <= trial.figures["bound"]
        assert trial.figures["answers"] == 2 * len(PROMPTS)
        assert 1 <= trial.figures["tau"] <= 3


def test_constraints_hold_in_every_trial(model: Model, tmp_path: Path) -> None:
    search = small_search(tmp_path / "a.study", 14, model, keep_first=2, keep_last=1, max_skipped=3)
    for trial in search.trials():
        skipped = (*trial.skip_set.attention, *trial.skip_set.mlp)
        assert len(skipped) <= 3
        assert set(skipped) <= {2, 3, 4}


def test_without_starting_points_all_sets_are_the_samplers(model: Model, tmp_path: Path) -> None:
    search = small_search(tmp_path / "a.study", 4, model, starting_points=False)
    assert {trial.origin for trial in search.trials()} == {"sampler"}


def test_a_space_that_is_used_up_ends_the_search(model: Model, tmp_path: Path) -> None:
    search = small_search(tmp_path / "a.study", 99, model, keep_first=5, keep_last=0)
    assert len(list(search.trials())) == 4  # two sub-layers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_first": 4, "keep_last": 2}, "keeping the first 4 and the last 2 of 6 layers leaves nothing"),
        ({"keep_first": 7}, "--keep-first is 7; it must lie from 0 to the target's 6 layers"),
        ({"max_skipped": 0}, "--max-skipped is 0; it must be at least 1"),
        ({"objective": "modeled"}, "unknown objective 'modeled'.*Did you mean 'modelled'"),
        ({"sampler": "bayes"}, "unknown sampler 'bayes'"),
        ({"rows": 0}, "rows is 0; it must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    model: Model, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        small_search(tmp_path / "a.study", 3, model, **settings)


def test_sizes_of_the_other_tree_are_refused() -> None:
    assert make_shape(DraftOptions(tree="chain", length=5)) == Chain(length=5)
    with pytest.raises(InputError, match="--length says nothing about a dynamic draft"):
        DraftOptions(tree="dynamic", length=5)


def child(study: Path, trials: int) -> subprocess.Popen[str]:
    """A process that runs the same search; it prints a line per trial."""
    command = [sys.executable, search_doubles.__file__, str(study), str(trials)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_killed_search_resumes_and_processes_share_a_study(tmp_path: Path) -> None:
    study = tmp_path / "shared.study"
    process = child(study, 4000)
    try:
        assert process.stdout is not None
        theirs = [process.stdout.readline().strip() for _ in range(3)]
        model = tiny_model()
        ours = []
        for trial in small_search(study, 4000, model, **ALL_LAYERS).trials():  # while the other process goes on
            ours.append(f"{trial.skip_set.attention} {trial.skip_set.mlp}")
            if len(ours) == 3:
                break
        assert process.poll() is None
    finally:
        process.kill()
        theirs += [line.strip() for line in process.communicate()[0].splitlines()]
    assert process.returncode < 0, "the process was not killed but ended"
    resumed = small_search(study, 4000, model, **ALL_LAYERS)
    before = {f"{s.attention} {s.mlp}" for s in map(resumed.space.skip_set, resumed.study.values())}
    assert before >= {*filter(None, theirs), *ours}
    first = next(resumed.trials())
    assert f"{first.skip_set.attention} {first.skip_set.mlp}" not in before
    assert first.number == len(before) + 1


def test_a_resumed_search_measures_by_the_first_ones_ruler(model: Model, tmp_path: Path) -> None:
    first = small_search(tmp_path / "a.study", 2, model)
    list(first.trials())
    second = small_search(tmp_path / "a.study", 4, model)
    assert (second.costs, second.samples, second.harm) == (first.costs, first.samples, first.harm)
    assert [trial.number for trial in second.trials()] == [3, 4]


def test_a_study_of_other_settings_is_refused(model: Model, tmp_path: Path) -> None:
    small_search(tmp_path / "a.study", 2, model)
    with pytest.raises(ArtifactError, match=r"a.study was made with another max_new_tokens \(6, not 5\)"):
        small_search(tmp_path / "a.study", 2, model, max_new_tokens=5)
    (tmp_path / "text.study").write_text("no database, but long enough to be read as one" * 9)
    with pytest.raises(ArtifactError, match=r"text.study is not a study of skip sets"):
        small_search(tmp_path / "text.study", 2, model)


def test_a_warm_start_tries_the_best_earlier_sets_first(model: Model, tmp_path: Path) -> None:
    earlier = small_search(tmp_path / "a.study", 12, model)
    list(earlier.trials())
    best = earlier.best()
    best.save(tmp_path / "best.json")
    for source in ("a.study", "best.json"):
        later = small_search(tmp_path / f"{source}.b", 1, model, task="chat", warm_start=tmp_path / source)
        (trial,) = later.trials()
        assert trial.origin == "warm start"
        assert (trial.skip_set.attention, trial.skip_set.mlp) == (best.attention, best.mlp)
    with pytest.raises(ArtifactError, match=r"there is no study .*absent"):
        small_search(tmp_path / "c.study", 1, model, warm_start=tmp_path / "absent")


def test_a_target_that_refuses_layer_skip_is_told_so(tmp_path: Path) -> None:
    post_norm = families.build("opt", ffn_dim=48, word_embed_proj_dim=32, do_layer_norm_before=False)
    refusing = Model(Target(post_norm), PlainDrafter())
    with pytest.raises(LayerSkipUnsupportedError, match="cannot skip sub-layers of this model"):
        SkipSearch(refusing, PROMPTS, SearchSettings(), tmp_path / "a.study", task="code")
    assert not (tmp_path / "a.study").exists()


def test_without_optuna_the_install_command_is_given(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "optuna":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"needs optuna.*pip install optuna scipy"):
        small_search(tmp_path / "a.study", 1, model)


# -- the space and its starting points ------------------------------------------------------------------------------


def test_bits_and_sets_are_the_same_choice() -> None:
    space = Space.make(5, 1, 1, None)
    skip_set = SkipSet(num_layers=5, attention=(1, 3), mlp=(2,))
    assert space.skip_set(space.bits(skip_set)) == skip_set
    assert len(space.names) == len(set(space.names)) == 6
    with pytest.raises(SkipSetError):
        SkipSet(num_layers=5, attention=(5,), mlp=())


def test_repair_keeps_the_least_harmful_and_greedy_stops_at_its_share() -> None:
    space = Space.make(5, 1, 1, 2)
    assert space.repair((True,) * 6, [0.3, 0.1, 0.2, 0.0, 0.5, 0.9]) == (False, True, False, True, False, False)
    assert greedy([0.3, 0.1, 0.0], [1.0, 1.0, 2.0], 0.6) == (False, True, True)
    assert uniform(Space.make(8, 1, 1, None), 2).mlp == (2, 4, 6)


# -- prompts, pictures -----------------------------------------------------------------------------------------------


def test_every_task_has_prompts_by_any_of_its_names() -> None:
    assert {len(task_prompts(task)) for task in TASKS if task != "default"} == {6}
    assert task_prompts("summarization") == task_prompts("summarisation")
    with pytest.raises(InputError, match=r"unknown task 'cod'.*Did you mean 'code'"):
        task_prompts("cod")


def test_prompts_are_read_from_both_layouts(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    chat = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    file.write_text(f"{json.dumps({'turns': ['a', 'x']})}\n\n{json.dumps({'messages': chat})}\n")
    assert read_prompts(file) == [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]
    for line, message in (("{", "p.jsonl:1 is not JSON"), ('{"turns": []}', "p.jsonl:1 has neither"), ("", "holds no")):
        file.write_text(line)
        with pytest.raises(InputError, match=message):
            read_prompts(file)


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_pictures_lie_beside_the_set(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    skip_set = SkipSet(num_layers=6, attention=(1,), mlp=(2, 3), provenance={"task": "code"})
    origins = ["default", "sampler", "neighbour"]
    paths = write_plots(skip_set, [1.0, 3.0, 2.0], origins, 2.0, tmp_path / "code.json", kind)
    assert [path.name for path in paths] == [f"code.search.{kind}", f"code.layers.{kind}"]
    if kind == "svg":
        assert "plain decoding" in paths[0].read_text()
    begins = b"<?xml" if kind == "svg" else b"\x89PNG"
    assert all(path.read_bytes().startswith(begins) for path in paths)
