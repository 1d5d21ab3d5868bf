"""Checkpoints of Hydra heads in the layout of the official repository: `config.json` beside `hydra_lm_head.pt`.

Names, for head i and block j, as the official modules give them:

    hydra_mlp.{i}.{place}.linear.{weight,bias}           first block: [h, h + (i + 1) e]; further blocks: [h, h]
    hydra_mlp.{i}.{place}.res_connection.{weight,bias}   first block only
    hydra_lm_head.{i}.1.{weight,bias}                    [vocab, h]
    prefix_embeding_layer.layers.0.*, .norm.weight       Hydra++ (`prefix-mlp`) only; the spelling is theirs

The place of block j is 2 j + 1 behind a dropout layer (`prefix-mlp`), or j where there is none (`mlp`), and likewise
the LM head is `hydra_lm_head.{i}` without one; both are read for either architecture. All blocks from the second on are
one block, stored at every place. Copies of the target's embedding (`input_embed_fn`, `prefix_embeding_layer.
embed_tokens`) are ignored: the target's own is used. The prefix layer's heads, RoPE and epsilon are those of the target
for which the heads were trained, as the official loader has it; heads saved here record them as well.

Ours: `slipstream.shared_lm_head` in config.json says that the target's LM head serves all heads, so `hydra_lm_head.*`
is absent. The official loader would leave its LM heads at random without a word, so such heads are saved as
`model.safetensors`, which it does not look for; heads with LM heads of their own as `hydra_lm_head.pt`, which it reads.
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
    check_names,
    check_shapes,
    local_folder,
    read_config,
    read_tensors,
    recorded_confidence,
    save_tensors,
    warn_of_other_target,
)
from slipstream.errors import ArtifactError, InputError
from slipstream.methods.hydra.head import HydraHeads, HydraSizes, PrefixSizes, rope_like
from slipstream.target.target import Target

PICKLE = "hydra_lm_head.pt"
_FILES = (SAFETENSORS, PICKLE)
_WHAT = "Hydra heads"
_PREFIX = "prefix_embeding_layer."
_EMBEDDINGS = ("input_embed_fn.weight", f"{_PREFIX}embed_tokens.weight")
_IGNORED = (*_EMBEDDINGS, f"{_PREFIX}layers.0.self_attn.rotary_emb.inv_freq")
_ARCHITECTURES = ("mlp", "prefix-mlp")


def load_heads(source: str | Path, target: Target) -> HydraHeads:
    """The heads of a folder or hub id, on the target's device and in its dtype.

    Raises ArtifactError for a checkpoint that is damaged, incomplete or of another size than the target; warns with
    ArtifactWarning if it records another target.
    """
    folder = local_folder(source, _FILES, _WHAT)
    config = read_config(folder, _WHAT)
    tensors = read_tensors(folder, _FILES, _WHAT)
    _check_widths(folder, tensors, target)
    try:
        sizes = _sizes(config, tensors, target)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{folder}: {error}") from error
    names = published_names(sizes, _has_dropout(tensors))
    check_names(folder, tensors, names, _IGNORED, _WHAT)
    with torch.device("meta"):  # heads of a large target are gigabytes: no memory for weights that are replaced
        heads = HydraHeads(sizes)
    own = heads.state_dict()
    check_shapes(folder, tensors, {name: own[mine].shape for name, mine in names.items()})
    _check_shared(folder, tensors, names)
    warn_of_other_target(folder, config, target, _WHAT)
    state = {mine: tensors[name].to(target.device, target.dtype) for name, mine in names.items()}
    heads.load_state_dict(state, assign=True)
    if heads.prefix is not None:
        heads.prefix.renew_rotary()
    heads.confidence = recorded_confidence(config, folder / CONFIG)
    return heads.place(target.device, target.dtype).requires_grad_(False).eval()


def save_heads(
    heads: HydraHeads,
    folder: Path,
    target: Target,
    provenance: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write heads in the official layout. provenance: JSON values on how they were made; the target's hash is added.

    dtype: of the stored tensors, None: as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in heads.state_dict().items()}
    tensors = {name: own[mine] for name, mine in published_names(heads.sizes, heads.sizes.prefix is not None).items()}
    if heads.sizes.vocab_size is None:
        save_tensors({name: tensor.clone() for name, tensor in tensors.items()}, folder / SAFETENSORS)
    else:
        torch.save(tensors, folder / PICKLE)  # the one block at several places is stored once
    (folder / (PICKLE if heads.sizes.vocab_size is None else SAFETENSORS)).unlink(missing_ok=True)
    ours = {"target": target.hash, "confidence_scale": heads.confidence.to_dict(), **(provenance or {})}
    record = _config(heads.sizes, target, ours)
    (folder / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def published_names(sizes: HydraSizes, dropout: bool) -> dict[str, str]:
    """The published name of every tensor -> its name in `HydraHeads`. dropout: whether layers of it count as places."""
    names: dict[str, str] = {}
    for i in range(sizes.num_heads):
        for j in range(sizes.num_layers):
            place, block = 2 * j + 1 if dropout else j, "further" if j else "first"
            for linear in ("linear",) if j else ("linear", "res_connection"):
                names |= _linear(f"hydra_mlp.{i}.{place}.{linear}", f"mlps.{i}.{block}.{linear}")
        if sizes.vocab_size is not None:
            names |= _linear(f"hydra_lm_head.{i}.1" if dropout else f"hydra_lm_head.{i}", f"lm_heads.{i}")
    if sizes.prefix is not None:
        projections = [f"self_attn.{one}_proj" for one in "qkvo"] + [
            f"mlp.{one}_proj" for one in ("gate", "up", "down")
        ]
        weights = [f"layers.0.{one}.weight" for one in (*projections, "input_layernorm", "post_attention_layernorm")]
        names |= {f"{_PREFIX}{name}": f"prefix.{name}" for name in (*weights, "norm.weight")}
    return names


def _linear(published: str, mine: str) -> dict[str, str]:
    return {f"{published}.{kind}": f"{mine}.{kind}" for kind in ("weight", "bias")}


def _has_dropout(tensors: Mapping[str, Tensor]) -> bool:
    return "hydra_mlp.0.0.linear.weight" not in tensors


def _check_widths(folder: Path, tensors: Mapping[str, Tensor], target: Target) -> None:
    """The commonest mistake, heads of another target, said plainly."""
    first = next(
        (tensors[name] for name in ("hydra_mlp.0.1.linear.weight", "hydra_mlp.0.0.linear.weight") if name in tensors),
        None,
    )
    found = None if first is None else first.shape[0]
    if found not in (None, target.config.hidden_size):
        raise ArtifactError(
            f"{folder} holds heads for targets of hidden size {found}, but {target.name} has "
            f"{target.config.hidden_size}; give heads that were trained for this target"
        )
    width = target.model.get_input_embeddings().weight.shape[1]
    for name in _EMBEDDINGS:
        if name in tensors and tensors[name].shape[-1] != width:
            raise ArtifactError(
                f"{folder}: {name} has width {tensors[name].shape[-1]}, but the embeddings of {target.name} have "
                f"{width}; give heads that were trained for this target"
            )


def _sizes(config: Mapping[str, Any], tensors: Mapping[str, Tensor], target: Target) -> HydraSizes:
    architecture = config.get("hydra_head_arch", "mlp")
    if architecture not in _ARCHITECTURES:
        raise InputError(f"hydra_head_arch {architecture!r} is not supported; choose from {', '.join(_ARCHITECTURES)}")
    if not config.get("grounded_heads", False):
        raise InputError(
            "grounded_heads is not true in config.json: such heads do not see the drafted tokens and are Medusa's; "
            "method medusa drafts with heads of that kind"
        )
    return HydraSizes(
        hidden_size=target.config.hidden_size,
        embedding_size=target.model.get_input_embeddings().weight.shape[1],
        num_heads=_count(config, "hydra_num_heads"),
        num_layers=_count(config, "hydra_num_layers"),
        prefix=_prefix_sizes(config, tensors, target) if architecture == "prefix-mlp" else None,
        vocab_size=None if _record(config).get("shared_lm_head") else target.vocab_size,
        feature_offset=_offset(config, target),
    )


def _count(config: Mapping[str, Any], name: str) -> int:
    if name not in config:
        raise InputError(f"{CONFIG} names no {name}; add it")
    if not isinstance(config[name], int):
        raise InputError(f"{name} is {config[name]!r} in {CONFIG}; it must be a whole number")
    return int(config[name])


def _offset(config: Mapping[str, Any], target: Target) -> int:
    offset = _count({"hidden_state_offset": 0, **config}, "hidden_state_offset")
    if not 0 <= offset <= target.num_layers:
        raise InputError(f"hidden_state_offset is {offset}; a target of {target.num_layers} layers has 0 to that many")
    return offset


def _prefix_sizes(config: Mapping[str, Any], tensors: Mapping[str, Tensor], target: Target) -> PrefixSizes:
    """Sizes of the prefix layer by its tensors; what they cannot show is as recorded, or as the target has it."""
    shapes = {one: _rows(tensors, one) for one in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")}
    recorded = {
        "num_heads": target.config.num_attention_heads,
        "rms_norm_eps": getattr(target.config, "rms_norm_eps", 1e-6),
        "hidden_act": getattr(target.config, "hidden_act", "silu"),
        "rope": rope_like(target),
        **(_record(config).get("prefix") or {}),
    }
    num_heads = int(recorded["num_heads"])
    q_rows, k_rows = shapes["self_attn.q_proj"], shapes["self_attn.k_proj"]
    head_dim = q_rows // max(1, num_heads)
    if num_heads < 1 or q_rows % num_heads or head_dim == 0 or k_rows % head_dim:
        raise InputError(
            f"the prefix layer's q_proj and k_proj have {q_rows} and {k_rows} rows, which does not agree with the "
            f"{num_heads} attention heads of the target; give heads that were trained for this target"
        )
    return PrefixSizes(
        intermediate_size=shapes["mlp.gate_proj"],
        num_heads=num_heads,
        num_kv_heads=k_rows // head_dim,
        head_dim=head_dim,
        rms_norm_eps=float(recorded["rms_norm_eps"]),
        hidden_act=str(recorded["hidden_act"]),
        rope=dict(recorded["rope"]),
    )


def _rows(tensors: Mapping[str, Tensor], name: str) -> int:
    published = f"{_PREFIX}layers.0.{name}.weight"
    if published not in tensors:
        raise InputError(f"{published} is missing, which heads with hydra_head_arch 'prefix-mlp' have")
    return tensors[published].shape[0]


def _check_shared(folder: Path, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """The places of one block must hold the same tensors."""
    seen: dict[str, str] = {}
    for name, mine in names.items():
        first = seen.setdefault(mine, name)
        if not torch.equal(tensors[first], tensors[name]):
            raise ArtifactError(f"{folder}: {first} and {name} differ, but they are one block of the head")


def _record(config: Mapping[str, Any]) -> Mapping[str, Any]:
    record: Mapping[str, Any] = config.get(PROVENANCE) or {}
    return record


def _config(sizes: HydraSizes, target: Target, ours: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as the official code reads it, and our record."""
    record: dict[str, Any] = {**ours, "shared_lm_head": sizes.vocab_size is None}
    if sizes.prefix is not None:
        prefix = sizes.prefix
        record["prefix"] = {
            "num_heads": prefix.num_heads,
            "rms_norm_eps": prefix.rms_norm_eps,
            "hidden_act": prefix.hidden_act,
            "rope": dict(prefix.rope),
        }
    return {
        "hydra_num_heads": sizes.num_heads,
        "hydra_num_layers": sizes.num_layers,
        "hydra_head_arch": "mlp" if sizes.prefix is None else "prefix-mlp",
        "grounded_heads": True,
        "hidden_state_offset": sizes.feature_offset,
        "base_model_name_or_path": target.name,
        PROVENANCE: record,
    }
