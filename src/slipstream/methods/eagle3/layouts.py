"""How the origins of EAGLE-3 heads write them: names of tensors, and what config.json says and means.

The origins share one head and differ in three things, which `Origin` holds:

| origin | first layer | sizes | numbers of layers |
|---|---|---|---|
| SafeAILab, SpecForge, AngelSlim | `midlayer.` | top level | `eagle_config`: layers whose *output* is read |
| ModelOpt (nvidia) | `layers.0.` | top level | `eagle_config`: the same |
| speculators (RedHatAI) | `layers.0.` | `transformer_layer_config` | top level: indices of `hidden_states` |

Where a file names no layers, all mean the same three (`head.default_states`). `norm_output` is another difference: for
speculators it says that the output is fed back behind the last norm; for SpecForge only that the LM head reads it
there, except in EAGLE-3.1, which `fc_norm` shows. What is not in a config is read from the tensors, which overrule it
where both speak.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from slipstream.drafting.artefact_files import CONFIG
from slipstream.errors import InputError
from slipstream.methods.eagle.checkpoint import attention_heads, rope_parameters
from slipstream.methods.eagle.head import PROJECTIONS, HeadSizes
from slipstream.methods.eagle3.head import MLP, Eagle3Sizes, default_states
from slipstream.target.target import Target

IDS = "eagle_aux_hidden_state_layer_ids"
EAGLE_CONFIG = "eagle_config"
KIND = "speculators_model_type"
FIRST = "layers.0."
"""Before the names of the first layer's tensors, as the head has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where heads come from, as far as their files differ."""

    name: str
    first_layer: str
    """Before the names of the first layer's tensors."""
    sizes_at: str | None
    """Key of config.json under which the layer's sizes stand; None: its top level."""
    ids_at: str | None
    """The same for the numbers of the layers that are read."""
    first_id: int
    """Index in `hidden_states` of the layer that is numbered 0."""


OFFICIAL = Origin(name="SafeAILab", first_layer="midlayer.", sizes_at=None, ids_at=EAGLE_CONFIG, first_id=1)
MODELOPT = Origin(name="ModelOpt", first_layer=FIRST, sizes_at=None, ids_at=EAGLE_CONFIG, first_id=1)
SPECULATORS = Origin(
    name="speculators", first_layer=FIRST, sizes_at="transformer_layer_config", ids_at=None, first_id=0
)

_REFUSED_VALUES: Mapping[str, Any] = {
    "use_aux_hidden_state": False,
    "use_input_layernorm_in_first_layer": False,
    "use_last_layernorm": False,
    "use_mtp_layernorm": True,
}
"""Of ModelOpt's `eagle_config`: variants that are not supported."""
_REFUSED_TENSORS = {
    "parallel_draft_heads.": "parallel_draft_heads, which draft several tokens at once",
    f"{FIRST}self_attn.q_a_proj": "multi-head latent attention (MLA)",
    f"{FIRST}self_attn.kv_a_proj_with_mqa": "multi-head latent attention (MLA)",
}


def find_origin(config: Mapping[str, Any], names: Iterable[str]) -> Origin:
    """The origin of a head, by its config and the names of its tensors. Raises InputError for what is no such head."""
    kind = config.get(KIND)
    if kind is not None:
        if kind != "eagle3":
            raise InputError(f"{CONFIG} names {KIND} {kind!r}; method eagle3 takes eagle3")
        return SPECULATORS
    return OFFICIAL if any(name.startswith(OFFICIAL.first_layer) for name in names) else MODELOPT


def own_names(tensors: Mapping[str, Tensor], origin: Origin) -> dict[str, Tensor]:
    """The tensors under the names that the head has for them."""
    return {re.sub(f"^{re.escape(origin.first_layer)}", FIRST, name): one for name, one in tensors.items()}


def refuse_variants(config: Mapping[str, Any], names: Iterable[str], origin: Origin) -> None:
    """Raise InputError for heads of another architecture. names: as `own_names` has them."""
    architectures = " ".join(map(str, config.get("architectures") or ()))
    if "Deepseek" in architectures:
        raise InputError(f"{architectures} is a head with multi-head latent attention (MLA), which is not supported")
    for name in names:
        found = next((what for prefix, what in _REFUSED_TENSORS.items() if name.startswith(prefix)), None)
        if found is not None:
            raise InputError(f"the head has {found}; that is not supported")
    if origin is not SPECULATORS and config.get("norm_output") is False:
        raise InputError(f"{CONFIG} has norm_output False: its LM head reads the output without a norm, not supported")
    nested = _nested(config, EAGLE_CONFIG)
    wrong = next((name for name, value in _REFUSED_VALUES.items() if nested.get(name) is value), None)
    if wrong is not None:
        raise InputError(f"{CONFIG} has {wrong} {nested[wrong]} in {EAGLE_CONFIG}; such heads are not supported")


