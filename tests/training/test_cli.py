"""`slipstream train target|demo|pack` on the tiny corpus, which comes packed and so brings its own mix."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from slipstream.cli import train, train_demo
from slipstream.errors import InputError
from slipstream.skipping.skip_set import SkipSet
from slipstream.target.loading import load_model
from slipstream.target.target import Target
from slipstream.training.data.corpus import Source
from slipstream.training.data.draft_text import DraftTextSettings
from slipstream.training.data.encoded import prepare
from slipstream.training.data.transfer import pack
from slipstream.training.demo import DemoSettings, demo_pipeline
from slipstream.training.settings import Budget, TargetSettings

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def packed(data: Path, mix: dict[str, Source], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    prepare(data, folder, 300, 64, mix)
    pack(folder, folder / "corpus.tar.xz")
    return folder / "corpus.tar.xz"


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, settings: TargetSettings) -> None:
    """The commands train the demo's sizes only; here two narrow layers take their place."""
    monkeypatch.setattr(train_demo, "_settings", lambda seed: replace(settings, seed=seed))
    monkeypatch.setattr(
        train_demo, "_demo_settings", lambda seed: tiny_demo(replace(settings, seed=seed, context=4096))
    )


@pytest.fixture(autouse=True)
def _fresh_accelerate_state() -> Iterator[None]:
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def tiny_demo(target: TargetSettings) -> DemoSettings:
    """Every step of the demo, on a handful of dialogues."""
    text = DraftTextSettings(num_documents=40, num_answered=12, max_length=32, answer_tokens=6, max_prompt=24)
    quick = {"steps": 2, "batch_size": 4, "held_out": 6}
    whole = DemoSettings()
    return DemoSettings(
        target=target,
        text=text,
        eagle=replace(whole.eagle, **quick),
        medusa=replace(whole.medusa, **quick, num_heads=2),
        hydra=replace(whole.hydra, **quick, num_heads=2, prefix_size=8),
        skip_sets=replace(whole.skip_sets, trials=4, num_prompts=1, max_new_tokens=8, rows=64),
        draft=replace(whole.draft, **quick, hidden_size=16, num_layers=1, intermediate_size=24),
    )


def invoke(*arguments: object) -> str:
    result = RUNNER.invoke(train.app, [str(a) for a in arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})
    if result.exception:
        raise result.exception
    return result.output


def test_target_trains_exports_and_prints_bits_per_byte(packed: Path, tmp_path: Path) -> None:
    output = invoke("target", "--data", packed, "--out", tmp_path, "--steps", 2, "--no-compile")
    assert "held-out bits per byte" in output
    assert {f.name for f in (tmp_path / "export").iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json"}


def test_target_resumes_unless_told_not_to(packed: Path, tmp_path: Path) -> None:
    arguments = ("target", "--data", packed, "--out", tmp_path, "--no-compile", "--steps", 2)
    invoke(*arguments)
    assert "resumed at step 2" in invoke(*arguments)
    with pytest.raises(InputError, match="seed 0 "):
        invoke(*arguments, "--seed", 1)
    assert "resumed" not in invoke(*arguments, "--seed", 1, "--no-resume")


def test_demo_skips_a_finished_step(packed: Path, tmp_path: Path) -> None:
    arguments = ("demo", "--data", packed, "--work", tmp_path / "w", "--out", tmp_path / "o", "--no-compile")
    arguments += ("--step", "target")
    assert "target: done (never completed)" in invoke(*arguments, "--steps", 1)
    assert "target: skipped (unchanged)" in invoke(*arguments, "--steps", 1)
    assert "settings changed: steps" in invoke(*arguments, "--steps", 2)


def test_demo_makes_every_drafter_for_the_target_and_again_for_a_new_one(packed: Path, tmp_path: Path) -> None:
    arguments = ("demo", "--data", packed, "--work", tmp_path / "w", "--out", tmp_path / "o", "--no-compile")
    names = [step.name for step in demo_pipeline(packed, tmp_path, tmp_path, Budget(steps=1), DemoSettings()).steps]
    made = invoke(*arguments, "--steps", 1)
    assert [f"{name}: done (never completed)" in made for name in names] == [True] * len(names)
    target = Target(load_model(tmp_path / "o" / "target", dtype="float32", device="cpu", attention=None))
    assert names[-1] == "skip-sets"
    assert SkipSet.load(tmp_path / "o" / "skip_sets" / "code.json").target == target.hash
    for name in names[1:-1]:
        record = json.loads((tmp_path / "o" / name / "config.json").read_text())["slipstream"]
        assert record["target"] == target.hash
        assert str(tmp_path) not in (tmp_path / "o" / name / "config.json").read_text()
        assert set(record["confidence_scale"]) == {"floor", "slope", "greedy"}
    again = invoke(*arguments, "--steps", 1)
    assert again.count("skipped (unchanged)") == len(names)
    new_target = invoke(*arguments, "--steps", 2)
    assert new_target.count("inputs changed: target") == len(names) - 1


def test_pack_states_the_size(packed: Path, tmp_path: Path) -> None:
    output = invoke("pack", "--data", packed, "--work", tmp_path / "w", "--out", tmp_path / "half", "--sample", 0.5)
    assert re.search(r"half 0\.\d MiB", output)
    assert (tmp_path / "half").stat().st_size < packed.stat().st_size


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("target", "data out hours steps device seed resume no-resume compile no-compile verbose"),
        ("demo", "data work out hours steps draft-steps device seed compile no-compile step verbose"),
        ("pack", "data out work sample limit-mib verbose"),
    ],
)
def test_adding_an_option_is_deliberate(command: str, expected: str) -> None:
    listing = invoke(command, "--help").split("Options", 1)[1]
    assert set(re.findall(r"--([a-z-]+)", listing)) - {"help"} >= set(expected.split())
    assert set(re.findall(r"^\W*--([a-z-]+)", listing, re.MULTILINE)) <= {*expected.split(), "help"}
