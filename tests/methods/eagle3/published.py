"""Synthetic EAGLE-3 checkpoints as their origins write them, for a target of eight layers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from families import VOCAB_SIZE, build
from methods.eagle3.eagle3_reference import Reference
from slipstream.target.target import Target

T, HEADS, HEAD_DIM, MLP, LAYERS = 32, 4, 8, 48, 8
IDS = "eagle_aux_hidden_state_layer_ids"
DRAFTED = 40
"""Tokens of a draft vocabulary."""


def eagle3_target(**settings: Any) -> Target:
    """A target of eight layers, in float64."""
    return Target(build("llama", num_hidden_layers=LAYERS, **settings))


@dataclass(frozen=True)
class Published:
    """One kind of published head."""

    first: str = "midlayer."
    states: tuple[int, ...] = (2, 4, 5)
    config: dict[str, Any] = field(default_factory=dict)
    speculators: bool = False
    width: int = T
    kv_heads: int = 2
    num_layers: int = 1
    lm_head: bool = True
    mapped: bool = True
    marked: bool = True
    embeddings: bool = False
    head_norms: bool = False
    biases: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_before_residual: bool = False
    norm_feedback: bool = False
    theta: float = 10000.0
    pickled: bool = False

    def tensors(self, seed: int = 0) -> dict[str, Tensor]:
        """Random tensors under the names and with the shapes of the origin."""
        rng, h, q, kv = torch.Generator().manual_seed(seed), self.width, HEADS * HEAD_DIM, self.kv_heads * HEAD_DIM

        def rand(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng) * 0.4

        def norm(size: int) -> Tensor:
            return 1 + rand(size) * 0.5

        found = {"fc.weight": rand(h, T * len(self.states)), "norm.weight": norm(h)}
        for index in range(self.num_layers):
            p, read = (self.first, 2 * h) if index == 0 else (f"layers.{index}.", h)
            found |= {f"{p}self_attn.q_proj.weight": rand(q, read), f"{p}self_attn.o_proj.weight": rand(h, q)}
            found |= {f"{p}self_attn.{name}_proj.weight": rand(kv, read) for name in "kv"}
            found |= {f"{p}mlp.{name}_proj.weight": rand(MLP, h) for name in ("gate", "up")}
            found |= {f"{p}mlp.down_proj.weight": rand(h, MLP)}
            found |= {f"{p}{name}.weight": norm(h) for name in ("input_layernorm", "post_attention_layernorm")}
            if self.head_norms:
                found |= {f"{p}self_attn.{name}_norm.weight": norm(HEAD_DIM) for name in "qk"}
            if self.biases:
                sizes = {"q": q, "k": kv, "v": kv, "o": h}
                found |= {f"{p}self_attn.{name}_proj.bias": rand(size) for name, size in sizes.items()}
        found[f"{self.first}hidden_norm.weight"] = norm(h)
        if self.fc_norm:
            found |= {f"fc_norm.{index}.weight": norm(T) for index in range(len(self.states))}
        if self.norm_before_fc:
            found["input_norm.weight"] = norm(T * len(self.states))
        if self.mapped:
            ids = torch.randperm(VOCAB_SIZE, generator=rng)[:DRAFTED].sort().values
            found["d2t"] = ids - torch.arange(DRAFTED)
            if self.marked:
                found["t2d"] = torch.zeros(VOCAB_SIZE, dtype=torch.bool).index_fill(0, ids, True)
        if self.lm_head:
            found["lm_head.weight"] = rand(DRAFTED if self.mapped else VOCAB_SIZE, h)
        if self.embeddings:
            found["embed_tokens.weight"] = rand(VOCAB_SIZE, h) * 2
        return found

    def whole_config(self) -> dict[str, Any]:
        """config.json as the origin writes it."""
        layer = {
            "model_type": "qwen3" if self.head_norms else "llama",
            "hidden_size": self.width,
            "intermediate_size": MLP,
            "num_attention_heads": HEADS,
            "num_key_value_heads": self.kv_heads,
            "head_dim": HEAD_DIM,
            "num_hidden_layers": self.num_layers,
            "vocab_size": VOCAB_SIZE,
            "rms_norm_eps": 1e-5,
            "rope_theta": self.theta,
        }
        drafted = {"draft_vocab_size": DRAFTED if self.mapped else VOCAB_SIZE}
        if self.speculators:
            kind = {"architectures": ["Eagle3DraftModel"], "speculators_model_type": "eagle3"}
            return {**kind, "transformer_layer_config": layer, **drafted, **self.config}
        return {"architectures": ["LlamaForCausalLMEagle3"], **layer, **drafted, **self.config}

    def write(self, folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
        """A folder with the checkpoint. tensors: other ones than its own; config: what overrules its own."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = self.tensors() if tensors is None else tensors
        (folder / "config.json").write_text(json.dumps({**self.whole_config(), **config}))
        if self.pickled:
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            save_file(tensors, folder / "model.safetensors")
        return folder

    def reference(self, tensors: dict[str, Tensor] | None = None) -> Reference:
        """The slow twin in float64. tensors: other ones than its own."""
        exact = self.tensors() if tensors is None else tensors
        return Reference(
            {name: one.double() if one.is_floating_point() else one for name, one in exact.items()},
            self.first,
            self.states,
            HEAD_DIM,
            theta=self.theta,
            norm_before_residual=self.norm_before_residual,
            norm_feedback=self.norm_feedback,
        )