def read_sizes(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: Origin, target: Target, draft_vocab_size: int
) -> Eagle3Sizes:
    """The sizes of a head. tensors: under its own names, those that every head has among them.

    Raises InputError, TypeError or ValueError for a config that contradicts them, and for another target's head.
    """
    shape = config if origin.sizes_at is None else _nested(config, origin.sizes_at)
    hidden_size = int(tensors["fc.weight"].shape[0])
    target_size = int(target.config.hidden_size)
    made_for = int(config.get("target_hidden_size") or _width_read(tensors, hidden_size))
    if made_for != target_size:
        raise InputError(
            f"the head reads hidden states of width {made_for}, but those of {target.name} have {target_size}; "
            "give a head that was trained for this target"
        )
    fc_norm = "fc_norm.0.weight" in tensors or config.get("fc_norm") is True
    layer = HeadSizes(
        hidden_size=hidden_size,
        embedding_size=hidden_size,
        intermediate_size=int(tensors[f"{FIRST}mlp.gate_proj.weight"].shape[0]),
        **attention_heads(shape, tensors),
        biases=frozenset(name for name, tensor in _biases().items() if tensor in tensors),
        rms_norm_eps=float(shape.get("rms_norm_eps", 1e-6)),
        hidden_act=str(shape.get("hidden_act", "silu")),
        rope=rope_parameters(shape),
    )
    embeddings = tensors.get("embed_tokens.weight")
    return Eagle3Sizes(
        layer=layer,
        target_size=target_size,
        states=_states(config, int(tensors["fc.weight"].shape[1]), target),
        draft_vocab_size=draft_vocab_size,
        num_layers=1 + max(int(name.split(".")[1]) for name in tensors if re.match(r"layers\.\d+\.", name)),
        own_lm_head="lm_head.weight" in tensors,
        own_embeddings=None if embeddings is None else int(embeddings.shape[0]),
        head_norms=f"{FIRST}self_attn.q_norm.weight" in tensors,
        norm_before_residual=config.get("norm_before_residual") is True,
        norm_before_fc="input_norm.weight" in tensors or config.get("norm_before_fc") is True,
        fc_norm=fc_norm,
        norm_feedback=config.get("norm_output") is True and (origin is SPECULATORS or fc_norm),
    )


