"""The attention and MLP sub-layers of a decoder-only model, and leaving a set of them out.

This is what Draft & Verify drafts with (arXiv 2309.08168, section 3.1), for any model whose layers add their sub-layers
to a residual stream. Sub-layers are found by structure, not by the names of a family, and a probe on the real weights
decides whether skipping them means what it should.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from slipstream.errors import LayerSkipUnsupportedError, SkipSetError
from slipstream.runtime.sublayer_costs import LayerParts
from slipstream.skipping.plan import Patch, Returned, SkipPlan, identity_like, zeros_like
from slipstream.skipping.probe import at_rest, watch
from slipstream.skipping.skip_set import SkipSet, check_depth
from slipstream.target.sharding import is_part
from slipstream.target.weights import stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the target: its modules, and what stands in for each when it is skipped."""

    index: int
    module: nn.Module
    attention: tuple[Patch, ...]
    mlp: tuple[Patch, ...]  # OPT has two: its fc1 and fc2 are modules of the layer itself
    identity: Patch | None = None  # None where the layer returns more than hidden states

    def __str__(self) -> str:
        return f"layer {self.index} ({type(self.module).__name__})"

    def skipping(self, *, attention: bool, mlp: bool) -> tuple[Patch, ...]:
        """The patches that leave out one sub-layer, both, or neither."""
        if attention and mlp and self.identity is not None:
            return (self.identity,)  # saves the norms and the additions as well
        return (self.attention if attention else ()) + (self.mlp if mlp else ())

    @property
    def parts(self) -> LayerParts:
        """What is timed of it."""
        attention, mlp = ([patch.module for patch in patches] for patches in (self.attention, self.mlp))
        return LayerParts(self.module, attention, mlp, vanishes=self.identity is not None)


class SubLayers:
    """The sub-layers of one model. Found once; holds no weights of its own and never touches the model."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self._model = model
        self.layers = tuple(layers)
        self.num_layers = len(self.layers)
        self.attention_bytes = [sum(_weight_bytes(patch.module) for patch in layer.attention) for layer in layers]
        """Bytes of weights of each layer's attention, as they are stored (quantised weights: packed)."""
        self.mlp_bytes = [sum(_weight_bytes(patch.module) for patch in layer.mlp) for layer in layers]
        """Bytes of weights of each layer's MLP, all experts of a mixture included."""

    @classmethod
    def find(cls, model: PreTrainedModel) -> SubLayers:
        """Find the sub-layers of `model` and prove on its weights that they can be skipped.

        Reads the weights about twice, for four tokens at a time. The model is left as it was.

        Raises:
            LayerSkipUnsupportedError: they cannot be found, or a layer is more than residual stream + sub-layers.
        """
        config = model.config.get_text_config(decoder=True)
        decoder = model.get_decoder()
        modules = _find_layers(decoder, config.num_hidden_layers)
        with at_rest(model):
            seen = watch(decoder, [part for module in modules for part in module.children()])
            layers = [_describe(i, module, seen) for i, module in enumerate(modules)]
            layers = _with_identity(decoder, layers)
            _check_each_kind_matters(decoder, layers)
        if getattr(config, "num_kv_shared_layers", 0):
            raise _unsupported(f"its last {config.num_kv_shared_layers} layers use the keys and values of earlier ones")
        return cls(model, layers)

    def plan(self, skip_set: SkipSet) -> SkipPlan:
        """`skip_set` checked and made ready: `plan.model` is the model without it."""
        self.check(skip_set)
        attention, mlp = frozenset(skip_set.attention), frozenset(skip_set.mlp)
        patches = [
            patch
            for layer in self.layers
            for patch in layer.skipping(attention=layer.index in attention, mlp=layer.index in mlp)
        ]
        return SkipPlan(self._model, patches)

    @property
    def parts(self) -> list[LayerParts]:
        """What is timed of every layer."""
        return [layer.parts for layer in self.layers]

    def skipped_fraction(self, skip_set: SkipSet) -> float:
        """Share of the bytes of all sub-layers that `skip_set` leaves out, 0..1."""
        self.check(skip_set)
        skipped = sum(self.attention_bytes[i] for i in skip_set.attention)
        skipped += sum(self.mlp_bytes[i] for i in skip_set.mlp)
        return skipped / (sum(self.attention_bytes) + sum(self.mlp_bytes))

    def check(self, skip_set: SkipSet) -> None:
        """Raise SkipSetError unless `skip_set` is for a target of this depth."""
        check_depth(sorted({*skip_set.attention, *skip_set.mlp}), self.num_layers)
        if skip_set.num_layers != self.num_layers:
            raise SkipSetError(
                f"the skip set is for a target of {skip_set.num_layers} layers, but this one has {self.num_layers} "
                f"(0-{self.num_layers - 1}). Search a set for this target."
            )


