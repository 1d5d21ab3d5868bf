"""The search for a skip set by Bayesian optimisation (Draft & Verify, arXiv 2309.08168, section 3.4).

The space has two binary choices a layer. Departures from the paper: a choice of objectives, starting points that know
what each sub-layer costs and what skipping it alone does to the draft, and no set is tried twice: where the sampler
proposes a known one, a new neighbour of the best takes its place.

All that values hang on (the target's answers, the cost table, the harm of each sub-layer) is made once and kept in the
study, so that a resumed search and several processes measure by one ruler.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from slipstream.drafting.shape import Dynamic
from slipstream.engine.calibration import calibrate
from slipstream.errors import ArtifactError, InputError
from slipstream.methods.layer_skip.drafter import LayerSkipDrafter
from slipstream.model import Model
from slipstream.records.machine import hardware, versions
from slipstream.runtime.sublayer_costs import CostTable, measure_sublayers
from slipstream.search.agreement import Sample
from slipstream.search.modelled import widths
from slipstream.search.objectives import (
    MeasuredSpeed,
    ModelledSpeed,
    Objective,
    PlainComparison,
    answer,
    with_overheads,
)
from slipstream.search.prompts import Messages
from slipstream.search.settings import SearchSettings
from slipstream.search.space import Bits, Space, starting_points, uniform
from slipstream.search.study import Study, best_sets, trial_bits
from slipstream.skipping.skip_set import SkipSet
from slipstream.skipping.sublayers import SubLayers
from slipstream.target.target import Target

FORMAT = 2
"""Of what a study holds; 2: plain decoding by the same costs as the sets."""
_WARM_STARTS = 8
_COMPARED = 6  # prompts on which the best set is put beside plain decoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One set that was tried."""

    number: int
    """Complete trials of the study so far, this one included."""
    skip_set: SkipSet
    value: float
    """Tokens per second, modelled or measured."""
    best: float
    """Of all so far."""
    plain: float
    """The same of plain decoding, by the costs that sets are modelled with."""
    origin: str
    """A starting point by its name, `neighbour` or `sampler`."""
    seconds: float
    """Proposing, trying and writing it down."""
    figures: dict[str, Any]


