"""Compiled passes on a CPU: each layer is compiled by PyTorch's inductor, the weights are packed once.

What is compiled is a layer, not a model: one graph serves all layers that are alike, in the target, in its shadows for
skip sets and features, in a draft model and in a draft head. So a size takes a second or two to compile and holds no
weights. Whether layers are alike is read off their graphs; parameters, keys and values are inputs of these.

A pass runs eagerly until its layers are compiled, which happens in a thread beside it, and for good where they cannot
be: a layer that reads anything on the host but its arguments, and families that `Executor` names as exceptions.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache

from slipstream.errors import first_line
from slipstream.runtime.buckets import Buckets
from slipstream.runtime.packed_passes import Packing
from slipstream.target.cache import KVCache
from slipstream.target.passes import Inputs, Output, PassFunction, PassKey, Result
from slipstream.target.shadow import Change, Forward, shadow

logger = logging.getLogger(__name__)

BUCKETS = Buckets(rows=(1, 2, 4, 8, 12, 16, 24, 32, 48, 64))
"""Rows beyond the last are those of prompts, which run eagerly and in exact sizes."""
_PASSES_BEFORE = 2
"""Passes of a size that run before it is compiled: sizes that occur once are not worth it."""
_MOST_CALLS = 5
"""Times that a call is made at most until all its sizes are compiled. Sizes of drafts may be others every time."""
_CONSTANTS = (type(None), bool, int, float, str)


class _Sizes(NamedTuple):
    """What tensors of a layer have shapes by."""

    rows: int
    context: int
    capacity: int


class CompiledPasses(Packing):
    """Runs passes by layers that are compiled in the background. On a CPU only."""

    name, varies, runs_modules = "compiled", True, False

    def __init__(self, buckets: Buckets = BUCKETS) -> None:
        super().__init__(traced=True)
        self._buckets, self._compiler = buckets, _Compiler()
        self._now = threading.local()  # the pass that this thread is in
        self._layers: WeakKeyDictionary[nn.Module, Forward] = WeakKeyDictionary()

    def _with_packed(self, model: nn.Module) -> nn.Module:
        layers = _layers(model)
        inside = {module for layer in layers for module in layer.modules()}
        changes = {one: change for one, change in self._weights.changes(model).items() if one not in inside}
        return shadow(model, {**changes, **{layer: self._replacing(layer) for layer in layers}})

    def _replacing(self, layer: nn.Module) -> Change:
        """Shadows share the layers that they leave alone, and so what is compiled of these."""
        if layer not in self._layers:
            self._layers[layer] = self._compiling(super()._with_packed(layer))
        forward = self._layers[layer]
        return lambda own: forward

    def rows(self, count: int) -> int:
        return self._buckets.fit_rows(count) if count <= self._buckets.rows[-1] else count

    def context(self, slots: int) -> int:
        return self._buckets.fit_context(slots)

    def run(self, key: PassKey, function: PassFunction[Inputs, Output], inputs: Inputs, cache: KVCache) -> Output:
        many = key.batch > 1 or key.rows > self._buckets.rows[-1]
        if many or not cache.storage.is_ready:
            return function(inputs, cache)
        self._now.pass_ = _Sizes(key.rows, key.context, cache.capacity), cache
        try:
            return function(inputs, cache)
        finally:
            self._now.pass_ = None

    def settle(self, calls: Iterable[Callable[[], Any]]) -> None:
        for call in calls:
            for _ in range(_PASSES_BEFORE):
                call()
        self._compiler.wait()

    def settled(self, call: Callable[[], Result]) -> Result:
        for _ in range(_MOST_CALLS):
            result = call()
            if not self._compiler.wait():
                break
        return result

    def was_preparing(self) -> bool:
        was, self._now.prepared = getattr(self._now, "prepared", False), False
        return was or self._compiler.is_at_work  # which takes a core from the passes beside it

    def forget(self) -> None:
        super().forget()
        self._layers.clear()

    def _compiling(self, layer: nn.Module) -> Forward:
        """The forward of a layer, compiled in the sizes that it was run in."""
        own, place, plans = layer.forward, _cache_layer(layer), dict[_Sizes, _Plan]()

        def forward(*args: Any, **kwargs: Any) -> Any:
            now = getattr(self._now, "pass_", None)
            if now is None or place is None:
                return own(*args, **kwargs)
            sizes, cache = now
            if sizes not in plans:
                plans[sizes] = _Plan(own, place, self._compiler)
            if plans[sizes].is_waiting:
                self._now.prepared = True
            return plans[sizes](args, kwargs, cache)

        return forward


def _layers(model: nn.Module) -> list[nn.Module]:
    """The modules of lists as long as the model is deep; none where it is no such model."""
    config = getattr(model, "config", None)
    depth = None if config is None else getattr(config.get_text_config(), "num_hidden_layers", None)
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) == depth]
    return [layer for one in lists for layer in one]


class _Plan:
    """One layer in passes of one size: eager at first, compiled once that is ready."""

    def __init__(self, layer: Forward, place: int, compiler: _Compiler) -> None:
        """place: the layer of the cache that it writes."""
        self._layer, self._place, self._compiler = layer, place, compiler
        self._passes = 0
        self.compiled: _Compiled | None = None
        self.is_given_up = False

    @property
    def is_waiting(self) -> bool:
        """Whether it runs eagerly for the time being."""
        return self.compiled is None and not self.is_given_up

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], cache: KVCache) -> Any:
        if self.compiled is not None:
            held: Any = cache.layers[self._place]
            return self.compiled(args, kwargs, held.keys, held.values, cache.places)
        self._passes += 1
        if self._passes == _PASSES_BEFORE:
            self._compiler.ask(_Job(self, self._layer, args, kwargs, cache, self._place))
        return self._layer(*args, **kwargs)


def _cache_layer(layer: nn.Module) -> int | None:
    """The layer of the cache that a decoder layer writes; None where its modules do not say."""
    places = {module.__dict__.get("layer_idx") for module in layer.modules()} - {None}
    return next(iter(places)) if len(places) == 1 else None


class _Job:
    """A layer to compile, with the shapes of what it was called with. It keeps none of these tensors."""

    def __init__(
        self, plan: _Plan, layer: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], cache: KVCache, place: int
    ) -> None:
        held: Any = cache.layers[place]
        self.plan, self._layer, self._place, self._context = plan, layer, place, cache.context
        self._names = list(kwargs)
        self._values = [_spec(one, cache) for one in (*args, *kwargs.values())]
        self._cache = [_spec(one, cache) for one in (held.keys, held.values, cache.places)]

    def examples(self) -> list[Tensor]:
        """Tensors of the shapes that the graph's inputs have."""
        return [spec.empty() for spec in _specs([*self._values, *self._cache])]

    def outputs(self, *tensors: Tensor) -> Any:
        """What the layer returns for such inputs."""
        *inputs, keys, values, places = tensors
        cache, rest = _LayerCache(self._place, keys, values, places, self._context), iter(inputs)
        given = [_filled(one, rest, cache) for one in self._values]
        split = len(given) - len(self._names)
        return self._layer(*given[:split], **dict(zip(self._names, given[split:], strict=True)))


