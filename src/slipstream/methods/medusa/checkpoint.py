"""Checkpoints of Medusa heads in the layout of the official repository: `config.json` beside `medusa_lm_head.pt`.

Names, for head i and place j, as the official `nn.Sequential` gives them:

    {i}.{j}.linear.weight, .bias   [h, h], [h]: the residual block, stored at each of its places 0 .. num_layers - 1
    {i}.{num_layers}.weight        [vocab, h]: the LM head; absent in all heads where the target's serves them

Both forms are in use. Numbers of heads and layers are those of the tensors: published configs name 2 heads where there
are 5. Files saved as safetensors, and names under `medusa_head.`, are read as well; where a file, or one in pieces,
holds the target beside them, as checkpoints of Medusa-2 do, only they are. Heads saved here are official in both
forms: the official loader starts every LM head as a copy of the target's and overwrites what a file holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.drafting.artefact_files import (
    CONFIG,
    PROVENANCE,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    check_names,
    check_shapes,
    local_folder,
    read_config,
    read_tensors,
    recorded_confidence,
    warn_of_other_target,
)
from slipstream.errors import ArtifactError
from slipstream.methods.medusa.head import MedusaHeads, MedusaSizes
from slipstream.target.target import Target

PICKLE = "medusa_lm_head.pt"
_FILES = (PICKLE, "medusa_lm_head.safetensors", SAFETENSORS, SAFETENSORS_INDEX)
_WHAT = "Medusa heads"
_PREFIX = "medusa_head."
_BLOCK = re.compile(r"(\d+)\.(\d+)\.linear\.(?:weight|bias)")
_LM_HEAD = re.compile(r"(\d+)\.(\d+)\.weight")


def load_heads(source: str | Path, target: Target) -> MedusaHeads:
    """The heads of a folder or hub id, on the target's device and in its dtype.

    Raises ArtifactError for a checkpoint that is damaged, incomplete or of another size than the target; warns with
    ArtifactWarning if it records another target.
    """
    folder = local_folder(source, _FILES, _WHAT)
    config = read_config(folder, _WHAT)
    found = read_tensors(folder, _FILES, _WHAT, prefix=_PREFIX, source=source)
    tensors = {name.removeprefix(_PREFIX): value for name, value in found.items()}
    sizes = _sizes(folder, tensors, target)
    check_names(folder, tensors, names(sizes), (), _WHAT)
    check_shapes(folder, tensors, _shapes(sizes))
    _check_one_block(folder, tensors, sizes)
    heads = _heads(sizes, tensors, target)
    heads.confidence = recorded_confidence(config, folder / CONFIG)
    warn_of_other_target(folder, config, target, _WHAT)
    return heads.requires_grad_(False).eval()


def save_heads(heads: MedusaHeads, folder: Path, target: Target, provenance: Mapping[str, Any] | None = None) -> None:
    """Write heads in the official layout, in half precision where the target is.

    provenance: JSON values on how they were made; the target's hash is added.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = target.dtype if target.dtype.itemsize == 2 else torch.float32
    tensors: dict[str, Tensor] = {}
    for i in range(heads.sizes.num_heads):
        weight, bias = (part[i].detach().to("cpu", dtype, copy=True) for part in (heads.weight, heads.bias))
        for j in range(heads.sizes.num_layers):  # one block at several places, stored once
            tensors |= {f"{i}.{j}.linear.weight": weight, f"{i}.{j}.linear.bias": bias}
        if heads.lm_heads is not None:
            tensors[f"{i}.{heads.sizes.num_layers}.weight"] = heads.lm_heads[i].detach().to("cpu", dtype, copy=True)
    torch.save(tensors, folder / PICKLE)
    record = {
        "medusa_num_heads": heads.sizes.num_heads,
        "medusa_num_layers": heads.sizes.num_layers,
        "base_model_name_or_path": target.name,
        "hidden_size": heads.sizes.hidden_size,
        "vocab_size": target.vocab_size,
        PROVENANCE: {
            "target": target.hash,
            "confidence_scale": heads.confidence.to_dict(),
            **(provenance or {}),
        },
    }
    (folder / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def names(sizes: MedusaSizes) -> list[str]:
    """The names of all tensors of such heads."""
    return list(_shapes(sizes))


def _shapes(sizes: MedusaSizes) -> dict[str, torch.Size]:
    h = sizes.hidden_size
    shapes: dict[str, torch.Size] = {}
    for i in range(sizes.num_heads):
        for j in range(sizes.num_layers):
            shapes |= {f"{i}.{j}.linear.weight": torch.Size((h, h)), f"{i}.{j}.linear.bias": torch.Size((h,))}
        if sizes.vocab_size is not None:
            shapes[f"{i}.{sizes.num_layers}.weight"] = torch.Size((sizes.vocab_size, h))
    return shapes


def _sizes(folder: Path, tensors: Mapping[str, Tensor], target: Target) -> MedusaSizes:
    """Sizes that the names show; what does not fit them is found when names and shapes are checked."""
    blocks = [match for name in tensors if (match := _BLOCK.fullmatch(name))]
    lm_heads = [match for name in tensors if (match := _LM_HEAD.fullmatch(name))]
    if not blocks:
        raise ArtifactError(f"{folder} lacks 0.0.linear.weight; these {_WHAT} are not complete")
    found, hidden_size = tensors[blocks[0].string].shape[0], target.config.hidden_size
    if found != hidden_size:
        raise ArtifactError(
            f"{folder} holds heads for targets of hidden size {found}, but {target.name} has {hidden_size}; give heads "
            "that were trained for this target"
        )
    return MedusaSizes(
        num_heads=1 + max(int(match[1]) for match in (*blocks, *lm_heads)),
        num_layers=1 + max(int(match[2]) for match in blocks),
        hidden_size=hidden_size,
        vocab_size=target.vocab_size if lm_heads else None,
    )


def _check_one_block(folder: Path, tensors: Mapping[str, Tensor], sizes: MedusaSizes) -> None:
    """The places of a head must hold one block, as the official code, whatever it was meant to do, stores them."""
    for i in range(sizes.num_heads):
        for j in range(1, sizes.num_layers):
            for part in ("weight", "bias"):
                first, other = f"{i}.0.linear.{part}", f"{i}.{j}.linear.{part}"
                if not torch.equal(tensors[first], tensors[other]):
                    raise ArtifactError(
                        f"{folder}: {other} differs from {first}, but Medusa applies one block several times; these "
                        "heads are of another kind"
                    )


def _heads(sizes: MedusaSizes, tensors: Mapping[str, Tensor], target: Target) -> MedusaHeads:
    def stacked(place: str) -> Tensor:
        return torch.stack([tensors[f"{i}.{place}"] for i in range(sizes.num_heads)])

    state = {"weight": stacked("0.linear.weight"), "bias": stacked("0.linear.bias")}
    if sizes.vocab_size is not None:
        state["lm_heads"] = stacked(f"{sizes.num_layers}.weight")
    with torch.device("meta"):
        heads = MedusaHeads(sizes)
    heads.load_state_dict({name: one.to(target.device, target.dtype) for name, one in state.items()}, assign=True)
    return heads