def _find_layers(decoder: nn.Module, num_layers: int) -> list[nn.Module]:
    """The layers of `decoder`: the list of `num_layers` modules in which each has an attention of its own."""
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
    for layers in lists:
        if all(any(map(_is_attention, layer.children())) for layer in layers):
            return list(layers)
    if not lists:
        raise _unsupported(f"{type(decoder).__name__} has no list of {num_layers} layers")
    i, layer = next((i, layer) for i, layer in enumerate(lists[0]) if not any(map(_is_attention, layer.children())))
    raise _unsupported(f"layer {i} ({type(layer).__name__}) has no attention module")


def _is_attention(module: nn.Module) -> bool:
    # The class's forward, for accelerate puts one without a signature on the instance.
    return "attention_mask" in inspect.signature(type(module).forward).parameters


def _describe(index: int, module: nn.Module, seen: Mapping[nn.Module, Returned]) -> Layer:
    """The sub-layers of one layer: what was called in it, holds a matrix, and takes an attention mask or does not."""
    parts = [part for part in module.children() if part in seen and _has_matrix(part)]
    attention = tuple(Patch(part, zeros_like(seen[part])) for part in parts if _is_attention(part))
    mlp = tuple(Patch(part, zeros_like(seen[part])) for part in parts if not _is_attention(part))
    layer = Layer(index, module, attention, mlp)
    if not attention or not mlp:
        raise _unsupported(f"{layer} calls no {'MLP' if attention else 'attention'} module")
    return layer


def _with_identity(decoder: nn.Module, layers: Sequence[Layer]) -> list[Layer]:
    """`layers` with a stand-in for each that loses both sub-layers.

    Raises:
        LayerSkipUnsupportedError: a layer does not return exactly its input when its sub-layers return zeros.
    """
    seen = _watch_patched(decoder, layers, [patch for layer in layers for patch in layer.attention + layer.mlp])
    for layer in layers:
        if seen[layer.module].change != 0:
            raise _unsupported(
                f"{layer} changes its input by {seen[layer.module].change:.2g} even if its attention and MLP return "
                "zeros, so it is no residual stream that can pass them by"
            )
    return [
        replace(layer, identity=Patch(layer.module, identity_like(seen[layer.module])))
        if seen[layer.module].only_hidden
        else layer
        for layer in layers
    ]


def _check_each_kind_matters(decoder: nn.Module, layers: Sequence[Layer]) -> None:
    """Raise LayerSkipUnsupportedError if attention without MLP, or MLP without attention, changes no layer's input."""
    without_attention = [patch for layer in layers for patch in layer.attention]
    without_mlp = [patch for layer in layers for patch in layer.mlp]
    for patches, kind in ((without_attention, "MLP"), (without_mlp, "attention")):
        if not any(returned.change for returned in _watch_patched(decoder, layers, patches).values()):
            raise _unsupported(f"no layer does anything when only its {kind} is left, so the two cannot be told apart")


def _watch_patched(decoder: nn.Module, layers: Sequence[Layer], patches: Sequence[Patch]) -> dict[nn.Module, Returned]:
    """What each layer returns while `patches` are in place."""
    try:
        seen = watch(decoder, [layer.module for layer in layers], patches)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise _unsupported(f"it fails when sub-layers return zeros ({type(error).__name__}: {reason})") from error
    for layer in layers:
        if layer.module not in seen:
            raise _unsupported(f"{layer} does not return hidden states")
    return seen


def _has_matrix(module: nn.Module) -> bool:
    """Whether `module` holds a weight matrix: norms, activations and dropout do not."""
    return any(tensor.ndim >= 2 for tensor in stored_tensors(module))


def _weight_bytes(module: nn.Module) -> int:
    return sum(map(_storage_bytes, stored_tensors(module)))


def _storage_bytes(tensor: Tensor) -> int:
    flatten = getattr(tensor, "__tensor_flatten__", None)  # a subclass for quantised data: its tensors are inside
    if flatten is None or is_part(tensor):  # of a part, the bytes of the whole
        return tensor.numel() * tensor.element_size()
    return sum(_storage_bytes(getattr(tensor, name)) for name in flatten()[0])


def _unsupported(reason: str) -> LayerSkipUnsupportedError:
    return LayerSkipUnsupportedError(f"cannot skip sub-layers of this model: {reason}. Choose another drafter.")