class _Spec(NamedTuple):
    """The shape of a tensor."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def empty(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype)


class _TheCache:
    """Stands where a layer is given the cache."""


_THE_CACHE = _TheCache()
_TENSOR = object()
"""Stands where a layer returns a tensor."""


class _CompileError(Exception):
    """A layer is more than its arguments."""


def _spec(value: Any, cache: KVCache) -> Any:
    """An argument with shapes in place of tensors."""
    if isinstance(value, Tensor):
        return _Spec(tuple(value.shape), tuple(value.stride()), value.dtype)
    if isinstance(value, tuple):
        return tuple(_spec(one, cache) for one in value)
    return _THE_CACHE if value is cache else value


def _specs(values: Sequence[Any]) -> Iterator[_Spec]:
    for value in values:
        if isinstance(value, _Spec):
            yield value
        elif isinstance(value, tuple):
            yield from _specs(value)


def _filled(value: Any, tensors: Iterator[Tensor], cache: Cache) -> Any:
    if isinstance(value, _Spec):
        return next(tensors)
    if isinstance(value, tuple):
        return tuple(_filled(one, tensors, cache) for one in value)
    if isinstance(value, _TheCache):
        return cache
    if isinstance(value, _CONSTANTS):
        return value
    raise _CompileError(f"it is called with a {type(value).__name__}")


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among arguments or outputs, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from _tensors(one)


class _LayerCache(Cache):
    """The cache as one layer's graph sees it: tensors that are inputs. All that is on the host is refused."""

    def __init__(self, place: int, keys: Tensor, values: Tensor, places: Tensor, context: int) -> None:
        super().__init__(layers=[])
        self._place, self._keys, self._values, self._places, self._context = place, keys, values, places, context

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if layer_idx != self._place:
            raise _CompileError("it writes another layer of the cache")
        self._keys.index_copy_(2, self._places, key_states)
        self._values.index_copy_(2, self._places, value_states)
        return self._keys[:, :, : self._context], self._values[:, :, : self._context]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        raise _CompileError("it reads the length of the text on the host")


