"""A pass of the target: what is run, as tensors, and what runs it.

`Target` describes a pass; an `Executor` runs it. Sizes are the executor's choice: exact ones, or those of a few
buckets, so that what is compiled or captured for one pass serves many. b is the batch, n the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from slipstream.core.sampling import gumbel_rows
from slipstream.target.attention import with_grouped_attention
from slipstream.target.cache import KVCache
from slipstream.target.features import Features

Result = TypeVar("Result")
Inputs = TypeVar("Inputs")
Output = TypeVar("Output")


@dataclass(frozen=True, slots=True)
class PassInputs:
    """Everything that a pass depends on, beside the weights and the cache."""

    tokens: Tensor  # [b, n] int64
    positions: Tensor  # [b, n] int64, absolute
    slots: Tensor  # [b, n] int64, where each row's keys and values go
    mask: Tensor | dict[str, Tensor]  # each [b, 1, n, context], additive; a dict by type of layer
    logits_row: Tensor | None  # [1] int64, the row whose logits are wanted; None: those of all rows


@dataclass(frozen=True, slots=True)
class TargetOutput:
    """What a pass of the target yields."""

    logits: Tensor  # [b, n or 1, vocab] float32, or float64 for a float64 model
    features: Tensor | None  # [b, n, hidden x number of wanted states], last hidden state first, then layers

    def first(self, rows: int) -> TargetOutput:
        """The output of the first rows alone."""
        return TargetOutput(self.logits[:, :rows], None if self.features is None else self.features[:, :rows])


class PassKey(NamedTuple):
    """What the work of a pass depends on: passes of one key differ in nothing but the numbers in their tensors."""

    model: nn.Module
    """What is run: the model, a shadow that leaves sub-layers out or keeps features, a draft head. Compared by
    identity."""
    features: Features
    batch: int
    rows: int
    context: int
    """Slots of the cache that the rows may read."""
    all_logits: bool

    @classmethod
    def of(cls, model: nn.Module, features: Features, inputs: PassInputs, cache: KVCache) -> PassKey:
        batch, rows = inputs.tokens.shape
        return cls(model, features, batch, rows, cache.context, inputs.logits_row is None)


PassFunction = Callable[[Inputs, KVCache], Output]
"""Runs a pass: of the target from `PassInputs` to a `TargetOutput`, of a draft head from inputs of its own. It reads
the inputs' tensors and the cache, writes the cache's slots, and does nothing else."""


Stage = Callable[..., tuple[Tensor | None, ...]]
"""Work of a cycle that holds passes, from tensors to tensors. Sizes are fixed, nothing is read on the host; beside its
arguments it reads weights, and of the cache at hand `lengths` and the rows; it may write rows from each length on."""


class Executor:
    """Runs passes: this one as they are, eagerly and in exact sizes.

    One that compiles or captures passes overrides the other methods. It may rely on this:

    - `PassKey` tells apart what compilers do not guard: for another skip set, or other features, another module is run.
      So hooks and patched forwards need no guards.
    - From pass to pass only numbers in tensors change: those of the inputs, and keys and values in the cache. Rows
      are written where `KVCache.places` says, a view of the inputs' slots; an executor with buffers of its own sets it.
      How far rows read is `PassKey.context`. Two families are exceptions, and are to be run eagerly: Llama 4 scales
      queries by `KVCache.get_seq_length` (`Family.query_step`), and a rolling RoPE compares positions on the host
      (`Family.rolling_rope`).
    - Slots that were never written hold zeros. Rows that fill up a bucket are copies of the last row, in slots behind
      it that no row reads. What they yield is cut off.
    - Keys and values stay where they are until `KVCache.capacity` grows: a captured pass belongs to one cache and one
      capacity.
    - A key holds its model. An adaptive skip set leaves many shadows behind, so what is kept by key must let go of
      those that nobody else holds.
    """

    name = "eager"
    """What `load` and records call this way to run passes."""

    @property
    def costs_name(self) -> str:
        """Tells what passes cost from what they cost otherwise run, or run by another version."""
        return self.name

    varies = False
    """Whether passes of one key may round differently from one time to the next."""
    runs_modules = True
    """Whether a pass calls the modules inside layers, which can then be watched."""
    replays = False
    """Whether passes and stages are recorded and replayed, without a line of Python between."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """What is run for a model, a shadow of it, its LM head or a draft head: the same but for the order of sums.

        Called once for each. The model itself is never changed.
        """
        return with_grouped_attention(model)

    def rows(self, count: int) -> int:
        """Rows that a pass over `count` rows is to have, at least so many."""
        return count

    def context(self, slots: int) -> int:
        """Slots of the cache that a pass is to see which reads the first `slots`, at least so many."""
        return slots

    def run(self, key: PassKey, function: PassFunction[Inputs, Output], inputs: Inputs, cache: KVCache) -> Output:
        """Run a pass. function: runs it eagerly; those of one key are equal."""
        return function(inputs, cache)

    def stage(
        self, key: Hashable, work: Stage, tensors: Sequence[Tensor], cache: KVCache | None, slots: int = 0
    ) -> tuple[Tensor | None, ...]:
        """Run a stage: a whole draft, or the verification of one.

        key: stages of one key differ in nothing but the numbers in `tensors` and in the cache. cache: the one that its
        passes are made over, None where there are none. slots: those behind the cache's length that it needs at most.
        """
        return work(*tensors)

    def gumbel_rows(self, seed: int, stream: int, positions: Tensor, vocab_size: int) -> Tensor:
        """The noise of sampling, `core.sampling.gumbel_rows` for one seed: the same bits, however they are made."""
        return gumbel_rows(seed, stream, positions, vocab_size)

    def take_in(self, cache: KVCache, owner: nn.Module) -> KVCache:
        """A cache made for `owner`'s passes, before the first of them; returns it. It may be given used memory."""
        return cache

    def settle(self, calls: Iterable[Callable[[], Any]]) -> None:
        """Come to where these calls, which make passes, cost what they will cost from now on."""

    def settled(self, call: Callable[[], Result]) -> Result:
        """What a call yields whose passes are all run as they will be from now on. It may be made several times."""
        return call()

    def was_preparing(self) -> bool:
        """Whether this thread, since it last asked, made a pass that costs something else than it will from now on."""
        return False

    def forget(self) -> None:
        """Let go of what was made of the weights: they are others, in a way that torch does not count."""

    def stamp(self, weights: int) -> None:
        """A generation begins with weights of this stamp; what was made of others is void."""
