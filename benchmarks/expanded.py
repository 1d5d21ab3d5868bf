"""A small Llama made large without changing what it computes: real answers and real tau at a large model's cost.

`expand` makes a model of a larger `Shape` that computes the small one's function, `expand_head` an EAGLE head for it,
and `expand_skip_set` says which of its sub-layers the small one's skip set leaves out. How each part is placed:

- **Hidden state**: the small one's dimensions come first, the others are zero. A linear layer reads and writes its own
  numbers there: of its matrix, the columns of live inputs hold the small weights in the rows of live outputs, and zeros
  in all other rows. So a dead output is exactly zero, whatever stands in the columns of dead inputs: these are random,
  nearly nine tenths of all weights, so that what is read from memory is no field of zeros.
- **RMSNorm** divides by sqrt(sum / H + eps). With H' dimensions of the same sum and eps' = eps H / H' it divides by
  sqrt(H / H') times as much, which the norm's weight takes back.
- **Attention**: query head r of key head k stays query head r of key head k; what further queries of that key head see
  meets zeros in the output's matrix. A head is D' = m D wide: pair i, of the
  rotary angle theta^(-2i/D), becomes pair m i, of the angle theta^(-2mi/D'), the same number. Scores are divided by
  sqrt(D') instead of sqrt(D), so queries are multiplied by sqrt(m).
- **Layers** beyond the small one's see no live input, and add zero.
- **LM head**: the small one's, a matrix of its own also where the small one shares the embeddings'.

In float64 and float32 the two agree but for rounding. In bfloat16 they agree less, since the factors of norms and
queries round the weights. All zeros are exact in any of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from slipstream.errors import InputError
from slipstream.methods.eagle.head import EagleHead, HeadSizes
from slipstream.skipping.skip_set import SkipSet

STD = 0.02
"""Of the random weights that no answer depends on."""
ROPE_TYPES = ("default", "linear", "llama3")
"""RoPEs whose angle hangs on nothing but the frequency that is given; yarn's ramp counts pairs."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Of a model, by its config."""
        return cls(
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            mlp=config.intermediate_size,
        )

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.heads // self.kv_heads


LLAMA_8B = Shape(hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp=14336)