class _Compiled:
    """A graph with the parameters of one layer."""

    def __init__(self, graph: Callable[..., Sequence[Tensor]], constants: Sequence[Tensor], output: Any) -> None:
        self._graph, self._constants, self._output = graph, constants, output

    def __call__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], keys: Tensor, values: Tensor, places: Tensor
    ) -> Any:
        inputs = [*_tensors((*args, *kwargs.values())), keys, values, places]
        outputs = self._graph(*inputs, *self._constants)
        return _rebuilt(self._output, iter(outputs))


def _without_tensors(output: Any) -> Any:
    """What a layer returned, with a mark where there was a tensor."""
    if isinstance(output, tuple):
        return tuple(map(_without_tensors, output))
    return _TENSOR if isinstance(output, Tensor) else output


def _rebuilt(output: Any, tensors: Iterator[Tensor]) -> Any:
    if output is _TENSOR:
        return next(tensors)
    return tuple(_rebuilt(one, tensors) for one in output) if isinstance(output, tuple) else output


class _Compiler:
    """Compiles layers one after another in a thread of its own, which begins with the first."""

    def __init__(self) -> None:
        self._graphs: dict[str, Callable[..., Sequence[Tensor]]] = {}
        self._jobs: deque[_Job] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None  # while there is anything to do
        self._can_work: bool | None = None  # not known before the first job
        self._was_asked = False  # since somebody waited
        self._reasons: set[str] = set()

    def ask(self, job: _Job) -> None:
        """Let a layer be compiled; returns at once."""
        with self._lock:
            if self._can_work is None:
                self._can_work = has_compiler()
            if not self._can_work:
                job.plan.is_given_up = True
                return
            self._jobs.append(job)
            self._was_asked = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="slipstream-compiler")
                self._thread.start()

    @property
    def is_at_work(self) -> bool:
        """Whether anything is being compiled now."""
        return self._thread is not None

    def wait(self) -> bool:
        """Until all is compiled that was asked for. Returns whether anything was since the last time."""
        while (thread := self._thread) is not None:
            thread.join()
        was_asked, self._was_asked = self._was_asked, False
        return was_asked

    def _work(self) -> None:
        began = time.perf_counter()
        while True:
            with self._lock:
                if not self._jobs:
                    self._thread = None
                    break
                job = self._jobs.popleft()
            self._make_ready(job)
            del job  # it holds a layer
        logger.info("compiled passes are ready after %.1f s", time.perf_counter() - began)

    def _make_ready(self, job: _Job) -> None:
        try:
            with torch.no_grad():
                job.plan.compiled = self._compile(job)
        except Exception as error:  # of a tracer, a compiler or a model's code: whatever it is, the layer runs eagerly
            job.plan.is_given_up = True
            self._say(first_line(error) or type(error).__name__)

    def _say(self, reason: str) -> None:
        if reason not in self._reasons:
            self._reasons.add(reason)
            logger.warning("a layer cannot be compiled and goes on to run eagerly: %s", reason)

    def _compile(self, job: _Job) -> _Compiled:
        from torch._inductor.compile_fx import compile_fx

        examples = job.examples()
        graph, constants, output = _traced(job, examples)
        name = "\n".join([graph.code, *(str(_spec_of(one)) for one in (*examples, *constants))])
        if name not in self._graphs:
            began = time.perf_counter()
            compiled: Any = compile_fx(graph, [*examples, *constants], config_patches={"size_asserts": False})
            self._graphs[name] = compiled
            seconds = time.perf_counter() - began
            logger.info("compiled a layer for states of shape %s in %.1f s", list(examples[0].shape), seconds)
        return _Compiled(self._graphs[name], constants, output)


def _spec_of(tensor: Tensor) -> _Spec:
    return _Spec(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)


def _traced(job: _Job, examples: list[Tensor]) -> tuple[torch.fx.GraphModule, list[Tensor], Any]:
    """The graph of a layer, the parameters that are its last inputs, and what its outputs stand in."""
    from torch.fx.experimental.proxy_tensor import make_fx

    output: Any = None

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        nonlocal output
        output = job.outputs(*tensors)
        return tuple(_tensors(output))

    graph = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
    return graph, _lift_constants(graph), _without_tensors(output)


def _lift_constants(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a graph holds; returns these tensors."""
    last = next(node for node in reversed(graph.graph.nodes) if node.op == "placeholder")
    constants: dict[str, tuple[Tensor, torch.fx.Node]] = {}
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        if node.target not in constants:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"constant_{len(constants)}")
            constants[node.target] = getattr(graph, node.target), last
        node.replace_all_uses_with(constants[node.target][1])
        graph.graph.erase_node(node)
    for name in constants:
        delattr(graph, name)
    graph.recompile()
    return [tensor for tensor, _ in constants.values()]


def has_compiler() -> bool:
    """Whether PyTorch finds a C++ compiler; says so once where it does not."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        logger.warning("no C++ compiler is installed (g++ or clang++), so passes run eagerly; set CXX to name one")
        return False
    return True
