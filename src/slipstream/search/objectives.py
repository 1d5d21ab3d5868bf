"""What a search may maximise: the modelled speed of a skip set, or its measured one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

from slipstream.core.logits import ProcessingSettings, resolve
from slipstream.core.rules import DecodingRule, make_rule
from slipstream.core.sampling import SamplingSettings
from slipstream.drafting.shape import Shape
from slipstream.engine.sequence import Step
from slipstream.methods.layer_skip.drafter import LayerSkipDrafter
from slipstream.methods.plain import PlainDrafter
from slipstream.model import Model
from slipstream.output import Output, Stats
from slipstream.runtime.sublayer_costs import CostTable
from slipstream.search.agreement import Answers, Sample
from slipstream.search.modelled import bound, draft_seconds, modelled_speed
from slipstream.search.prompts import Messages
from slipstream.search.settings import SearchSettings
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
    """Tokens per second of real generations, prefill left out (as published: Draft & Verify, section 3.4).

    Unlike there, every generation is timed beside a plain one, and the set's speed is its speed-up over that times the
    speed of plain decoding by the costs: what else the machine does falls on both.
    """

    exact = False

    def __init__(
        self,
        target: Target,
        sublayers: SubLayers,
        samples: Sequence[Sample],
        costs: CostTable,
        settings: SearchSettings,
    ) -> None:
        self._target, self._samples, self._costs, self._settings = target, list(samples), costs, settings
        self._plain = Model(target, PlainDrafter())
        nothing = SkipSet(num_layers=sublayers.num_layers, attention=(), mlp=())
        self._drafter = LayerSkipDrafter(target, nothing, settings.shape)
        self._model = Model(target, self._drafter)
        self._run(samples[0])  # warm-up

    def __call__(self, skip_set: SkipSet) -> Trialled:
        found = self.against_plain(skip_set)
        rate = found.speedup / self._costs.plain
        return Trialled(rate, {**found.to_dict(), "tokens_per_second": round(rate, 4)})

    def cycles(self, skip_set: SkipSet) -> list[Step]:
        """The cycles of all prompts but each one's first."""
        self._drafter.draft_with(skip_set)
        settled = self._target.executor.settled
        return [step for sample in self._samples for step in settled(partial(self._run, sample)).cycles]

    def against_plain(self, skip_set: SkipSet) -> PlainComparison:
        """A set beside plain decoding: both answer each prompt, one right after the other, and take turns in it."""
        self._drafter.draft_with(skip_set)
        pairs = []
        for number, sample in enumerate(self._samples * self._settings.repeats):
            order = (self._plain, self._model) if number % 2 else (self._model, self._plain)
            runs = self._target.executor.settled(partial(self._runs, sample, order))
            pairs.append((runs[self._plain], runs[self._model]))
        return PlainComparison.of(pairs, self._settings.shape, self._costs, skip_set)

    def _runs(self, sample: Sample, order: Sequence[Model]) -> dict[Model, Generated]:
        return {model: self._run(sample, model) for model in order}

    def _run(self, sample: Sample, model: Model | None = None) -> Generated:
        prompt_ids = list(sample.token_ids[: sample.prompt_length])
        return generate(model or self._model, prompt_ids, self._settings, sample.seed)


@dataclass(frozen=True, slots=True)
class Generated:
    """One generation."""

    output: Output
    cycles: list[Step]
    """All but the first, which has the prompt in it."""


def generate(model: Model, prompt: Any, settings: SearchSettings, seed: int) -> Generated:
    """A generation, and its cycles."""
    cycles: list[Step] = []
    stream = model.stream(
        prompt,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=seed if settings.temperature else None,
    )
    while True:
        try:
            cycles.append(next(stream))
        except StopIteration as end:
            return Generated(end.value, cycles[1:])


def answer(model: Model, prompts: Sequence[Messages], settings: SearchSettings) -> tuple[list[Sample], list[Step]]:
    """The target's own answers to prompts, by plain decoding, and the cycles that they took."""
    samples, cycles = [], []
    for number, prompt in enumerate(prompts):
        content: Any = prompt if getattr(model.tokenizer, "chat_template", None) else prompt[-1]["content"]
        generating = partial(generate, model, content, settings, settings.seed + number)
        generated = model.target.executor.settled(generating)
        output = generated.output
        token_ids = (*output.prompt_ids, *output.token_ids)
        samples.append(Sample(token_ids=token_ids, prompt_length=len(output.prompt_ids), seed=output.seed or 0))
        cycles += generated.cycles
    return samples, cycles


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainComparison:
    """What a set did beside plain decoding."""

    speedup: float
    """Geometric mean over the prompts, never above `bound`."""
    low: float
    high: float
    """Between which it lies with a probability of 0.95, by the spread over the prompts."""
    tau: float
    num_drafted: float
    """Nodes a cycle."""
    bound: float
    """What the set's costs allow with the tokens that it brought."""
    answers: int
    """Pairs of answers that were timed."""

    @classmethod
    def of(
        cls, pairs: Sequence[tuple[Generated, Generated]], shape: Shape, costs: CostTable, skip_set: SkipSet
    ) -> PlainComparison:
        """pairs: of every prompt, its plain answer and the set's."""
        ratios = [math.log(token_s(plain.output.stats) / token_s(ours.output.stats)) for plain, ours in pairs]
        mean = statistics.fmean(ratios)
        margin = 1.96 * statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.inf
        cycles = [step for _, ours in pairs for step in ours.cycles]
        num_tokens = sum(len(step.token_ids) for step in cycles)
        allowed = bound(costs, shape, [step.num_drafted for step in cycles], skip_set, num_tokens) if cycles else 1.0
        low, middle, high = (min(math.exp(log), allowed) for log in (mean - margin, mean, min(mean + margin, 700.0)))
        return cls(
            speedup=middle,
            low=low,
            high=high,
            tau=num_tokens / max(1, len(cycles)),
            num_drafted=sum(step.num_drafted for step in cycles) / max(1, len(cycles)),
            bound=allowed,
            answers=len(pairs),
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def token_s(stats: Stats) -> float:
    """Seconds that a token took, the prompt's left out."""
    return stats.cycles_s / stats.num_tokens


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


def with_overheads(
    costs: CostTable, plain: Sequence[Step], drafting: Sequence[Step], skip_set: SkipSet, shape: Shape
) -> CostTable:
    """`costs` with the times of real cycles beside their passes: medians of all, and of what drafting levels took.

    A cycle's times are taken in units of its own verification pass, whose price is known: so they are of the same
    moment of the machine, and of the same clock as the passes in the table.
    """
    beside, levels = [], []
    for step in (*plain, *drafting):
        moment = costs.verify(1 + step.num_drafted) / max(step.build_s + step.verify_s, 1e-9)
        beside.append(moment * (step.sample_s + step.host_s))
        if step.num_drafted:
            depth = shape.levels(step.num_drafted)
            levels.append((moment * step.draft_s - draft_seconds(costs, shape, depth, skip_set)) / depth)
    overhead = max(statistics.median(levels), 0.0) if levels else 0.0
    return replace(costs, overhead=overhead, cycle=statistics.median(beside) if beside else 0.0)
