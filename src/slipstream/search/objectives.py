"""What a search may maximise: the modelled speed of a skip set, or its measured one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, Protocol

from slipstream.core.logits import ProcessingSettings, resolve
from slipstream.core.rules import DecodingRule, make_rule
from slipstream.core.sampling import SamplingSettings
from slipstream.methods.layer_skip.drafter import LayerSkipDrafter
from slipstream.model import Model
from slipstream.output import Output, Stats
from slipstream.search.agreement import Answers, Sample
from slipstream.search.modelled import cycle_seconds, modelled_speed
from slipstream.search.prompts import Messages
from slipstream.search.settings import SearchSettings
from slipstream.skipping.costs import CostTable, undisturbed_clock
from slipstream.skipping.skip_set import SkipSet
from slipstream.skipping.sublayers import SubLayers
from slipstream.target.target import Target


@dataclass(frozen=True, slots=True)
class Trialled:
    """What a trial found out."""

    value: float
    """Tokens per second."""
    figures: dict[str, Any]
    """JSON values that explain it."""


class Objective(Protocol):
    """Gives a skip set its value."""

    exact: bool
    """Whether the same set always has the same value."""

    def __call__(self, skip_set: SkipSet) -> Trialled:
        """Try a set."""


class ModelledSpeed:
    """Expected tokens over measured costs, from one teacher-forced pass (`modelled.py`)."""

    exact = True

    def __init__(
        self,
        target: Target,
        sublayers: SubLayers,
        samples: Sequence[Sample],
        costs: CostTable,
        settings: SearchSettings,
    ) -> None:
        self._sublayers, self._costs, self._shape = sublayers, costs, settings.shape
        ahead = settings.shape.depth
        num_roots = sum(sample.num_starts for sample in samples)
        stride = min(-(-num_roots * ahead // settings.rows), ahead)
        self.answers = Answers(
            target, samples, lambda one: rule_of(target, one, settings.temperature), depth=ahead, stride=stride
        )

    def __call__(self, skip_set: SkipSet) -> Trialled:
        agreement = self.answers.agreement(self._sublayers.plan(skip_set), self._shape.level_rows)
        figures = modelled_speed(agreement, self.answers.segments, self._shape, self._costs, skip_set)
        return Trialled(figures.tokens_per_second, figures.to_dict())

    def harm(self, skip_set: SkipSet) -> float:
        """How often the draft's best token is not the target's, over all depths."""
        agreement = self.answers.agreement(self._sublayers.plan(skip_set), 1)
        return float((agreement.rank != 0).double().mean())


class MeasuredSpeed:
    """Tokens per second of real generations, prefill left out (as published: Draft & Verify, section 3.4)."""

    exact = False

    def __init__(
        self, target: Target, sublayers: SubLayers, samples: Sequence[Sample], settings: SearchSettings
    ) -> None:
        self._samples, self._settings = samples, settings
        nothing = SkipSet(num_layers=sublayers.num_layers, attention=(), mlp=())
        self._drafter = LayerSkipDrafter(target, nothing, settings.shape)
        self._model = Model(target, self._drafter)
        self._run(samples[0])  # warm-up

    def __call__(self, skip_set: SkipSet) -> Trialled:
        stats = self.stats(skip_set)
        rate = stats.num_tokens / decode_s(stats)
        figures = {"tau": stats.tau, "num_drafted": stats.num_drafted / stats.num_cycles, "tokens_per_second": rate}
        return Trialled(rate, {name: round(value, 4) for name, value in figures.items()})

    def stats(self, skip_set: SkipSet) -> Stats:
        """Counts and times of all prompts, each at the median of its repeats."""
        self._drafter.draft_with(skip_set)
        return reduce(add, (self._median(sample) for sample in self._samples))

    def cycles(self, skip_set: SkipSet) -> list[tuple[int, float]]:
        """(drafted nodes, undisturbed seconds) of the cycles of all prompts but each one's first."""
        self._drafter.draft_with(skip_set)
        return [cycle for sample in self._samples for cycle in self._run(sample).cycles]

    def _median(self, sample: Sample) -> Stats:
        runs = [self._run(sample).output.stats for _ in range(self._settings.repeats)]
        return sorted(runs, key=decode_s)[(len(runs) - 1) // 2]

    def _run(self, sample: Sample) -> Generated:
        prompt_ids = list(sample.token_ids[: sample.prompt_length])
        return generate(self._model, prompt_ids, self._settings, sample.seed)


def decode_s(stats: Stats) -> float:
    """Seconds of a generation that the draft has a part in: all but the prompt's."""
    return stats.cycles_s


@dataclass(frozen=True, slots=True)
class Generated:
    """One generation."""

    output: Output
    cycles: list[tuple[int, float]]
    """(drafted nodes, seconds) of every cycle but the first, which has the prompt in it."""


def generate(model: Model, prompt: Any, settings: SearchSettings, seed: int) -> Generated:
    """A generation, with its cycles timed as if nothing else ran, as far as the host can tell (`undisturbed_clock`)."""
    cycles: list[tuple[int, float]] = []
    clock = undisturbed_clock(model.target.device)
    stream = model.stream(
        prompt,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=seed if settings.temperature else None,
    )
    while True:
        began = clock()
        try:
            step = next(stream)
        except StopIteration as end:
            return Generated(end.value, cycles[1:])
        cycles.append((step.num_drafted, clock() - began))


def answer(model: Model, prompts: Sequence[Messages], settings: SearchSettings) -> tuple[list[Sample], float]:
    """The target's own answers to prompts, by plain decoding, and the seconds that a token took."""
    samples, seconds = [], []
    for number, prompt in enumerate(prompts):
        content: Any = prompt if getattr(model.tokenizer, "chat_template", None) else prompt[-1]["content"]
        generated = generate(model, content, settings, settings.seed + number)
        output = generated.output
        token_ids = (*output.prompt_ids, *output.token_ids)
        samples.append(Sample(token_ids=token_ids, prompt_length=len(output.prompt_ids), seed=output.seed or 0))
        seconds += [one for _, one in generated.cycles]
    return samples, statistics.median(seconds or [0.0])


def rule_of(target: Target, sample: Sample, temperature: float) -> DecodingRule:
    """How the tokens of a sample were chosen."""
    processing: ProcessingSettings = resolve(
        target.model.generation_config,
        {"temperature": temperature},
        prompt_length=sample.prompt_length,
        max_new_tokens=sample.num_starts,
        eos_token_ids=(),
    )
    return make_rule(processing, SamplingSettings(seed=sample.seed), target.vocab_size, target.device)


def with_overhead(
    costs: CostTable, cycles: Sequence[tuple[int, float]], skip_set: SkipSet, settings: SearchSettings
) -> CostTable:
    """`costs` with the time per drafted level that real cycles took beyond their passes (median), never below 0.

    cycles: (drafted nodes, seconds) of each.
    """
    shape, found = settings.shape, []
    for num_drafted, seconds in cycles:
        if num_drafted:
            beyond = seconds - cycle_seconds(costs, shape, num_drafted, skip_set)
            found.append(beyond / shape.levels(num_drafted))
    return replace(costs, overhead=max(statistics.median(found), 0.0) if found else 0.0)