def nested(*ids: int, **more: Any) -> dict[str, Any]:
    """The layers whose outputs are read, where SpecForge and ModelOpt name them."""
    return {"eagle_config": {"use_aux_hidden_state": True, IDS: list(ids), **more}}


_MODELOPT = {"use_input_layernorm_in_first_layer": True, "use_last_layernorm": True, "use_mtp_layernorm": False}
_BEFORE = {"norm_before_residual": True}

PUBLISHED: dict[str, Published] = {
    "SafeAILab": Published(pickled=True, theta=500000.0),
    "SpecForge": Published(config={"eagle_config": None}, kv_heads=1),
    "SpecForge, gpt-oss": Published(states=(2, 4, 7), config=nested(1, 3, 6)),
    "EAGLE-3.1": Published(fc_norm=True, norm_feedback=True, config={"fc_norm": True, "norm_output": True}),
    "SpecForge's norm_output": Published(config={"norm_output": True}),
    "AngelSlim, with biases": Published(biases=True, config={"attention_bias": True}),
    "of another width": Published(width=16, embeddings=True, config={"target_hidden_size": T}),
    "five layers, one of them the embeddings": Published(states=(0, 2, 4, 6, 7), config=nested(-1, 1, 3, 5, 6)),
    "ModelOpt": Published(first="layers.0.", lm_head=False, mapped=False, config=nested(1, 3, 4, **_MODELOPT)),
    "ModelOpt, draft vocabulary": Published(first="layers.0.", marked=False, config=nested(1, 3, 4, **_MODELOPT)),
    "speculators": Published(
        first="layers.0.", speculators=True, embeddings=True, norm_before_residual=True,
        config={**_BEFORE, IDS: [2, 4, 5]},
    ),
    "speculators, no layers named": Published(first="layers.0.", speculators=True, config={IDS: None}),
    "speculators, Qwen3": Published(
        first="layers.0.", speculators=True, head_norms=True, num_layers=2, states=(1, 4, 7), theta=1e6,
        norm_feedback=True, config={IDS: [1, 4, 7], "norm_output": True},
    ),
    "speculators, gpt-oss": Published(
        first="layers.0.", speculators=True, norm_before_fc=True, norm_before_residual=True,
        config={**_BEFORE, "norm_before_fc": True, IDS: [2, 4, 5]},
    ),
}  # fmt: skip
"""By what they are like: one of every origin and every variant."""
