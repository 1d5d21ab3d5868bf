"""The methods that need an artefact, with artefacts made on the spot for a tiny target.

Heads have random weights and the draft model is a disturbed copy of the target; trees are wide for the vocabulary, so
that drafts are kept now and then.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from methods.eagle.test_eagle import random_head as eagle_head
from methods.eagle3.test_eagle3 import random_head as eagle3_head
from methods.hydra.test_hydra import random_heads as hydra_heads
from methods.medusa.test_medusa import random_heads as medusa_heads
from slipstream.drafting.base import Drafter
from slipstream.methods.draft_model.checkpoint import save_draft
from slipstream.methods.eagle.checkpoint import save_head
from slipstream.methods.eagle3.checkpoint import save_head as save_eagle3
from slipstream.methods.hydra.checkpoint import save_heads as save_hydra
from slipstream.methods.medusa.checkpoint import save_heads as save_medusa
from slipstream.methods.registry import METHODS, build_drafter
from slipstream.target.target import Target

_WIDE = {"width": 20, "depth": 3, "total": 60}

# name -> (method, options)
LEARNED: dict[str, tuple[str, dict[str, Any]]] = {
    "eagle2": ("eagle2", _WIDE),
    "eagle": ("eagle", {"total": "all"}),
    "eagle3-dynamic": ("eagle3", _WIDE),
    "eagle3-static": ("eagle3", {"tree": "static"}),
    "eagle3-chain": ("eagle3", {"tree": "chain", "length": 4, "threshold": 0.0}),
    "medusa-dynamic": ("medusa", _WIDE),
    "medusa-static": ("medusa", {"tree": "static"}),
    "hydra-dynamic": ("hydra", _WIDE),
    "hydra-static": ("hydra", {"tree": "static"}),
    "draft-model-dynamic": ("draft-model", _WIDE),
    "draft-model-chain": ("draft-model", {"tree": "chain", "length": 4, "threshold": 0.05}),
}


def save_artefacts(target: Target, folder: Path) -> None:
    """One artefact of each kind for a target, each in the folder of its kind."""
    save_head(eagle_head(target), folder / "eagle", target)
    save_eagle3(eagle3_head(target), folder / "eagle3", target)
    save_medusa(medusa_heads(target), folder / "medusa", target)
    save_hydra(hydra_heads(target), folder / "hydra", target)
    save_draft(near(target.model), folder / "draft", target)


def learned(configuration: str, target: Target, folder: Path) -> Drafter:
    """A drafter of `LEARNED` with its artefact of `save_artefacts`."""
    method, options = LEARNED[configuration]
    return build_drafter(method, target, {**options, "draft": folder / str(METHODS[method].artefact)})


def near(model: PreTrainedModel) -> PreTrainedModel:
    """A model that often says what this one says: its weights, disturbed."""
    disturbed = copy.deepcopy(model)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in disturbed.parameters():
            parameter += torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype) * 0.1 * parameter.std()
    return disturbed
