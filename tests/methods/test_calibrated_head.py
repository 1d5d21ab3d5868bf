"""A head's calibrated confidence reaches its trees, and may be left aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import slipstream
from families import build, prompt_ids
from slipstream.bench.watching import WatchedDrafter
from slipstream.core.confidence import ConfidenceScale
from slipstream.errors import ArtifactError, InputError
from slipstream.methods.eagle.checkpoint import save_head
from slipstream.methods.eagle.head import EagleHead, HeadSizes
from slipstream.methods.registry import build_drafter
from slipstream.target.target import Target

SCALE = ConfidenceScale(floor=0.3, slope=0.9, greedy=0.4)


@pytest.fixture
def target() -> Target:
    return Target(build("llama"))


@pytest.fixture
def folder(target: Target, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    head = EagleHead(HeadSizes.like(target))
    head.confidence = SCALE
    save_head(head, tmp_path, target)
    return tmp_path


def test_the_scale_is_stored_used_and_left_aside_on_request(target: Target, folder: Path) -> None:
    assert build_drafter("eagle2", target, {"draft": folder}).confidence == SCALE
    assert build_drafter("eagle2", target, {"draft": folder, "calibrated": False}).confidence == ConfidenceScale()
    with pytest.raises(InputError, match="calibrated is 'no'"):
        build_drafter("eagle2", target, {"draft": folder, "calibrated": "no"})


def drafts(target: Target, folder: Path, *, calibrated: bool, **settings: object) -> tuple[list[int], list[list[int]]]:
    """The answer, and the tokens of every tree."""
    options = {"draft": folder, "width": 3, "depth": 3, "total": 6, "calibrated": calibrated}
    drafter = WatchedDrafter(build_drafter("eagle2", target, options))
    answer = slipstream.Model(target, drafter, None).generate(prompt_ids(8), max_new_tokens=30, **settings)
    return answer.token_ids, [cycle.tree.tokens.tolist() for cycle in drafter.take()]


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 3}])
def test_it_changes_drafts_and_no_token(target: Target, folder: Path, settings: dict[str, float]) -> None:
    plain = slipstream.load(target.model, "plain").generate(prompt_ids(8), max_new_tokens=30, **settings)
    ours, trees = drafts(target, folder, calibrated=True, **settings)
    published, others = drafts(target, folder, calibrated=False, **settings)
    assert ours == published == plain.token_ids
    assert trees != others


def test_a_damaged_scale_is_named(target: Target, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["slipstream"]["confidence_scale"]["greedy"] = 0
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="confidence scale greedy is 0"):
        build_drafter("eagle2", target, {"draft": folder})
