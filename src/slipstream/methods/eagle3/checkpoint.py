"""Checkpoints of EAGLE-3 heads, of every origin (`layouts.py`): reading, writing, and the head's vocabulary.

The draft vocabulary is written as `d2t`, what is to be added to a draft id to get the target's, and `t2d`, whether a
token of the target is in it; draft ids are in the order of the target's. A head that learned no LM head of its own
drafts with rows of the target's: they need not be stored, and are written only for other codes.
"""

from __future__ import annotations

import json
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
    save_tensors,
    stored_dtype,
    warn_of_other_target,
)
from slipstream.drafting.own_lm_heads import lm_head_to_copy
from slipstream.errors import ArtifactError, InputError
from slipstream.methods.eagle3.head import Eagle3Head, Eagle3Sizes, check_embeddings
from slipstream.methods.eagle3.layouts import (
    FIRST,
    OFFICIAL,
    Origin,
    find_origin,
    own_names,
    read_sizes,
    refuse_variants,
    wanted_names,
    write_config,
)
from slipstream.target.target import Target

_FILES = (SAFETENSORS, SAFETENSORS_INDEX, "pytorch_model.bin")
_WHAT = "EAGLE-3 heads"
_D2T, _T2D = "d2t", "t2d"
_LM_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"
_NEEDED = (
    "fc.weight",
    *(f"{FIRST}{name}.weight" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")),
)
_IGNORED = (f"{FIRST}self_attn.rotary_emb.inv_freq", "verifier_norm.weight", "verifier_lm_head.weight")


def load_head(
    source: str | Path, target: Target, dtype: torch.dtype | None = None, *, stored: bool = False
) -> Eagle3Head:
    """The head of a folder or hub id, on the target's device and in its dtype, or another one.

    stored: in the dtype of the file. Raises ArtifactError for a checkpoint that is damaged,
    incomplete, of an unknown variant or another target's; warns with ArtifactWarning if it records another target.
    """
    folder = local_folder(source, _FILES, _WHAT)
    config = read_config(folder, _WHAT)
    tensors = read_tensors(folder, _FILES, _WHAT, source=source)
    try:
        head = _head(folder, config, tensors, target)
    except ArtifactError:
        raise
    except (InputError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder}: {error}") from error
    head.confidence = recorded_confidence(config, folder / CONFIG)
    warn_of_other_target(folder, config, target, _WHAT)
    dtype = stored_dtype(tensors) if stored else dtype
    return head.place(target.device, dtype or target.dtype).requires_grad_(False).eval()


def _head(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], target: Target) -> Eagle3Head:
    """The head with its weights, on the CPU. Raises InputError, its kind ArtifactError, TypeError, ValueError."""
    origin = find_origin(config, tensors)
    tensors = own_names(tensors, origin)
    refuse_variants(config, tensors, origin)
    missing = [name for name in _NEEDED if name not in tensors]
    if missing:
        check_names(folder, tensors, missing, tensors, _WHAT)
    flat = next((name for name in _NEEDED if tensors[name].dim() != 2), None)
    if flat is not None:
        raise InputError(f"{flat} is no matrix, but has shape {tuple(tensors[flat].shape)}")
    kept = {name: one for name, one in tensors.items() if name not in (*_IGNORED, _D2T, _T2D)}
    if _EMBEDDING in kept and _is_targets(kept[_EMBEDDING], target):
        del kept[_EMBEDDING]
    ids = _draft_ids(tensors, config, target)
    size = target.vocab_size if ids is None else len(ids)
    sizes = read_sizes(config, kept, origin, target, size)
    check_names(folder, kept, wanted_names(sizes), (), _WHAT)
    _check_vocabulary(sizes, target)
    head = Eagle3Head(sizes, ids)
    check_shapes(folder, kept, {name: parameter.shape for name, parameter in head.state_dict().items()})
    head.load_state_dict(kept)
    return head


def _is_targets(embedding: Tensor, target: Target) -> bool:
    """Whether embeddings are a copy of the target's, to rounding of the dtype; padding behind it does not matter."""
    own = target.model.get_input_embeddings().weight
    if own.device.type == "meta" or not own.is_floating_point() or embedding.shape[1:] != own.shape[1:]:
        return False
    rows = min(len(own), len(embedding))
    return torch.equal(embedding[:rows].to(own.device, own.dtype), own[:rows].detach())


