"""The certificate: all that was compared and tested, and the verdict that follows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from slipstream.certify.chi_square import holm
from slipstream.certify.distribution import ALPHA, LawTest
from slipstream.certify.identity import Against, Comparison, Divergence
from slipstream.certify.judgement import RULINGS, Judged, Ruling, worst
from slipstream.certify.reference import Floor

Verdict = Literal["lossless", "lossless up to rounding", "FAULT", "inconclusive"]

PASSING: tuple[Verdict, ...] = ("lossless", "lossless up to rounding")


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

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found, answer = self.found, self.found.answer
        return {
            "prompt_id": self.prompt_id,
            "seed": self.seed,
            "ruling": self.ruling,
            "num_tokens": len(answer.token_ids),
            "finish_reason": answer.finish_reason,
            "num_passes": len(answer.passes),
            "num_drafted": answer.num_drafted,
            "num_accepted": answer.num_accepted,
            "rows_of_passes": sorted({one.shape.num_rows for one in answer.passes}),
            "floor": asdict(found.floor),
            "yardstick": found.yardstick if found.transformers is not None else None,
            "num_states_differing": found.num_states_differing,
            "state_distance": _finite(found.state_distance),
            "references": {name: _against(against, self.judged[name]) for name, against in found.references.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """All answers of one way of decoding against one reference."""

    reference: str
    num_answers: int
    num_tokens: int
    """Tokens compared: those up to the first difference, in every answer."""
    num_diverged: int
    """Answers that differ somewhere."""
    rulings: Mapping[Ruling, int]

    @property
    def rate(self) -> float:
        """First differences per token compared."""
        return self.num_diverged / self.num_tokens if self.num_tokens else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"rulings": dict(self.rulings), "divergences_per_token": self.rate}


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The outcome of a certification."""

    provenance: Mapping[str, Any]
    """Command, commit, versions, hardware, model, settings."""
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
    def verdict(self) -> Verdict:
        """Lossless up to rounding: some answer differs from a reference that runs other shapes, none by a fault."""
        if self.faults():
            return "FAULT"
        if self.doubts():
            return "inconclusive"
        rounding = any(answer.ruling == "rounding" for answer in self.answers)
        return "lossless up to rounding" if rounding else "lossless"

    def totals(self, *, greedy: bool) -> list[Total]:
        """The greedy or the seeded answers against each reference."""
        chosen = [answer for answer in self.answers if (answer.seed is None) == greedy]
        names = dict.fromkeys(name for answer in chosen for name in answer.judged)
        return [_total(name, chosen) for name in names]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        tests = [
            test.to_dict() | {"adjusted_p_value": adjusted}
            for test, adjusted in zip(self.tests, self.adjusted, strict=True)
        ]
        return {
            **self.provenance,
            "method": self.method,
            "verdict": self.verdict,
            "faults": self.faults(),
            "doubts": self.doubts(),
            "floor": asdict(self.floor),
            "yardstick": self.yardstick,
            "greedy": [total.to_dict() for total in self.totals(greedy=True)],
            "seeded": [total.to_dict() for total in self.totals(greedy=False)],
            "distribution": {"alpha": ALPHA, "tests": tests},
            "wall_s": round(self.wall_s, 1),
            "answers": [answer.to_dict() for answer in self.answers],
        }


def _total(name: str, answers: Sequence[ComparedAnswer]) -> Total:
    against = [answer.found.references[name] for answer in answers]
    rulings = Counter(answer.judged[name].ruling for answer in answers)
    return Total(
        reference=name,
        num_answers=len(answers),
        num_tokens=sum(one.num_compared for one in against),
        num_diverged=sum(one.divergence is not None for one in against),
        rulings={ruling: rulings[ruling] for ruling in RULINGS},
    )


def _title(answer: ComparedAnswer) -> str:
    return f"prompt {answer.prompt_id}, {'greedy' if answer.seed is None else f'seed {answer.seed}'}"


def _place(divergence: Divergence | None) -> str:
    return "" if divergence is None else f", from generated token {divergence.index} on"


def _against(against: Against, judged: Judged) -> dict[str, Any]:
    divergence = against.divergence
    found = None
    if divergence is not None:
        found = asdict(divergence) | {"shortfall": _finite(divergence.shortfall)}
    return {
        "ruling": judged.ruling,
        "reason": judged.reason,
        "num_compared": against.num_compared,
        "logit_distance": _finite(against.logit_distance),
        "divergence": found,
    }


def _finite(number: float) -> float | None:
    """JSON has no infinity; None stands for it."""
    return number if math.isfinite(number) else None