@dataclass(frozen=True)
class Places:
    """Where the parts of a small layer lie in a large one."""

    small: Shape
    large: Shape

    def __post_init__(self) -> None:
        """Raises InputError where the small one does not fit."""
        for name in ("hidden", "layers", "kv_heads", "group", "mlp"):
            if getattr(self.small, name) > getattr(self.large, name):
                raise InputError(
                    f"{name} is {getattr(self.small, name)} in the small model and {getattr(self.large, name)} in the "
                    "large one; it must not be smaller there"
                )
        if self.large.head_dim % self.small.head_dim:
            raise InputError(
                f"heads of width {self.large.head_dim} cannot turn as those of width {self.small.head_dim} do; "
                "the larger must be a multiple"
            )

    @property
    def hidden(self) -> Tensor:
        """[H]"""
        return torch.arange(self.small.hidden)

    @property
    def mlp(self) -> Tensor:
        """[M]"""
        return torch.arange(self.small.mlp)

    @property
    def queries(self) -> Tensor:
        """[query heads * head_dim]"""
        heads = torch.arange(self.small.heads)
        return self._of_heads(heads // self.small.group * self.large.group + heads % self.small.group)

    @property
    def keys(self) -> Tensor:
        """[key heads * head_dim], of keys and of values"""
        return self._of_heads(torch.arange(self.small.kv_heads))

    @property
    def attended(self) -> Tensor:
        """[query heads of its key heads * head_dim]: where attention's output is not zero."""
        return self._of_heads(torch.arange(self.small.kv_heads * self.large.group))

    def _of_heads(self, heads: Tensor) -> Tensor:
        """Rows of these heads of the large layer, each with the dimensions that turn alike."""
        half = torch.arange(self.small.head_dim // 2) * (self.large.head_dim // self.small.head_dim)
        dims = torch.cat((half, half + self.large.head_dim // 2))  # [head_dim]
        return (heads[:, None] * self.large.head_dim + dims).flatten()

    @property
    def query_factor(self) -> float:
        """What queries are multiplied by."""
        return math.sqrt(self.large.head_dim / self.small.head_dim)

    @property
    def norm_factor(self) -> float:
        """What weights of norms are multiplied by."""
        return math.sqrt(self.small.hidden / self.large.hidden)

    def eps(self, eps: float) -> float:
        """The large one's epsilon of norms."""
        return eps * self.small.hidden / self.large.hidden


def expand(small: PreTrainedModel, shape: Shape, dtype: torch.dtype, *, seed: int = 0) -> PreTrainedModel:
    """A Llama of this shape on the device of a small one, which computes the same logits.

    seed: of the weights that do not matter. Raises InputError for a model that is no Llama or does not fit.
    """
    places = Places(Shape.of(small.config), shape)
    config = _config(small.config, places)
    with torch.device(small.device):
        large: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator(small.device).manual_seed(seed)
    own: Any = small
    _put_rows(large.model.embed_tokens.weight, own.model.embed_tokens.weight)
    layers: Sequence[nn.Module | None] = [*own.model.layers, *[None] * (shape.layers - len(own.model.layers))]
    for one, other in zip(large.model.layers, layers, strict=True):
        _expand_layer(one, other, places, generator)
    _put_norm(large.model.norm, own.model.norm, places)
    every = torch.arange(config.vocab_size)
    _put(large.lm_head, own.lm_head, every, places.hidden, generator)
    large.generation_config = copy.deepcopy(small.generation_config)
    return large.requires_grad_(False).eval()


def expand_head(head: EagleHead, shape: Shape, dtype: torch.dtype, *, seed: int = 0) -> EagleHead:
    """An EAGLE head for the expanded model, of the sizes of one of its layers, that drafts what the head drafts.

    Raises as `expand` does, and for embeddings that are not as wide as features.
    """
    sizes, device = head.sizes, head.fc.weight.device
    if sizes.embedding_size != sizes.hidden_size:
        raise InputError(
            f"the head reads embeddings of width {sizes.embedding_size} and features of width {sizes.hidden_size}; "
            "only one that reads the same width of both can be expanded"
        )
    places = Places(_shape_of_head(sizes), shape)
    with torch.device(device):
        large = EagleHead(_sizes_of_head(sizes, places)).place(device, dtype)
    large.confidence, large.vocabulary = head.confidence, head.vocabulary
    generator = torch.Generator(device).manual_seed(seed)
    _put(large.fc, head.fc, places.hidden, torch.cat((places.hidden, places.hidden + shape.hidden)), generator)
    _expand_layer(large.layers[0], head.layers[0], places, generator)
    return large.requires_grad_(False).eval()


def expand_skip_set(skip_set: SkipSet, shape: Shape) -> dict[str, list[int]]:
    """The same sub-layers of the expanded model. Drafts run its further layers, as those of a real one would."""
    if skip_set.num_layers > shape.layers:
        raise InputError(f"a skip set for {skip_set.num_layers} layers does not fit {shape.layers}")
    return {"attention": list(skip_set.attention), "mlp": list(skip_set.mlp)}


def zero_share(module: nn.Module) -> float:
    """Which part of a module's weights is zero."""
    nonzero = sum(int(one.count_nonzero()) for one in module.parameters())
    return 1 - nonzero / sum(one.numel() for one in module.parameters())


def _shape_of_head(sizes: HeadSizes) -> Shape:
    return Shape(
        hidden=sizes.hidden_size,
        layers=1,
        heads=sizes.num_heads,
        kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        mlp=sizes.intermediate_size,
    )


def _sizes_of_head(small: HeadSizes, places: Places) -> HeadSizes:
    _check_rope(small.rope)
    shape = places.large
    return replace(
        small,
        hidden_size=shape.hidden,
        embedding_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=places.eps(small.rms_norm_eps),
    )


def _config(small: Any, places: Places) -> Any:
    if small.model_type != "llama":
        raise InputError(f"only a Llama can be expanded, and this is {small.model_type!r}")
    _check_rope(small.rope_parameters)
    config, shape = copy.deepcopy(small), places.large
    config.hidden_size, config.num_hidden_layers, config.intermediate_size = shape.hidden, shape.layers, shape.mlp
    config.num_attention_heads, config.num_key_value_heads = shape.heads, shape.kv_heads
    config.head_dim, config.rms_norm_eps = shape.head_dim, places.eps(small.rms_norm_eps)
    config.tie_word_embeddings = False
    return config


def _check_rope(parameters: Mapping[str, Any]) -> None:
    kind = parameters.get("rope_type")
    if kind not in ROPE_TYPES:
        raise InputError(f"a model with rope_type {kind!r} cannot be expanded; choose from {', '.join(ROPE_TYPES)}")


def _expand_layer(large: Any, small: Any, places: Places, generator: torch.Generator) -> None:
    """small: None for a layer that adds nothing."""
    hidden, mlp, queries, keys = places.hidden, places.mlp, places.queries, places.keys
    parts = {
        "self_attn.q_proj": (queries, hidden, places.query_factor),
        "self_attn.k_proj": (keys, hidden, 1.0),
        "self_attn.v_proj": (keys, hidden, 1.0),
        "self_attn.o_proj": (hidden, queries, 1.0),
        "mlp.gate_proj": (mlp, hidden, 1.0),
        "mlp.up_proj": (mlp, hidden, 1.0),
        "mlp.down_proj": (hidden, mlp, 1.0),
    }
    for name, (rows, columns, factor) in parts.items():
        one = None if small is None else small.get_submodule(name)
        live = places.attended if name == "self_attn.o_proj" else columns
        _put(large.get_submodule(name), one, rows, columns, generator, factor=factor, live=live)
    for name in ("input_layernorm", "post_attention_layernorm"):
        if small is not None and hasattr(getattr(small, name), "weight"):  # an EAGLE head has one of them
            _put_norm(getattr(large, name), getattr(small, name), places)


@torch.no_grad()
def _put(
    large: Any,
    small: Any,
    rows: Tensor,
    columns: Tensor,
    generator: torch.Generator,
    *,
    factor: float = 1.0,
    live: Tensor | None = None,
) -> None:
    """Let a linear layer compute `factor` times what the small one does, in `rows`, of its inputs at `columns`.

    Its other outputs are zero. small: None: all are. live: inputs that are not zero; None: `columns`.
    """
    device = large.weight.device
    rows, columns = rows.to(device), columns.to(device)
    large.weight.normal_(std=STD, generator=generator)
    large.weight[:, columns if live is None else live.to(device)] = 0
    if large.bias is not None:
        large.bias.zero_()
    if small is None:
        return
    large.weight[rows[:, None], columns] = (small.weight.double() * factor).to(large.weight.dtype)
    if large.bias is not None:
        large.bias[rows] = (small.bias.double() * factor).to(large.bias.dtype)


@torch.no_grad()
def _put_norm(large: Any, small: Any, places: Places) -> None:
    """What norms of dead dimensions weigh is 1."""
    large.weight[: places.small.hidden] = (small.weight.double() * places.norm_factor).to(large.weight.dtype)


@torch.no_grad()
def _put_rows(large: Tensor, small: Tensor) -> None:
    """Embeddings: the hidden state's other dimensions are zero."""
    large.zero_()
    large[:, : small.shape[1]] = small.to(large.dtype)
