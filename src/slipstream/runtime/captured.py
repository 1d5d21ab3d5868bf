"""Captured passes on CUDA: a pass, or a whole stage of a cycle, becomes one CUDA graph, which is launched at once.

A graph belongs to the memory that it was recorded on: to one cache's storage, as long as that does not grow. So storage
is handed on: a cache that nobody uses any more leaves its memory, with what was recorded there, to the next one.

What is called for the first time runs eagerly, as what is never called again should; the second time it is recorded.
Work that cannot be recorded, since it reads tensors on the host, runs eagerly for good, and a warning says so once.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from slipstream.errors import first_line
from slipstream.runtime.buckets import Buckets
from slipstream.runtime.recording import CudaGraphs, Recorder
from slipstream.runtime.structure import tensors_in, with_tensors
from slipstream.target.cache import CacheStorage, KVCache
from slipstream.target.passes import Executor, Inputs, Output, PassFunction, PassKey, Result, Stage

logger = logging.getLogger(__name__)

_MOST_GRAPHS = 128
"""Of one storage; the one that was not used for longest makes room."""
_CALLS = 3
"""Until a call is recorded."""
_MOST_CALLS = 8


class CapturedPasses(Executor):
    """Records passes and stages, and replays them."""

    name, runs_modules, replays = "captured", False, True

    def __init__(self, recorder: Recorder | None = None, buckets: Buckets | None = None) -> None:
        self._recorder = CudaGraphs() if recorder is None else recorder
        self._buckets = Buckets() if buckets is None else buckets
        self._now = threading.local()  # what this thread records
        self._turn = threading.RLock()  # held while something is recorded
        self._graphs: WeakKeyDictionary[CacheStorage, _Graphs] = WeakKeyDictionary()
        self._without_cache = _Graphs(0)
        self._free: WeakKeyDictionary[nn.Module, list[CacheStorage]] = WeakKeyDictionary()
        self._stamp: int | None = None
        self._failed: set[str] = set()
        self.num_recorded = 0
        self.num_replayed = 0

    # -- sizes -------------------------------------------------------------------------------------------------------

    def rows(self, count: int) -> int:
        return self._buckets.fit_rows(count) if count <= self._buckets.rows[-1] else count

    def context(self, slots: int) -> int:
        return max(self._buckets.fit_context(slots), getattr(self._now, "context", 0))

    # -- memory ------------------------------------------------------------------------------------------------------

    def take_in(self, cache: KVCache, owner: nn.Module) -> KVCache:
        free = self._free.setdefault(owner, [])
        used = next((one for one in free[:] if one.positions.shape[0] == cache.batch), None)
        if used is not None:
            try:
                free.remove(used)
            except ValueError:  # another generation was faster
                pass
            else:
                cache.use(used)
        weakref.finalize(cache, free.append, cache.storage).atexit = False
        return cache

    def forget(self) -> None:
        self._graphs.clear()
        self._without_cache = _Graphs(0)
        for free in self._free.values():
            free.clear()

    def stamp(self, weights: int) -> None:
        if self._stamp not in (None, weights):
            self._graphs.clear()
            self._without_cache = _Graphs(0)
        self._stamp = weights

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self, key: PassKey, function: PassFunction[Inputs, Output], inputs: Inputs, cache: KVCache) -> Output:
        if key.batch > 1 or key.rows > self._buckets.rows[-1] or not self._may_record(cache):
            return function(inputs, cache)

        def work(slots: Tensor, *tensors: Tensor) -> Output:
            own = cache.slots
            cache.write_to(slots)
            try:
                return function(with_tensors(inputs, iter(tensors)), cache)
            finally:
                cache.write_to(own)

        return self._play(key, work, (cache.slots, *tensors_in(inputs)), cache, key.context)

    def stage(
        self, key: Hashable, work: Stage, tensors: Sequence[Tensor], cache: KVCache | None, slots: int = 0
    ) -> tuple[Tensor | None, ...]:
        if not self._may_record(cache):
            return work(*tensors)
        context = 0
        if cache is not None:
            context = self.context(cache.length + slots)
            cache.reserve(context)
        return self._play((key, context), work, tensors, cache, context)

    def _may_record(self, cache: KVCache | None) -> bool:
        """Not within what is recorded already, and not before a cache's memory lies where it will stay."""
        return not hasattr(self._now, "context") and (cache is None or cache.storage.is_ready)

    @torch.inference_mode()
    def _play(
        self,
        key: Hashable,
        work: Callable[..., Output],
        tensors: Sequence[Tensor],
        cache: KVCache | None,
        context: int,
    ) -> Output:
        graphs = self._graphs_of(cache)
        graph = graphs.get(key)
        if graph == _NEVER:
            return work(*tensors)
        if graph is None:
            graphs.put(key, _ONCE)
            self._now.prepared = True
            return work(*tensors)
        if graph == _ONCE:
            self._now.prepared = True
            graph = self._recorded(work, tensors, cache, context)
            graphs.put(key, graph)
            if graph == _NEVER:
                return work(*tensors)
        self.num_replayed += 1
        output: Output = graph(tensors, cache)
        return output

    def _graphs_of(self, cache: KVCache | None) -> _Graphs:
        if cache is None:
            return self._without_cache
        graphs = self._graphs.get(cache.storage)
        if graphs is None or graphs.capacity != cache.capacity:
            graphs = self._graphs[cache.storage] = _Graphs(cache.capacity)
        return graphs

    def _recorded(
        self, work: Callable[..., Output], tensors: Sequence[Tensor], cache: KVCache | None, context: int
    ) -> Any:
        """A graph, or `_NEVER`."""
        try:
            with self._turn, self._recording(context):
                graph = _Graph(self._recorder, work, tensors, cache)
        except Exception as error:  # of a device, or of a model's code: whatever it is, the work runs eagerly
            self._say(first_line(error) or type(error).__name__)
            return _NEVER
        self.num_recorded += 1
        return graph

    @contextmanager
    def _recording(self, context: int) -> Iterator[None]:
        self._now.context = context
        try:
            yield
        finally:
            del self._now.context

    def _say(self, reason: str) -> None:
        if reason not in self._failed:
            self._failed.add(reason)
            logger.warning("a pass cannot be captured and goes on to run eagerly: %s", reason)

    # -- waiting -----------------------------------------------------------------------------------------------------

    def was_preparing(self) -> bool:
        was, self._now.prepared = getattr(self._now, "prepared", False), False
        return was

    def settle(self, calls: Iterable[Callable[[], Any]]) -> None:
        for call in calls:
            for _ in range(_CALLS):
                call()

    def settled(self, call: Callable[[], Result]) -> Result:
        for _ in range(_MOST_CALLS):
            before = self.num_recorded
            result = call()
            if self.num_recorded == before:
                break
        return result


