"""Draft models in folders: loading one for a target, and saving one that was trained for it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from slipstream.core.confidence import ConfidenceScale
from slipstream.drafting.artefact_files import PROVENANCE, recorded, recorded_confidence, save_tensors
from slipstream.errors import ArtifactWarning, InputError, UnsupportedTargetError
from slipstream.methods.draft_model.vocabulary import check_same_vocabulary
from slipstream.target.adapters import unwrapped
from slipstream.target.loading import load_model, load_tokenizer
from slipstream.target.probe import probe
from slipstream.target.target import Target


def provenance(draft: Target) -> Mapping[str, Any]:
    """What the config of a draft model that was trained here says of its making; empty for any other model."""
    return recorded(vars(draft.model.config), _config_of(draft))


def confidence_of(draft: Target) -> ConfidenceScale:
    """The scale found by calibration, or the default."""
    return recorded_confidence(vars(draft.model.config), _config_of(draft))


def _config_of(draft: Target) -> str:
    return f"config.json of draft model {draft.name}"


def load_draft(
    source: str | Path | PreTrainedModel, target: Target, tokenizer: Any = None, draft_tokenizer: Any = None
) -> Target:
    """A draft model for a target, checked: hub id, folder or loaded model.

    It is loaded on the target's device, in its dtype; a loaded model is used as it is. The target's executor runs it.
    tokenizer: the target's; draft_tokenizer: a tokenizer, hub id or folder; by default those that belong to the models,
    where there are any.

    Raises UnsupportedTargetError for a model that cannot draft trees, InputError for another vocabulary, and what
    `load_model` raises.
    """
    if not isinstance(source, str | Path):
        model = unwrapped(source)
    else:
        model = load_model(source, dtype=target.dtype, device=target.device, attention=None)
    try:
        draft = Target(model, target.executor)
        probe(draft)
    except UnsupportedTargetError as error:
        raise UnsupportedTargetError(f"this model cannot draft: {error}. Choose another draft model.") from error
    made_for = provenance(draft).get("target")
    if made_for == target.hash:  # trained on the target's own ids
        return draft
    if made_for is not None:
        warnings.warn(
            f"draft model {draft.name} was trained for target {made_for}, not for {target.hash}: output stays exact, "
            "but the draft may be poor. Train one for this target.",
            ArtifactWarning,
            stacklevel=2,
        )
    if isinstance(draft_tokenizer, str | Path):
        draft_tokenizer = load_tokenizer(draft_tokenizer)
    check_same_vocabulary(
        target,
        draft,
        own_tokenizer(target) if tokenizer is None else tokenizer,
        own_tokenizer(draft) if draft_tokenizer is None else draft_tokenizer,
    )
    return draft


def own_tokenizer(model: Target) -> Any:
    """The tokenizer of the folder or hub id that a model was loaded from; None where there is none."""
    source = model.config._name_or_path
    if not source:
        return None
    try:
        return load_tokenizer(source)
    except InputError:
        return None


def save_draft(
    model: Any, folder: Path, target: Target, tokenizer: Any = None, made: Mapping[str, Any] | None = None
) -> None:
    """Write a draft model as `from_pretrained` reads it, in bfloat16, with its tokenizer if there is one.

    made: JSON values on how it was made; the target's hash is added to them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.config)
    config.dtype, config.architectures = torch.bfloat16, [type(model).__name__]
    setattr(config, PROVENANCE, {"target": target.hash, **(made or {})})
    config.save_pretrained(folder)
    target.model.generation_config.save_pretrained(folder)
    tensors = {name: one.to(torch.bfloat16) for name, one in model.named_parameters()}  # a tied head stands there once
    saved = model.state_dict().keys()  # buffers that are no part of it are computed
    tensors |= {name: one for name, one in model.named_buffers() if name in saved}
    save_tensors({name: one.detach().cpu().contiguous() for name, one in tensors.items()}, folder / "model.safetensors")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
