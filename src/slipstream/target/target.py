"""The target: a loaded `transformers` causal language model, wrapped, never forked.

One method runs it: `Target.forward` over any rows (a prefill chunk, a root with its draft tree, a drafting level), with
explicit positions and an explicit mask, into explicit cache slots. It describes the pass, an executor (`passes.py`)
runs it. Whether a model computes a tree correctly is not taken on trust: `probe.py` compares a small tree with per-path
decoding on the real weights.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slipstream.errors import UnsupportedTargetError, first_line
from slipstream.target.arguments import cache_argument
from slipstream.target.cache import KVCache
from slipstream.target.families import RUNNING_ERRORS, Family, cannot_run, refuse_unsupported
from slipstream.target.features import Features, WatchedModel
from slipstream.target.masks import MaskPlan
from slipstream.target.passes import Executor, PassFunction, PassInputs, PassKey, TargetOutput
from slipstream.target.shadow import Change, Forward, shadow
from slipstream.target.weights import weights_hash
from slipstream.target.windows import with_short_windows

__all__ = ["Target", "TargetOutput"]

_NOTHING = Features()
_TURNS: WeakKeyDictionary[nn.Module, AbstractContextManager[object]] = WeakKeyDictionary()
"""Of offloaded models, which targets may share: accelerate puts weights into the modules for as long as they run."""


class _HiddenOnly:
    """Stands in for a pass of the base model: what only a full pass has (router logits and the like) is None."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class Target:
    """A causal language model behind the few operations that speculative decoding needs."""

    def __init__(self, model: PreTrainedModel, executor: Executor | None = None) -> None:
        """Wrap a loaded model (evaluation mode is switched on). Raises UnsupportedTargetError for what cannot work.

        executor: runs the passes; by default eagerly, in exact sizes.
        """
        model.eval()
        self.executor = Executor() if executor is None else executor
        self.model = model
        self.config = model.config.get_text_config()
        refuse_unsupported(model)
        self.vocab_size: int = _rows_out(model.get_output_embeddings())
        self.num_layers: int = self.config.num_hidden_layers
        place: torch.device = model.get_input_embeddings().weight.device
        self.device = torch.device("cpu") if place.type == "meta" else place  # offloaded: accelerate moves inputs
        self.dtype: torch.dtype = model.dtype
        self.family = Family.find(self.config)
        self.context_length = self.family.context_length
        self._cache_argument = cache_argument(type(model).forward)
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._passes = threading.local()  # the hidden states that a pass of the head alone is made for
        self._quiet: nn.Module = shadow(model, {})
        """What runs where nothing is watched or left out: the model itself, unless it remembers passes."""
        self._watched: dict[Features, WatchedModel] = {}
        self._watched_base: dict[Features, WatchedModel] = {}
        self._by_model: WeakKeyDictionary[nn.Module, nn.Module | None] = WeakKeyDictionary()
        self._turn = _turn(model)
        self._masks = MaskPlan.find(self.config, self.dtype, self._takes_mask_dict)

    # -- running -------------------------------------------------------------------------------------------------

    def new_cache(self, extra_slots: int, batch: int = 1) -> KVCache:
        """An empty cache that may grow to the context plus `extra_slots` for drafts.

        batch: sequences that share passes, which not every family allows (`Family.may_pack_texts`).
        """
        assert batch == 1 or self.family.may_pack_texts
        limit = None if self.context_length is None else self.context_length + extra_slots
        return self.executor.take_in(KVCache(self._num_cache_layers, self.device, limit, batch), self.model)

    @property
    def may_replay(self) -> bool:
        """Whether passes hang on the numbers in their tensors alone: some families look at the cache's length."""
        return self.family.rolling_rope is None and self.family.query_step is None

    @torch.inference_mode()
    def forward(
        self,
        tokens: Tensor,  # [b, n] int64, or [n] where the cache holds one sequence; so for all three
        positions: Tensor,  # [b, n] int64, absolute
        visible: Tensor,  # [b, n, start - length + n] bool: which slots from its length on each row may attend to
        cache: KVCache,
        *,
        start: int | None = None,
        features: Features = _NOTHING,
        last_logits_only: bool = False,
        instead: nn.Module | None = None,
        on_built: Callable[[], None] = lambda: None,
    ) -> TargetOutput:
        """Run rows that all see the committed prefix, and of the later slots what `visible` says.

        Row i is written to slot start + i (default: from cache.length on). Nothing is committed. Positions past the
        context are clipped: such rows can never be emitted, but tables of learned positions end there.
        instead: a shadow of the model to run in its stead; it has no features.
        on_built: called when the masks are there and the model is about to run.
        """
        first = cache.length if start is None else start
        inputs = self._describe(tokens, positions, visible, cache, first, last_logits_only)
        on_built()
        model, function = self._function(features, instead)
        if self.executor.replays and not self.may_replay:
            output = function(inputs, cache)
        else:
            output = self.executor.run(PassKey.of(model, features, inputs, cache), function, inputs, cache)
        return output.first(tokens.shape[-1])

    def _describe(
        self, tokens: Tensor, positions: Tensor, visible: Tensor, cache: KVCache, start: int, last_logits_only: bool
    ) -> PassInputs:
        """The pass in the executor's sizes, announced to the cache. Rows that fill it up are copies of the last one."""
        tokens, positions = (one.reshape(cache.batch, -1) for one in (tokens, positions))
        count = tokens.shape[1]
        visible = visible.reshape(cache.batch, count, -1)
        if self.context_length is not None:
            positions = positions.clamp(max=self.context_length - 1)
        rows = self.executor.rows(count)
        if rows > count:
            filled = torch.arange(rows, device=tokens.device).clamp(max=count - 1)  # [rows]
            tokens, positions, visible = (one.index_select(1, filled) for one in (tokens, positions, visible))
        cache.begin(start, positions, self.executor.context(start + rows))
        mask = self._masks.build(visible, positions, cache)
        last = torch.tensor([count - 1], device=tokens.device) if last_logits_only else None
        return PassInputs(tokens, positions, cache.slots, mask, last)

    def _function(
        self, features: Features, instead: nn.Module | None
    ) -> tuple[nn.Module, PassFunction[PassInputs, TargetOutput]]:
        """What a pass runs: a module, and how it is called."""
        if features:
            assert instead is None
            watched = self._watch(features)
            return watched.model, partial(self._run_watched, watched)
        model = self.prepared(self._quiet if instead is None else instead)
        return model, lambda inputs, cache: TargetOutput(self._run(model, inputs, cache), None)

    def forget(self) -> None:
        """Make anew what is run: weights or modules were replaced in a way that torch does not count."""
        self.executor.forget()
        self._by_model.clear()
        self._watched.clear()

    def causal(self, n: int) -> Tensor:
        """[n, n] bool: `visible` for n rows that follow each other."""
        return torch.ones(n, n, dtype=torch.bool, device=self.device).tril()

    def head(self, hidden: Tensor) -> Tensor:
        """The target's logits for last hidden states, through its own LM head, scaling and soft-capping.

        hidden: [batch, n, hidden]. Returns [batch, n, vocab], differentiable in `hidden`.
        """
        return self._lm_head(hidden) if self.bare_head else self._whole_head(hidden)

    def head_with(self, lm_head: nn.Module) -> Callable[[Tensor], Tensor]:
        """`head` with another module in place of the LM head, for instance one of fewer tokens.

        lm_head: hidden states [batch, n, hidden] to [batch, n, columns], on the device where the model begins.
        """
        if self.bare_head:
            return lambda hidden: self.upcast(self.prepared(lm_head)(hidden))
        change: Change = lambda own: lm_head.forward  # noqa: E731 (a type that a def cannot carry)
        whole = shadow(self._without_base, {self.model.get_output_embeddings(): change})
        return lambda hidden: self._whole_head(hidden, whole)

    @cached_property
    def bare_head(self) -> bool:
        """Whether nothing comes after the LM head: its output is the logits."""
        return self._nothing_after_head(int(self.config.hidden_size))

    def _nothing_after_head(self, width: int) -> bool:
        """Whether the LM head's output is the logits to the last bit: then a level of a draft can call it alone.

        Tried on small and on very large hidden states: a soft-capping shows at the large ones.
        """
        some = torch.linspace(-1, 1, 2 * width, device=self.device).reshape(1, 2, width)
        hidden = torch.cat((some, 1e4 * some), dim=1).to(self.dtype)
        with torch.inference_mode():
            try:
                alone = self._lm_head(hidden)
            except RuntimeError:  # it takes another width: something lies before it
                return False
            return torch.equal(alone, self._whole_head(hidden))

    def _lm_head(self, hidden: Tensor) -> Tensor:
        with self._turn:
            output: Tensor = self.prepared(self.model.get_output_embeddings())(hidden)
        return self.upcast(output).to(hidden.device)  # where the model is sharded, the LM head may be elsewhere

    def _whole_head(self, hidden: Tensor, without_base: nn.Module | None = None) -> Tensor:
        placeholder = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=self.device)
        self._passes.hidden = _HiddenOnly(hidden)
        try:
            model = self.prepared(self._without_base if without_base is None else without_base)
            return self.upcast(model(input_ids=placeholder, use_cache=False).logits)
        finally:
            del self._passes.hidden

    @cached_property
    def _without_base(self) -> nn.Module:
        """The model with the hidden states at hand in place of what its base returns."""
        model: nn.Module = self.model
        return shadow(model, {self.base: lambda own: lambda *args, **kwargs: self._passes.hidden})

    def prepared(self, model: nn.Module) -> nn.Module:
        """What the executor runs for the model, a shadow of it, its LM head or a draft head."""
        if model not in self._by_model:
            prepared = self.executor.prepare(model)
            self._by_model[model] = None if prepared is model else prepared  # a value must not hold its weak key
        return self._by_model[model] or model

    def _run_watched(self, watched: WatchedModel, inputs: PassInputs, cache: KVCache) -> TargetOutput:
        with watched.watching() as seen:
            logits = self._run(watched.model, inputs, cache)
        return TargetOutput(logits, watched.gathered(seen, self.device))

    def hidden_pass(self, features: Features) -> Callable[..., Tensor]:
        """What runs a pass without LM head, cache or masks of ours, and returns its features [b, n, width].

        It takes what the model before its LM head (`base`) takes, but for `use_cache`.
        """
        base = self.base
        if not features.layers:
            return lambda **inputs: base(**inputs, use_cache=False)[0].to(self.device)
        if features not in self._watched_base:
            layers = {index: self.layers[index] for index in features.layers}
            self._watched_base[features] = WatchedModel(base, base, layers, features)
        return partial(self._run_watched_base, self._watched_base[features])

    def _run_watched_base(self, watched: WatchedModel, **inputs: Any) -> Tensor:
        with watched.watching() as seen:
            watched.model(**inputs, use_cache=False)
        return watched.gathered(seen, self.device)

    def _run(self, model: nn.Module, inputs: PassInputs, cache: KVCache) -> Tensor:
        """The logits of a pass, [b, n or 1, vocab]."""
        row, keeps = inputs.logits_row, self._takes_logits_to_keep
        extra = {"logits_to_keep": row} if row is not None and keeps else {}
        with self._turn:
            output = model(
                input_ids=inputs.tokens,
                position_ids=inputs.positions,
                attention_mask=inputs.mask,
                use_cache=True,
                **{self._cache_argument: cache},
                **extra,
            )
        logits: Tensor = output.logits if row is None or keeps else output.logits[:, row]
        return self.upcast(logits)

    def upcast(self, logits: Tensor) -> Tensor:
        """As `transformers` does before it processes logits; a float64 model keeps its precision."""
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _watch(self, features: Features) -> WatchedModel:
        if features not in self._watched:
            model = self.prepared(self._quiet)
            layers = {index: self._within(model, self.layers[index]) for index in features.layers}
            self._watched[features] = WatchedModel(model, self._within(model, self.base), layers, features)
        return self._watched[features]

    def _within(self, model: nn.Module, module: nn.Module) -> nn.Module:
        """What stands in a shadow of the model where `module` stands in the model."""
        name = next(name for name, one in self.model.named_modules() if one is module)
        for part in name.split("."):
            inner = model._modules.get(part)
            model = model if inner is None else inner  # `torch.compile`'s wrapper has no twin
        return model

    # -- what the model is ---------------------------------------------------------------------------------------

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        if self._layer_list is None:
            raise UnsupportedTargetError(f"{self.name} has no list of {self.num_layers} decoder layers")
        return self._layer_list

    @cached_property
    def _layer_list(self) -> nn.ModuleList | None:
        lists = [one for one in self.model.modules() if isinstance(one, nn.ModuleList) and len(one) == self.num_layers]
        if len(lists) < 2:
            return next(iter(lists), None)
        called = self._called([one[0] for one in lists])  # a vision tower may have as many layers
        return next((one for one in lists if one[0] in called), None)

    def _called(self, modules: Iterable[nn.Module]) -> list[nn.Module]:
        """Those of the modules that a pass over one token calls, in the order of their first calls."""
        called: list[nn.Module] = []

        def noting(module: nn.Module) -> Change:
            def change(own: Forward) -> Forward:
                def forward(*args: Any, **kwargs: Any) -> Any:
                    called.append(module)
                    return own(*args, **kwargs)

                return forward

            return change

        noted = shadow(self.model, {module: noting(module) for module in modules})
        with torch.inference_mode():
            noted(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self.device), use_cache=False)
        return called

    @cached_property
    def base(self) -> nn.Module:
        """The model without its LM head: the outermost inner module around the layers that a pass really calls.

        `base_model` is not always that: OPT calls its decoder past it, Llama 4's text model names none, and what it
        names may hold the LM head. Where the layers are no plain list, the module is one around the embeddings.
        """
        held, head = self._layer_list or self.model.get_input_embeddings(), self.model.get_output_embeddings()
        around = []
        for module in self.model.modules():
            inner = set(module.modules()) - {module}
            if module is not self.model and held in inner and head not in inner:
                around.append(module)
        called = self._called(around)
        if not called:
            raise UnsupportedTargetError(f"{self.name} has no module that yields the hidden states before its LM head")
        return called[0]

    @cached_property
    def hash(self) -> str:
        """Names the weights whatever dtype or device they are loaded in: 16 hexadecimal digits."""
        return weights_hash(self.model)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end-of-sequence tokens of the model's generation settings; () where there are none."""
        ids = self.model.generation_config.eos_token_id
        return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)

    @property
    def name(self) -> str:
        """What to call the model in messages."""
        return self.config._name_or_path or type(self.model).__name__

    @property
    def _num_cache_layers(self) -> int:
        return self.num_layers

    def with_short_windows(self) -> Target | None:
        """The same weights with windows and chunks of a few tokens, for a probe; None where there are none."""
        if all(reach.window is None and reach.chunk is None for reach in self._masks.reaches.values()):
            return None
        twin = with_short_windows(self.model, self.base if self._layer_list is None else self._layer_list[0])
        if twin is None:
            return None
        short = Target(twin)
        short._turn = self._turn  # offloaded weights are still the same
        return short

    @torch.inference_mode()
    def check_features(self, features: Features) -> None:
        """Refuse a model whose passes do not leave features behind that heads can draft from.

        The hidden states must have the width that its configuration names; the last ones must give its logits through
        `head`.
        """
        if not features:
            return
        rows, hidden = torch.arange(2, device=self.device), int(self.config.hidden_size)
        read = "last hidden states" if features.last_hidden else "layers' hidden states"
        unfit = f"{self.name} cannot be drafted for by heads, which read its {read}: "
        try:
            output = self.forward(rows, rows, self.causal(2), self.new_cache(2), features=features)
            assert output.features is not None
            shape, expected = tuple(output.features.shape), features.width(hidden)
            if shape[-1] != expected:
                raise UnsupportedTargetError(f"{unfit}they have width {shape[-1] * hidden / expected:g}, not {hidden}")
            if shape[1:] != (2, expected):
                raise UnsupportedTargetError(f"{unfit}for two tokens they have the shape {shape}, more than one each")
            if not features.last_hidden:
                return
            difference = (self.head(output.features[..., :hidden]) - output.logits).abs().max()
        except UnsupportedTargetError:
            raise
        except RUNNING_ERRORS as error:
            raise UnsupportedTargetError(unfit + first_line(error)) from error
        if not difference <= 0.1 * output.logits.std():
            raise UnsupportedTargetError(f"{unfit}more than these decides its logits")

    @torch.inference_mode()
    def _takes_mask_dict(self, mask: dict[str, Tensor]) -> bool:
        """Whether the model accepts a dict {layer type: mask}: found by trying it on one token.

        Raises UnsupportedTargetError if it cannot run that token without masks either.
        """
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        masks = {kind: one.to(self.device) for kind, one in mask.items()}
        try:
            self.model(input_ids=token, position_ids=token, attention_mask=masks, use_cache=False)
        except RUNNING_ERRORS:
            self._check_runs(token)
            return False
        return True

    def _check_runs(self, token: Tensor) -> None:
        try:
            self.model(input_ids=token, use_cache=False)
        except RUNNING_ERRORS as error:
            raise UnsupportedTargetError(cannot_run(self.model, self.name, error)) from error


def _turn(model: nn.Module) -> AbstractContextManager[object]:
    """What a pass is made under: nothing, or for offloaded weights a lock."""
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        return _TURNS.setdefault(model, threading.RLock())
    return nullcontext()


def _rows_out(head: Any) -> int:
    """Logits that an LM head yields; a quantised weight is packed and has another shape."""
    rows: int | None = getattr(head, "out_features", None)
    return int(head.weight.shape[0]) if rows is None else rows
