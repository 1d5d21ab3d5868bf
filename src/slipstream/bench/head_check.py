"""Whether a head fits a model and pays on this machine: a few minutes' measurement on the shipped prompts.

A head that is loaded for the wrong model, or read in a wrong way, changes no token; it only drafts badly. So drafts are
looked at: chains show how often each position is accepted, and answers with sizes by measured cost are timed in turns
with plain decoding. Where a head's files leave open how it is to be read, as EAGLE-3's do (origins number layers in two
ways, and feed the output back before or after a norm), the other readings are tried too.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import slipstream
from slipstream.drafting.drafter import ModelDrafter
from slipstream.errors import InputError
from slipstream.methods import auto
from slipstream.prompts import Prompt, load_prompts

if TYPE_CHECKING:
    from slipstream import Model, Output

POOR, GOOD = 0.1, 0.5
"""Acceptance of the first drafted token below which a head drafts by chance, and above which it drafts as it should."""
EXPECTED = "published EAGLE heads have 70 to 80 % of their first tokens accepted"
EXPECTED_OF = {
    "eagle3": "published EAGLE-3 heads have 60 to 80 % of their first tokens accepted, and 50 to 80 % of each later one"
}
"""Of methods whose heads differ from EAGLE's."""
_LEAST = 3  # prompts, however long they take
_CLEARLY = 1.05  # times the tokens a pass that another reading must have to be named


@dataclass(frozen=True, slots=True)
class OtherReading:
    """Another way to read a head, and what it then drafts."""

    options: Mapping[str, Any]
    """Of `load`."""
    tau: float
    """Tokens a pass with chains, on the first prompts."""

    def __str__(self) -> str:
        return " ".join(f"-o {name}={json.dumps(value)}" for name, value in self.options.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadCheck:
    """What was found."""

    method: str
    acceptance: tuple[float, ...]
    """Of each position of a drafted chain, among chains of which all before it was accepted."""
    tau: float
    """Tokens a pass with drafts sized by measured cost."""
    ratios: tuple[float, ...]
    """Tokens per second over plain decoding's, one for each prompt."""
    identical: int
    """Answers that are plain decoding's, of as many as there are ratios."""
    chain_tau: float = 0.0
    """Tokens a pass with chains, on the first prompts; compared with other readings."""
    readings: tuple[OtherReading, ...] = ()
    """Other plausible ways to read the head; none where its files leave no doubt."""

    @property
    def ratio(self) -> float:
        """Geometric mean of the ratios."""
        return math.exp(statistics.fmean(map(math.log, self.ratios)))

    @property
    def interval(self) -> tuple[float, float]:
        """About 95 %: two standard errors of the mean log ratio on both sides."""
        logs = [math.log(ratio) for ratio in self.ratios]
        error = 2 * statistics.stdev(logs) / math.sqrt(len(logs))
        return self.ratio * math.exp(-error), self.ratio * math.exp(error)

    @property
    def fit(self) -> str:
        """Whether the head drafts as one that was trained for this model."""
        first, expected = self.acceptance[0], EXPECTED_OF.get(self.method, EXPECTED)
        if self.better is not None:
            return (
                f"it is read wrongly: with {self.better} it drafts {self.better.tau:.2f} tokens a pass instead of "
                f"{self.chain_tau:.2f}; {expected}"
            )
        if first < POOR:
            return f"it does not fit this model: {first:.0%} of its first tokens are accepted; {expected}"
        if first < GOOD:
            return f"it drafts, but weakly: {first:.0%} of its first tokens are accepted; {expected}"
        return f"it fits this model: {first:.0%} of its first tokens are accepted"

    @property
    def better(self) -> OtherReading | None:
        """A reading with which the head drafts clearly better."""
        best = max(self.readings, key=lambda one: one.tau, default=None)
        return best if best is not None and best.tau > _CLEARLY * self.chain_tau else None

    @property
    def pay(self) -> str:
        """Whether it makes answers faster here."""
        low, high = self.interval
        measured = f"{self.ratio:.2f} times plain decoding, 95 % interval {low:.2f} to {high:.2f}"
        if low > 1:
            return f"it pays here: {measured}"
        return f"it does not pay here: {measured}" if high < 1 else f"it makes no clear difference here: {measured}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "method": self.method,
            "acceptance": self.acceptance,
            "tau": self.tau,
            "ratio": self.ratio,
            "interval": self.interval,
            "prompts": len(self.ratios),
            "identical": self.identical,
            "chain_tau": self.chain_tau,
            "readings": [{**one.options, "tau": one.tau} for one in self.readings],
            "fit": self.fit,
            "pay": self.pay,
        }