def _nested(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under a key of config.json; an empty one where there is none."""
    found = config.get(key) or {}
    if not isinstance(found, Mapping):
        raise InputError(f"{key} in {CONFIG} is {found!r}; it must be an object")
    return found


def _width_read(tensors: Mapping[str, Tensor], hidden_size: int) -> int:
    """Width of the hidden states read, of a head that names none: its own, unless its norms show another."""
    norm = tensors.get("fc_norm.0.weight")
    return hidden_size if norm is None else int(norm.shape[0])


def _states(config: Mapping[str, Any], width: int, target: Target) -> tuple[int, ...]:
    """Indices of the hidden states that are read. width: numbers that `fc` reads of a token."""
    count, rest = divmod(width, int(target.config.hidden_size))
    if rest:
        raise InputError(
            f"fc.weight reads {width} numbers of a token, which is no multiple of the {target.config.hidden_size} of a "
            f"hidden state of {target.name}; give a head that was trained for this target"
        )
    named, nested = config.get(IDS), _nested(config, EAGLE_CONFIG).get(IDS)
    if named:
        found = tuple(SPECULATORS.first_id + int(one) for one in named)
    elif nested:
        found = tuple(OFFICIAL.first_id + int(one) for one in nested)
    elif count == 3:
        found = default_states(target.num_layers)
    else:
        raise InputError(f"fc.weight reads {count} hidden states, and {CONFIG} does not say which; add {IDS} to it")
    if len(found) != count:
        raise InputError(f"{CONFIG} names {len(found)} layers in {IDS}, but fc.weight reads {count} hidden states")
    check_states(found, target)
    return found


def check_states(states: tuple[int, ...], target: Target) -> None:
    """Raise InputError for a layer that the target has not."""
    wrong = next((one for one in states if not 0 <= one < target.num_layers), None)
    if wrong is not None:
        raise InputError(
            f"the head reads the hidden states entering layer {wrong}, but {target.name} has layers 0 to "
            f"{target.num_layers - 1}; give a head that was trained for this target"
        )


def wanted_names(sizes: Eagle3Sizes) -> set[str]:
    """Names of the tensors of a head of these sizes."""
    names = {"fc.weight", "norm.weight", f"{FIRST}hidden_norm.weight"}
    for index in range(sizes.num_layers):
        layer = f"layers.{index}."
        names |= {f"{layer}{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")}
        names |= {f"{layer}{_place(name)}.weight" for name in (*PROJECTIONS, *MLP)}
        names |= {f"{layer}{_place(name)}.bias" for name in sizes.layer.biases}
        if sizes.head_norms:
            names |= {f"{layer}self_attn.{norm}.weight" for norm in ("q_norm", "k_norm")}
    if sizes.fc_norm:
        names |= {f"fc_norm.{index}.weight" for index in range(len(sizes.states))}
    optional = {
        "input_norm.weight": sizes.norm_before_fc,
        "lm_head.weight": sizes.own_lm_head,
        "embed_tokens.weight": sizes.own_embeddings is not None,
    }
    return names | {name for name, there in optional.items() if there}


def _place(projection: str) -> str:
    return f"{'self_attn' if projection in PROJECTIONS else 'mlp'}.{projection}"


def _biases() -> dict[str, str]:
    """Projections: the names of their biases in the first layer."""
    return {name: f"{FIRST}{_place(name)}.bias" for name in (*PROJECTIONS, *MLP)}


# --- writing --------------------------------------------------------------------------------------------------------


def write_config(sizes: Eagle3Sizes, origin: Origin, target: Target) -> dict[str, Any]:
    """config.json as the codes of an origin read it: SafeAILab's or speculators'.

    Raises InputError for a head that SafeAILab's layout has no words for.
    """
    return _speculators_config(sizes, target) if origin is SPECULATORS else _official_config(sizes, target)


def has_official_words(sizes: Eagle3Sizes) -> bool:
    """Whether SafeAILab's layout can hold a head."""
    return _beyond_official(sizes) is None


def _beyond_official(sizes: Eagle3Sizes) -> str | None:
    """What of a head SafeAILab's layout has no words for; None where it has words for all."""
    variants = {
        "several layers": sizes.num_layers > 1,
        "norms of queries and keys": sizes.head_norms,
        "the norm before the residual": sizes.norm_before_residual,
        "a norm before the fusion of all hidden states": sizes.norm_before_fc,
        "only one of fc_norm and a normed feedback": sizes.norm_feedback is not sizes.fc_norm,
    }
    return next((name for name, there in variants.items() if there), None)


def _official_config(sizes: Eagle3Sizes, target: Target) -> dict[str, Any]:
    special = {name: getattr(target.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    beyond = _beyond_official(sizes)
    if beyond is not None:
        raise InputError(f"the head has {beyond}, for which the layout of SafeAILab has no words; write speculators")
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        **_layer_config(sizes, target),
        "draft_vocab_size": sizes.draft_vocab_size,
        **({} if sizes.target_size == sizes.hidden_size else {"target_hidden_size": sizes.target_size}),
        **({"fc_norm": True, "norm_output": True} if sizes.fc_norm else {}),
        EAGLE_CONFIG: {"use_aux_hidden_state": True, IDS: [one - OFFICIAL.first_id for one in sizes.states]},
        "tie_word_embeddings": False,
        **special,
    }


def _speculators_config(sizes: Eagle3Sizes, target: Target) -> dict[str, Any]:
    proposal = {"proposal_type": "greedy", "speculative_tokens": 5, "verifier_accept_k": 1, "accept_tolerance": 0.0}
    verifier = {"name_or_path": target.name, "architectures": list(target.config.architectures or ())}
    return {
        "architectures": ["Eagle3DraftModel"],
        KIND: "eagle3",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": verifier,
        },
        "transformer_layer_config": {
            "model_type": "qwen3" if sizes.head_norms else "llama",
            **_layer_config(sizes, target),
        },
        "draft_vocab_size": sizes.draft_vocab_size,
        "target_hidden_size": None if sizes.target_size == sizes.hidden_size else sizes.target_size,
        IDS: [one - SPECULATORS.first_id for one in sizes.states],
        "norm_before_residual": sizes.norm_before_residual,
        "norm_before_fc": sizes.norm_before_fc,
        "fc_norm": sizes.fc_norm,
        "norm_output": sizes.norm_feedback,
        "tie_word_embeddings": False,
    }


def _layer_config(sizes: Eagle3Sizes, target: Target) -> dict[str, Any]:
    layer = sizes.layer
    rope = dict(layer.rope)
    theta = rope.pop("rope_theta")
    return {
        "hidden_size": layer.hidden_size,
        "intermediate_size": layer.intermediate_size,
        "num_attention_heads": layer.num_heads,
        "num_key_value_heads": layer.num_kv_heads,
        "head_dim": layer.head_dim,
        "num_hidden_layers": sizes.num_layers,
        "vocab_size": target.vocab_size,
        "rms_norm_eps": layer.rms_norm_eps,
        "hidden_act": layer.hidden_act,
        "max_position_embeddings": target.context_length,
        "rope_theta": theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "attention_bias": "q_proj" in layer.biases,
        "mlp_bias": "gate_proj" in layer.biases,
    }
