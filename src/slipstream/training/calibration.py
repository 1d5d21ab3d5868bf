"""Calibration of what was trained: the scales go into the artefact's config.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slipstream.drafting.draft_vocabulary import WHOLE
from slipstream.engine.calibration import Calibration, calibrate
from slipstream.errors import InputError
from slipstream.methods.registry import METHODS, build_drafter
from slipstream.target.target import Target
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.data.encoded import write_atomically


def calibrate_artefact(
    method: str,
    target: Target,
    folder: Path,
    dialogues: Sequence[Dialogue],
    *,
    num_prompts: int = 24,
    depth: int = 5,
    max_new_tokens: int = 64,
) -> Calibration:
    """Calibrate a trained artefact on answers to the prompts of dialogues, and note the scale in its config.json.

    depth: of the chains that are drafted. Raises InputError if no dialogue begins with a prompt.
    """
    chain: dict[str, Any] = {"draft": folder, "width": 1, "depth": depth, "total": depth}
    if "draft_vocabulary" in METHODS[method].options:
        chain["draft_vocabulary"] = WHOLE
    drafter = build_drafter(method, target, chain)
    prompts = [list(one.token_ids[: one.answer.index(True)]) for one in dialogues if not one.answer[0]][:num_prompts]
    if not prompts:
        raise InputError("no dialogue begins with a prompt that calibration could let the target answer")
    found = calibrate(target, drafter, prompts, max_new_tokens=max_new_tokens)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["slipstream"]["confidence_scale"] = found.scale.to_dict()
    config["slipstream"]["calibration"] = found.to_dict()
    write_atomically(file, (json.dumps(config, indent=2) + "\n").encode())
    return found