def check_head(
    plain: Model,
    draft: str | None,
    *,
    method: str = "auto",
    temperature: float = 0.0,
    max_new_tokens: int = 48,
    seconds: float = 120.0,
    report: Callable[[str], None] = lambda line: None,
) -> HeadCheck:
    """Measure a head on the shipped prompts, as many as fit into `seconds`, at least three.

    plain: the target, loaded with method `plain`. draft: folder or hub id; None for what ships for the target.
    Raises InputError where there is no head, ArtifactError where it cannot be loaded.
    """
    given: dict[str, Any] = {} if draft is None else {"draft": draft}
    if method == auto.METHOD.name:
        trained = auto.trained_method(plain.target, draft)
        if trained is None:
            raise InputError(f"no head ships for {plain.target.name}; give one with --draft")
        method = trained.name
    sized = slipstream.load(plain.target.model, method, tokenizer=plain.tokenizer, **given)
    if not isinstance(sized.drafter, ModelDrafter):
        raise InputError(f"method {method!r} drafts with no model; name one that does, such as eagle2")
    depth = min(5, sized.drafter.shape.depth)
    tree: dict[str, Any] = {"width": 1, "depth": depth, "total": depth}
    chains = slipstream.load(plain.target.model, sized.method, tokenizer=plain.tokenizer, **given, **tree)
    settings = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    for model in (plain, sized, chains):
        model.generate(load_prompts()[0].turns[0], max_new_tokens=8, temperature=0.0)  # measures costs, warms up
    steps: list[tuple[int, int]] = []
    ratios: list[float] = []
    answers: list[tuple[Output, Output]] = []
    began = time.perf_counter()
    for number, prompt in enumerate(load_prompts()):
        if number >= _LEAST and time.perf_counter() - began > seconds:
            break
        ours, reference = _pair(sized, plain, prompt, number, settings)
        answers.append((ours, reference))
        ratios.append(ours.stats.tokens_per_second / reference.stats.tokens_per_second)
        steps += _drafted(chains, prompt, number, settings)
        report(f"{number + 1} prompts: {math.exp(statistics.fmean(map(math.log, ratios))):.2f} times plain decoding")
    cycles = sum(ours.stats.num_cycles for ours, _ in answers)

    def chain_tau(model: Model) -> float:
        """Tokens a pass, on the first prompts."""
        first = enumerate(load_prompts()[:_LEAST])
        found = [one for number, prompt in first for one in _drafted(model, prompt, number, settings)]
        return 1 + statistics.fmean(accepted for _, accepted in found)

    readings = []
    for options in sized.drafter.other_readings():
        other = slipstream.load(plain.target.model, sized.method, tokenizer=plain.tokenizer, **given, **tree, **options)
        readings.append(OtherReading(options, chain_tau(other)))
        report(f"read with {readings[-1]}: {readings[-1].tau:.2f} tokens a pass with chains")
    return HeadCheck(
        method=sized.method,
        acceptance=tuple(_acceptance(steps, depth)),
        tau=sum(ours.stats.num_tokens for ours, _ in answers) / cycles,
        ratios=tuple(ratios),
        identical=sum(ours.token_ids == reference.token_ids for ours, reference in answers),
        chain_tau=chain_tau(chains) if readings else 0.0,
        readings=tuple(readings),
    )


def _drafted(model: Model, prompt: Prompt, number: int, settings: dict[str, Any]) -> list[tuple[int, int]]:
    """(drafted, accepted) of each cycle of the answer to a prompt."""
    return [(one.num_drafted, one.num_accepted) for one in model.stream(prompt.turns[0], seed=number, **settings)]


def _pair(ours: Model, plain: Model, prompt: Prompt, number: int, settings: dict[str, Any]) -> tuple[Output, Output]:
    """Both answers to a prompt; who goes first changes from prompt to prompt."""
    order = (ours, plain) if number % 2 else (plain, ours)
    answers = {one: one.generate(prompt.turns[0], seed=number, **settings) for one in order}
    return answers[ours], answers[plain]


def _acceptance(steps: Sequence[tuple[int, int]], depth: int) -> Iterator[float]:
    """Of each position, among the chains that reached it. steps: (drafted, accepted) of each cycle."""
    for place in range(1, depth + 1):
        tried = [accepted >= place for drafted, accepted in steps if drafted >= place and accepted >= place - 1]
        yield statistics.fmean(tried) if tried else 0.0
