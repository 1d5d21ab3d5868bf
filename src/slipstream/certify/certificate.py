"""The certificate: all that was compared and tested, and the verdict that follows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from slipstream.certify.chi_square import holm
from slipstream.certify.distribution import ALPHA
from slipstream.certify.identity import Against, Comparison, Divergence
from slipstream.certify.judgement import RULINGS, Judged, Ruling, worst
from slipstream.certify.law import NUM_TOKENS
from slipstream.records.certificate import (
    FAULT,
    INCONCLUSIVE,
    LOSSLESS,
    ROUNDING,
    AdjustedTest,
    CertificateRecord,
    CertifiedAnswer,
    Difference,
    Distribution,
    Floor,
    LawTest,
    RuledAgainst,
    Total,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedAnswer:
    """One answer, compared and judged."""

    prompt_id: int | str
    seed: int | None
    """None: greedy."""
    found: Comparison
    judged: Mapping[str, Judged]
    """By reference."""

    @property
    def ruling(self) -> Ruling:
        """The worst of its rulings."""
        return worst([one.ruling for one in self.judged.values()])

    def record(self) -> CertifiedAnswer:
        """As it is written down."""
        found, answer = self.found, self.found.answer
        return CertifiedAnswer(
            prompt_id=self.prompt_id,
            seed=self.seed,
            ruling=self.ruling,
            num_tokens=len(answer.token_ids),
            finish_reason=answer.finish_reason,
            num_passes=len(answer.passes),
            num_drafted=answer.num_drafted,
            num_accepted=answer.num_accepted,
            rows_of_passes=sorted({one.shape.num_rows for one in answer.passes}),
            floor=found.floor,
            yardstick=found.yardstick if found.transformers is not None else None,
            num_states_differing=found.num_states_differing,
            state_distance=_finite(found.state_distance),
            references={name: _against(against, self.judged[name]) for name, against in found.references.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The outcome of a certification."""

    provenance: Mapping[str, Any]
    """The fields of `CertificateRecord` up to `settings`: command, commit, versions, hardware, model, ..."""
    method: str
    answers: Sequence[ComparedAnswer]
    tests: Sequence[LawTest]
    wall_s: float

    @cached_property
    def adjusted(self) -> list[float]:
        """The tests' p-values, corrected for their number (Holm)."""
        return holm([test.p_value for test in self.tests])

    @property
    def floor(self) -> Floor:
        """Of the whole run."""
        floor = Floor()
        for answer in self.answers:
            floor |= answer.found.floor
        return floor

    @property
    def yardstick(self) -> float:
        """Of the whole run."""
        return max((answer.found.yardstick for answer in self.answers), default=0.0)

    @property
    def num_drafted(self) -> int:
        return sum(answer.found.answer.num_drafted for answer in self.answers)

    def faults(self) -> list[str]:
        """What the verdict FAULT rests on, a line each."""
        lines = [
            f"{_title(answer)}, against {name}: {judged.reason}{_place(answer.found.references[name].divergence)}"
            for answer in self.answers
            for name, judged in answer.judged.items()
            if judged.ruling == "fault"
        ]
        for test, adjusted in zip(self.tests, self.adjusted, strict=True):
            if adjusted < ALPHA:
                lines.append(f"{test.rule} samples do not follow the target's law (p = {adjusted:.2g})")
        return lines

    def doubts(self) -> list[str]:
        """What keeps a run without faults from passing, a line each."""
        lines = [
            f"{_title(answer)}, against {name}: {judged.reason}{_place(answer.found.references[name].divergence)}"
            for answer in self.answers
            for name, judged in answer.judged.items()
            if judged.ruling == "undecided"
        ]
        if self.method != "plain" and not self.num_drafted:
            lines.append("the method drafted nothing, so nothing was tested; give it a tree of fixed size (--total)")
        return lines

    @property
    def verdict(self) -> str:
        """Lossless up to rounding: some answer differs from a reference that runs other shapes, none by a fault."""
        if self.faults():
            return FAULT
        if self.doubts():
            return INCONCLUSIVE
        rounding = any(answer.ruling == "rounding" for answer in self.answers)
        return ROUNDING if rounding else LOSSLESS

    def totals(self, *, greedy: bool) -> list[Total]:
        """The greedy or the seeded answers against each reference."""
        chosen = [answer for answer in self.answers if (answer.seed is None) == greedy]
        names = dict.fromkeys(name for answer in chosen for name in answer.judged)
        return [_total(name, chosen) for name in names]

    def record(self) -> CertificateRecord:
        """As it is written down."""
        tests = [
            AdjustedTest(**asdict(test), adjusted_p_value=adjusted)
            for test, adjusted in zip(self.tests, self.adjusted, strict=True)
        ]
        return CertificateRecord(
            **self.provenance,
            method=self.method,
            verdict=self.verdict,
            faults=self.faults(),
            doubts=self.doubts(),
            floor=self.floor,
            yardstick=self.yardstick,
            greedy=self.totals(greedy=True),
            seeded=self.totals(greedy=False),
            distribution=Distribution(alpha=ALPHA, tests=tests, num_tokens=NUM_TOKENS),
            wall_s=round(self.wall_s, 1),
            answers=[answer.record() for answer in self.answers],
        )


def _total(name: str, answers: Sequence[ComparedAnswer]) -> Total:
    against = [answer.found.references[name] for answer in answers]
    rulings = Counter(answer.judged[name].ruling for answer in answers)
    num_tokens = sum(one.num_compared for one in against)
    num_diverged = sum(one.divergence is not None for one in against)
    return Total(
        reference=name,
        num_answers=len(answers),
        num_tokens=num_tokens,
        num_diverged=num_diverged,
        rulings={ruling: rulings[ruling] for ruling in RULINGS},
        divergences_per_token=num_diverged / num_tokens if num_tokens else 0.0,
    )


def _title(answer: ComparedAnswer) -> str:
    return f"prompt {answer.prompt_id}, {'greedy' if answer.seed is None else f'seed {answer.seed}'}"


def _place(divergence: Divergence | None) -> str:
    return "" if divergence is None else f", from generated token {divergence.index} on"


def _against(against: Against, judged: Judged) -> RuledAgainst:
    divergence = against.divergence
    return RuledAgainst(
        ruling=judged.ruling,
        reason=judged.reason,
        num_compared=against.num_compared,
        logit_distance=_finite(against.logit_distance),
        divergence=None if divergence is None else _difference(divergence),
    )


def _difference(divergence: Divergence) -> Difference:
    return Difference(**asdict(divergence) | {"shortfall": _finite(divergence.shortfall)})


def _finite(number: float) -> float | None:
    """JSON has no infinity; None stands for it."""
    return number if math.isfinite(number) else None
