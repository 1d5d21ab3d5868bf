"""Costs kept in the user's cache: measured the first time that a target runs on a machine, read from then on.

One file for each target, device, dtype, kind of attention, way to run passes, number of threads and version of PyTorch:
another of these is another machine as far as costs go. A file that is damaged or of an older format is measured anew.
What was measured while the machine was so unquiet that it says little is used, but not kept; that goes for a drafter's
levels, too, if a plain pass beside them takes longer than it is known to.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch

from slipstream.files.cache_folder import cache_folder
from slipstream.records.machine import hardware
from slipstream.runtime.costs import LevelCosts, Measured, PassCosts, measure_passes, on_line
from slipstream.runtime.decisions import agree
from slipstream.runtime.timing import Passes, timed
from slipstream.target.sharding import num_sharing
from slipstream.target.target import Target

logger = logging.getLogger(__name__)

_FORMAT = 1
_UNQUIET = 0.25
"""Spread of timings from which on they are not kept."""


_IN_USE: WeakKeyDictionary[Target, tuple[Path, PassCosts]] = WeakKeyDictionary()
"""What passes were taken to cost last, and the file of the machine that this holds for. It need not be kept there."""


class Kind(Protocol):
    """A kind of costs that JSON can hold."""

    def to_json(self) -> Any:
        """As JSON values."""

    @classmethod
    def from_json(cls, values: Any) -> Any:
        """What `to_json` made. Raises ValueError or TypeError for anything else."""


Costs = TypeVar("Costs", bound=Kind)


class KeptCosts:
    """What is known of the costs of one target on this machine, as it runs now."""

    def __init__(self, target: Target, *, fresh: bool = False) -> None:
        """fresh: measure anew whatever is asked for, and keep that."""
        self.target, self.machine, self._fresh = target, described(target), fresh
        digest = hashlib.sha256(json.dumps(self.machine, sort_keys=True).encode()).hexdigest()[:16]
        self.path = cache_folder() / "costs" / f"{digest}.json"
        self.measured_s = 0.0
        """Seconds that went into measuring so far; 0: all was read."""

    def passes(self) -> PassCosts:
        """What the target's passes cost."""
        found = self.get("passes", PassCosts, lambda: measure_passes(self.target))
        _IN_USE[self.target] = self.path, found
        return found

    def known_passes(self) -> PassCosts | None:
        """The same if it is in use in this process, or kept; never measures."""
        path, found = _IN_USE.get(self.target, (None, None))
        return found if path == self.path else self._read("passes", PassCosts)

    def levels(self, name: str, measure: Callable[[], Measured]) -> LevelCosts:
        """What a drafter's levels cost. name: tells it from others for this target, by what its costs hang on."""
        return self.get(f"levels of {name}", LevelCosts, lambda: self._beside_a_pass(measure))

    def _beside_a_pass(self, measure: Callable[[], Measured]) -> Measured:
        """What is measured, with the spread of a machine on which a plain pass takes longer now than is known.

        A machine that is slow throughout shows no spread of its own.
        """
        found, known = measure(), self.known_passes()
        if known is None:
            return found
        context, _ = known.by_context[0]
        passes = Passes(self.target, 1, context)
        now_s = min(timed(passes.call(1), self.target.device) for _ in range(2))
        return agree(found._replace(spread=max(found.spread, now_s / on_line(known.at(context), 1) - 1)))

    def get(self, name: str, kind: type[Costs], measure: Callable[[], Measured]) -> Costs:
        """The costs of this name: read, or measured and kept."""
        known = agree(None if self._fresh else self._read(name, kind))
        if known is not None:
            return known
        found = measure()
        self.measured_s += found.seconds
        quiet = found.spread < _UNQUIET
        logger.info(
            "measured the %s of %s in %.1f s%s",
            name,
            self.target.name,
            found.seconds,
            f", kept in {self.path}" if quiet else "; not kept, for the machine was too busy to tell",
        )
        if quiet:
            self._keep(name, found.costs)
        costs: Costs = found.costs
        return costs

    def _read(self, name: str, kind: type[Costs]) -> Costs | None:
        values = self._entries().get(name)
        if values is None:
            return None
        try:
            read: Costs = kind.from_json(values)
        except (ValueError, TypeError) as error:
            logger.info("%s has no %s that can be read (%s); they are measured anew", self.path, name, error)
            return None
        logger.info("read the %s of %s from %s", name, self.target.name, self.path)
        return read

    def _entries(self) -> dict[str, Any]:
        """All costs in the file by name; none where there is no such file, or one that cannot be used."""
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.info("%s cannot be read (%s); costs are measured anew", self.path, error)
            return {}
        if not isinstance(record, Mapping) or record.get("machine") != self.machine:
            logger.info("%s is of another format or machine; costs are measured anew", self.path)
            return {}
        entries = record.get("costs")
        return dict(entries) if isinstance(entries, Mapping) else {}

    def _keep(self, name: str, costs: Kind) -> None:
        """Written beside and moved into place, so that other processes read a whole file at any time."""
        entries = {**self._entries(), name: costs.to_json()}
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps({"machine": self.machine, "costs": entries}, indent=1) + "\n", encoding="utf-8")
            os.replace(draft, self.path)
        except OSError as error:
            logger.info("cannot keep costs in %s (%s); they will be measured again", self.path, error)


def described(target: Target) -> dict[str, Any]:
    """All that the costs of a target hang on, as JSON values."""
    return {
        "format": _FORMAT,
        "target": target.hash,
        "hardware": hardware(target.device),
        "devices": sorted({str(weight.device) for weight in target.model.parameters()}),
        "dtype": str(target.dtype).removeprefix("torch."),
        "attention": target.config._attn_implementation,
        "runtime": target.executor.costs_name,
        "threads": torch.get_num_threads() if target.device.type == "cpu" else None,
        "torch": torch.__version__,
        **({"processes": num_sharing()} if num_sharing() > 1 else {}),
    }