def _draft_ids(tensors: Mapping[str, Tensor], config: Mapping[str, Any], target: Target) -> Tensor | None:
    """[draft vocabulary] int64, the target's ids of the tokens that are drafted, ascending; None: all.

    Raises InputError for a mapping that is missing, was never set, contradicts itself or does not fit the target.
    """
    offsets, total = tensors.get(_D2T), target.vocab_size
    if offsets is None:
        size = len(tensors[_LM_HEAD]) if _LM_HEAD in tensors else int(config.get("draft_vocab_size") or total)
        if size != total:
            raise InputError(f"the head drafts {size} tokens of the {total} of {target.name}, but has no {_D2T}")
        return None
    ids = torch.arange(len(offsets)) + offsets.to(torch.int64)
    marked = tensors.get(_T2D)
    if marked is not None and not torch.equal(marked.nonzero()[:, 0], ids):
        unset = not bool(marked.any())
        raise InputError(f"{_T2D} was never set" if unset else f"{_D2T} and {_T2D} name different tokens")
    if marked is None and len(ids) < total and not bool(offsets.any()):
        raise InputError(f"{_D2T} is zero throughout, so which tokens the head drafts was never set")
    if len(ids) == 0 or int(ids[0]) < 0 or not bool((ids.diff() > 0).all()):
        raise InputError(f"{_D2T} does not name tokens in ascending order, each once")
    if int(ids[-1]) >= total:
        raise InputError(f"{_D2T} names token {int(ids[-1])}, but {target.name} has {total} tokens")
    return None if len(ids) == total else ids


def _check_vocabulary(sizes: Eagle3Sizes, target: Target) -> None:
    """Raise InputError for a head that cannot read or name the target's tokens with what it has."""
    check_embeddings(sizes, target)
    rows = sizes.own_embeddings
    if rows is not None and rows < target.vocab_size:
        raise InputError(f"the head has embeddings of {rows} tokens, but {target.name} has {target.vocab_size}")
    if not sizes.own_lm_head and sizes.hidden_size != sizes.target_size:
        raise InputError(
            f"the head has no {_LM_HEAD}, and that of {target.name} reads {sizes.target_size} numbers, not the "
            f"{sizes.hidden_size} of the head"
        )


# --- writing --------------------------------------------------------------------------------------------------------


def save_head(
    head: Eagle3Head,
    folder: Path,
    target: Target,
    provenance: Mapping[str, Any] | None = None,
    *,
    origin: Origin = OFFICIAL,
    dtype: torch.dtype | None = None,
    whole: bool = False,
) -> None:
    """Write a head in an origin's layout. provenance: JSON values on how it was made; the target's hash is added.

    dtype: of the stored weights; None: the head's own. whole: with the rows of the target's LM head that the head
    drafts with, which other codes need. Raises InputError for a head that the layout has no words for.
    """
    config = write_config(head.sizes, origin, target)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = dtype or head.dtype
    named = {name: tensor.detach().to("cpu", dtype) for name, tensor in head.state_dict().items()}
    if whole and head.lm_head is None:
        named[_LM_HEAD] = _target_rows(head, target).to("cpu", dtype)
    tensors = {
        name.replace(FIRST, origin.first_layer, 1) if name.startswith(FIRST) else name: one
        for name, one in named.items()
    }
    save_tensors({**tensors, **_mapping(head.ids, target.vocab_size)}, folder / SAFETENSORS)
    ours = {"target": target.hash, "confidence_scale": head.confidence.to_dict(), **(provenance or {})}
    record = {**config, "torch_dtype": str(dtype).removeprefix("torch."), PROVENANCE: ours}
    (folder / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _target_rows(head: Eagle3Head, target: Target) -> Tensor:
    weight, bias = lm_head_to_copy(target)
    if bias is not None or not target.bare_head:
        raise InputError(
            f"the head drafts through the LM head of {target.name}, whose logits are more than a matrix's; other codes "
            "would read it wrongly"
        )
    return (weight if head.ids is None else weight[head.ids.to(weight.device)]).detach()


def _mapping(ids: Tensor | None, vocab_size: int) -> dict[str, Tensor]:
    """`d2t` and `t2d`; none for the whole vocabulary."""
    if ids is None:
        return {}
    ids = ids.cpu()
    marked = torch.zeros(vocab_size, dtype=torch.bool)
    marked[ids] = True
    return {_D2T: ids - torch.arange(len(ids)), _T2D: marked}
