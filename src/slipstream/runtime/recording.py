"""Recorders: they run some work once and can run it again, in the same memory and without its Python.

What is recorded may depend on the numbers in tensors and on nothing else: sizes, and whatever the host knows, are those
of the first time. So work that reads a tensor on the host, or takes numbers from there, cannot be recorded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from slipstream.core.largest import reading_nothing
from slipstream.errors import SlipstreamError
from slipstream.runtime.structure import tensors_in

Output = TypeVar("Output")
Replay = Callable[[], None]


class RecordingError(SlipstreamError):
    """Work that hangs on more than the numbers in its tensors."""


class Recorder(ABC):
    """Records work that writes tensors of its own, and tensors that outlive it."""

    def record(self, work: Callable[[], Output]) -> tuple[Output, Replay]:
        """What the work returned, and what does it again into the same tensors, which it must be before they are read.

        The work must leave behind the same however often it is done. Raises RecordingError, or what the device says,
        for work that cannot be recorded.
        """
        with reading_nothing():
            return self._record(work)

    @abstractmethod
    def _record(self, work: Callable[[], Output]) -> tuple[Output, Replay]:
        """`record`."""


class CudaGraphs(Recorder):
    """CUDA graphs, which share one pool of memory: they are replayed on one stream."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: Any = None

    def _record(self, work: Callable[[], Output]) -> tuple[Output, Replay]:
        cuda: Any = torch.cuda
        if self._pool is None:
            self._pool, self._stream = cuda.graph_pool_handle(), cuda.Stream()
        self._stream.wait_stream(cuda.current_stream())
        with cuda.stream(self._stream):
            work()  # libraries set themselves up at their first call on a stream, which cannot be captured
        cuda.current_stream().wait_stream(self._stream)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            output = work()
        return output, graph.replay


class CpuTape(Recorder):
    """The same on a CPU, operation by operation: no faster than the work itself, but as strict as a graph.

    Results are written to the memory in which the first ones lie, views stay what they are, and numbers of the host are
    those of the first time. So work that a graph would do wrongly comes out wrong here, too.
    """

    def _record(self, work: Callable[[], Output]) -> tuple[Output, Replay]:
        tape = _Tape()
        with _NoCopies(), tape:
            output = work()
        return output, tape.replay


class _NoCopies(TorchFunctionMode):
    """Refuses copies to the host, which on a CPU are no operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.cpu):
            raise RecordingError(f"Tensor.{func.__name__} reads a tensor on the host")
        return func(*args, **(kwargs or {}))


class _Operation(NamedTuple):
    run: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    results: Sequence[Tensor]


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """All operations that are run within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operations: list[_Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _reads(func, args):
            raise RecordingError(f"{func} reads a tensor on the host")
        if func is torch.ops.aten.lift_fresh.default:
            raise RecordingError("a tensor is made of numbers of the host")
        outcome = func(*args, **kwargs)
        if func._schema.is_mutable:
            self._operations.append(_Operation(func, args, kwargs, ()))
        elif fresh := _fresh(outcome, (args, kwargs)):
            self._operations.append(_Operation(func, args, kwargs, fresh))
        return outcome

    def replay(self) -> None:
        for one in self._operations:
            outcome = one.run(*one.args, **one.kwargs)
            if one.results:
                for place, new in zip(one.results, tensors_in(outcome), strict=True):
                    if place.shape != new.shape or place.dtype != new.dtype:
                        raise RecordingError(f"{one.run} gives {tuple(new.shape)}, not {tuple(place.shape)}")
                    place.copy_(new)


def _reads(func: Any, args: Sequence[Any]) -> bool:
    """Whether an operation reads a tensor on the host: to return a number, or to know the size of what it returns."""
    if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
        return any(one.dtype in (torch.bool, torch.uint8) for one in tensors_in(list(args[1])))  # a mask, not places
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _fresh(outcome: Any, given: Any) -> list[Tensor]:
    """The results of an operation; none where it is a view of what it was given, which follows that by itself."""
    known = {one.untyped_storage().data_ptr() for one in tensors_in(given)}
    results = list(tensors_in(outcome))
    return [] if any(one.untyped_storage().data_ptr() in known for one in results) else results