_ONCE, _NEVER = "once", "never"
"""In the place of a graph: it was called once; it cannot be recorded."""


class _Graphs:
    """What was recorded on one storage of this capacity."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._graphs: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        if key in self._graphs:
            self._graphs.move_to_end(key)
        return self._graphs.get(key)

    def put(self, key: Hashable, graph: Any) -> None:
        self._graphs[key] = graph
        while len(self._graphs) > _MOST_GRAPHS:
            self._graphs.popitem(last=False)


class _Graph(Generic[Output]):
    """Recorded work with its inputs and outputs, which stay where they are."""

    def __init__(
        self, recorder: Recorder, work: Callable[..., Output], tensors: Sequence[Tensor], cache: KVCache | None
    ) -> None:
        self._turn = threading.Lock()
        self._inputs = [one.clone() for one in _with_lengths(tensors, cache)]
        own = self._inputs[: len(tensors)]
        if cache is None:
            self._output, self._replay = recorder.record(lambda: work(*own))
            return
        lengths, cache.lengths = cache.lengths, self._inputs[-1]
        try:
            self._output, self._replay = recorder.record(lambda: work(*own))
        finally:
            cache.lengths = lengths

    def __call__(self, tensors: Sequence[Tensor], cache: KVCache | None) -> Output:
        """What the work gives for these tensors."""
        with self._turn:
            for own, given in zip(self._inputs, _with_lengths(tensors, cache), strict=True):
                assert own.shape == given.shape, "sizes are part of the key"
                own.copy_(given)
            self._replay()
            output: Output = with_tensors(self._output, (one.clone() for one in tensors_in(self._output)))
            return output


def _with_lengths(tensors: Sequence[Tensor], cache: KVCache | None) -> list[Tensor]:
    return [*tensors] if cache is None else [*tensors, cache.lengths]