class SkipSearch:
    """One search, or one process's part in it."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Messages],
        settings: SearchSettings,
        study_file: Path,
        *,
        task: str,
        warm_start: Path | None = None,
    ) -> None:
        """model: over the target, drafting or not. warm_start: an earlier study, or a skip set to try first.

        Raises LayerSkipUnsupportedError for a target whose sub-layers cannot be skipped, InputError for settings that
        do not fit it, ArtifactError for a study that was made with others.
        """
        self.model = Model(model.target, _plain(), model.tokenizer)
        self.settings, self.task = settings, task
        self.target = model.target
        self.sublayers = SubLayers.find(self.target.model)
        num_layers = self.sublayers.num_layers
        self.space = Space.make(num_layers, settings.keep_first, settings.keep_last, settings.max_skipped)
        self._prompts = list(prompts[: settings.num_prompts])
        if not self._prompts:
            raise InputError("there are no prompts to search on; give at least one")
        self._warm_start = [] if warm_start is None else self._earlier_sets(warm_start)
        exact = settings.objective == "modelled"
        self.study = Study(study_file, self.space, settings.sampler, settings.seed, exact=exact)
        self._check_study()
        self._rng = random.Random(settings.seed)
        self.costs: CostTable
        self.samples: list[Sample]
        self.objective: Objective
        self.modelled: ModelledSpeed

    def prepare(self) -> None:
        """Let the target answer, time the sub-layers, try each alone; or take all that from the study."""
        record = self.study.recall("measured")
        if record is None:
            record = self.study.remember("measured", self._measure())
        self.samples = [Sample(**{**one, "token_ids": tuple(one["token_ids"])}) for one in record["samples"]]
        self.costs = CostTable.from_json(record["costs"])
        self.modelled = ModelledSpeed(self.target, self.sublayers, self.samples, self.costs, self.settings)
        measuring = self.settings.objective == "throughput"
        self.objective = self._measured_speed(self.samples, self.costs) if measuring else self.modelled
        harm = self.study.recall("harm")
        self.harm: list[float] = self.study.remember("harm", self._try_each()) if harm is None else harm
        for origin, bits in self._starts():
            self.study.enqueue(bits, origin)

    def trials(self) -> Iterator[Trial]:
        """Try sets until the study has as many as the settings say, or all there are. Stopping early is safe."""
        values = self.study.values()
        while len(self.study.done()) < self.settings.trials:
            began = time.perf_counter()
            trial, proposed = self.study.ask()
            bits = self.space.repair(proposed, self.harm)
            values = self.study.values()
            if bits in values:
                self.study.drop(trial)
                new = self.space.neighbour(max(values, key=values.__getitem__), values.__contains__, self._rng)
                if new is None:
                    return
                self.study.enqueue(new, "neighbour")
                continue
            skip_set = self.space.skip_set(bits, self.target.hash)
            tried = self.objective(skip_set)
            self.study.tell(trial, bits, tried.value, tried.figures)
            values[bits] = tried.value
            yield Trial(
                number=len(values),
                skip_set=skip_set,
                value=tried.value,
                best=max(values.values()),
                plain=1 / self.costs.plain,
                origin=trial.user_attrs.get("origin", "sampler"),
                seconds=time.perf_counter() - began,
                figures=tried.figures,
            )

    def best(self) -> SkipSet:
        """The best set of the study, with how it was found. There must be a trial."""
        trials = self.study.done()
        best = max(trials, key=lambda trial: trial.value or 0.0)
        found = self.space.skip_set(trial_bits(best), self.target.hash)
        figures = {key: value for key, value in best.user_attrs["result"].items() if key not in ("bits", "skipped")}
        values = self.study.values()
        starts = {origin: values[bits] for origin, bits in self._starts() if bits in values}
        provenance = {
            "method": "search",
            "objective": self.settings.objective,
            "sampler": self.settings.sampler,
            "task": self.task,
            "trials": len(trials),
            "best_trial": trials.index(best) + 1,
            "best_origin": best.user_attrs.get("origin", "sampler"),
            "figures": figures,
            "starting_points": {origin: round(value, 3) for origin, value in starts.items()},
            "skipped_fraction": round(self.sublayers.skipped_fraction(found), 4),
            "skipped_cost": round(self.costs.skipped_fraction(found), 4),
            "costs": self.costs.summary(),
            "prompts": len(self.samples),
            "answer_tokens": sum(sample.num_starts for sample in self.samples),
            "settings": self._defining(),
            "device": hardware(self.target.device),  # those of the study: another machine's is refused
            "threads": torch.get_num_threads(),
            "versions": versions("optuna"),
            "date": datetime.now(UTC).date().isoformat(),
        }
        return SkipSet(
            num_layers=found.num_layers,
            attention=found.attention,
            mlp=found.mlp,
            target=found.target,
            provenance=provenance,
        )

    def calibrated(self) -> SkipSet:
        """`best`, with how far the confidence of its drafts may be believed, found on the same prompts.

        Chains keep the published exit rule, which takes probabilities as they are.
        """
        best = self.best()
        if self.settings.shape.kind == "chain":
            return best
        depth = self.settings.shape.depth
        drafter = LayerSkipDrafter(self.target, best, Dynamic(width=1, depth=depth, total=depth))
        prompts = [sample.token_ids[: sample.prompt_length] for sample in self.samples]
        found = calibrate(self.target, drafter, prompts, max_new_tokens=self.settings.max_new_tokens)
        scale = {"confidence_scale": found.scale.to_dict(), "calibration": found.to_dict()}
        return replace(best, provenance={**best.provenance, **scale})

    def against_plain(self, skip_set: SkipSet) -> PlainComparison:
        """Real generations with a set beside plain ones, on a few of the search's prompts."""
        return self._measured_speed(self.samples[:_COMPARED], self.costs).against_plain(skip_set)

    def value(self, skip_set: SkipSet) -> float | None:
        """Tokens per second of any set by this search's measure; None where its limits forbid the set."""
        bits = self.space.bits(skip_set)
        allowed = self.space.skip_set(bits)
        same = (allowed.attention, allowed.mlp) == (skip_set.attention, skip_set.mlp)
        if not same or sum(bits) > (self.space.max_skipped or len(bits)):
            return None
        known = self.study.values()
        return known[bits] if bits in known else self.objective(skip_set).value

    # -- what a study is made of ----------------------------------------------------------------------------------

    def _defining(self) -> dict[str, Any]:
        return {
            **self.settings.defining(),
            "keep_first": self.space.keep_first,
            "keep_last": self.space.keep_last,
            "dtype": str(self.target.dtype).removeprefix("torch."),
            "device": hardware(self.target.device),
            "runtime": self.target.executor.name,
            "threads": torch.get_num_threads(),
        }

    def _check_study(self) -> None:
        """Refuse to mix the trials of two searches."""
        ours = {
            "format": FORMAT,
            "target": self.target.hash,
            "task": self.task,
            "prompts": self._prompts,
            **self._defining(),
        }
        theirs = {"runtime": "eager", **self.study.remember("setting", ours)}  # earlier versions had no other
        different = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        if different:
            key = different[0]
            was = "" if key == "prompts" else f" ({theirs.get(key)}, not {ours.get(key)})"
            raise ArtifactError(
                f"the study {self.study.path} was made with another {key}{was}; give another --study, or start from it "
                "with --warm-start"
            )

    def _measure(self) -> dict[str, Any]:
        samples, plain = answer(self.model, self._prompts, self.settings)
        lengths = [sample.prompt_length + sample.num_starts // 2 for sample in samples]
        shape, prefix = self.settings.shape, sum(lengths) // len(lengths)
        costs: CostTable = measure_sublayers(self.target, self.sublayers.parts, widths(shape), prefix).costs
        some = uniform(self.space, min(2, len(self.space.layers)))
        drafting = self._measured_speed(samples[:3], costs).cycles(some)
        costs = with_overheads(costs, plain, drafting, some, shape)
        return {"samples": [asdict(sample) for sample in samples], "costs": costs.to_json()}

    def _measured_speed(self, samples: Sequence[Sample], costs: CostTable) -> MeasuredSpeed:
        return MeasuredSpeed(self.target, self.sublayers, samples, costs, self.settings)

    def _try_each(self) -> list[float]:
        """The harm of skipping each sub-layer alone, beyond that of skipping none."""
        size = len(self.space.names)
        none = self.modelled.harm(self.space.skip_set((False,) * size))
        alone = (tuple(i == j for j in range(size)) for i in range(size))
        return [self.modelled.harm(self.space.skip_set(bits)) - none for bits in alone]

    def _starts(self) -> list[tuple[str, Bits]]:
        one_row = self.costs.passes[0]
        cost = [kind[layer] for kind in (one_row.attention, one_row.mlp) for layer in self.space.layers]
        asked = self.settings.starting_points
        starts = starting_points(self.space, self.sublayers, self.harm, cost) if asked else []
        earlier = [("warm start", self.space.repair(bits, self.harm)) for bits in self._warm_start]
        return [*earlier, *starts]

    def _earlier_sets(self, path: Path) -> list[Bits]:
        if path.suffix == ".json":
            skip_set = SkipSet.load(path)
            self.sublayers.check(skip_set)
            return [self.space.bits(skip_set)]
        return best_sets(path, self.space, _WARM_STARTS)


def _plain() -> Any:
    from slipstream.methods.plain import PlainDrafter

    return PlainDrafter()


def study_identity(target: Target, settings: SearchSettings, messages: Sequence[Messages]) -> str:
    """Names a study by all that its costs and agreements depend on: 8 hexadecimal digits."""
    machine = [hardware(target.device), torch.get_num_threads(), str(target.dtype)]
    if target.executor.name != "eager":  # earlier versions had no other
        machine.append(target.executor.name)
    record = json.dumps([FORMAT, machine, settings.defining(), list(messages[: settings.num_prompts])], sort_keys=True)
    return hashlib.sha256(record.encode()).hexdigest()[:8]
