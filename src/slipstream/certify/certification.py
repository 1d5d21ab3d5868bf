"""The whole test of one method: answers compared, then samples counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from slipstream.certify.certificate import Certificate, ComparedAnswer
from slipstream.certify.distribution import choose_subject, run_law_test
from slipstream.certify.identity import Comparison, compare
from slipstream.certify.judgement import judge
from slipstream.certify.options import CertifyOptions, Warping
from slipstream.certify.requests import GREEDY, make_request
from slipstream.core.sampling import VERIFICATIONS, SamplingSettings
from slipstream.errors import unknown_choice
from slipstream.prompts import Prompt
from slipstream.records.certificate import LawTest, Sampled, Tested

if TYPE_CHECKING:
    from slipstream import Model

Advance = Callable[[str], None]
"""Told the name of a part (`Certification.parts`) after each step of it."""

LAW_CANDIDATES = 6
"""Prompts, at most, among which the one for the distribution is chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifySettings(CertifyOptions):
    """What is tested."""

    rules: tuple[str, ...] = VERIFICATIONS
    """Verification rules whose distribution is tested."""
    warping: Warping = field(default_factory=Warping)
    """The distribution that is sampled."""

    def __post_init__(self) -> None:
        CertifyOptions.__post_init__(self)
        for rule in self.rules:
            if rule not in VERIFICATIONS:
                raise unknown_choice("verification", rule, VERIFICATIONS)


@dataclass(frozen=True, kw_only=True)
class Certification:
    """What to test."""

    model: Model
    prompts: Sequence[Prompt]
    """The first turn of each is answered."""
    settings: CertifySettings = field(default_factory=CertifySettings)
    in_float64: Callable[[], Model] | None = None
    """The same model and method in float64, asked for only where a difference needs it; None: there is none."""

    @property
    def num_samples(self) -> int:
        return len(self.settings.rules) * self.settings.num_samples

    @property
    def parts(self) -> dict[str, int]:
        """The parts of the test in their order, by the number of their steps.

        answers: each compared with its references; rulings: each judged, in float64 where in doubt; laws: prompts whose
        continuations are spread out, to choose one; samples: of that prompt.
        """
        num_answers = len(self.prompts) * (1 + self.settings.num_seeds)
        parts = {"answers": num_answers, "rulings": num_answers}
        if self.num_samples:
            parts |= {"laws": len(self.prompts[:LAW_CANDIDATES]), "samples": self.num_samples}
        return parts

    def run(self, provenance: Mapping[str, Any], advance: Advance = lambda part: None) -> Certificate:
        """Test everything."""
        began = time.perf_counter()
        compared = []
        for prompt in self.prompts:
            for seed in self._seeds():
                compared.append((prompt, seed, self._compare(self.model, prompt, seed)))
                advance("answers")
        yardstick = max((found.yardstick for _, _, found in compared), default=0.0)
        answers = []
        for prompt, seed, found in compared:
            answers.append(self._judged(prompt, seed, found, yardstick))
            advance("rulings")
        tests = self._law_tests(advance) if self.num_samples else []
        return Certificate(
            provenance={**provenance, "settings": _tested(self.settings)},
            method=self.model.method,
            answers=answers,
            tests=tests,
            wall_s=time.perf_counter() - began,
        )

    def _seeds(self) -> list[int | None]:
        first = self.settings.first_seed
        return [None, *range(first, first + self.settings.num_seeds)]

    def _compare(self, model: Model, prompt: Prompt, seed: int | None) -> Comparison:
        settings = GREEDY if seed is None else self.settings.warping.settings()
        sampling = SamplingSettings(seed=seed or 0)
        ids = model.encode(prompt.turns[0])
        request = make_request(model.target, ids, self.settings.max_new_tokens, settings, sampling)
        call = partial(compare, model.target, model.drafter, request, prefill_chunk=model.engine.prefill_chunk)
        return model.target.executor.settled(call)  # else a pass and its twin may be eager and compiled

    def _judged(self, prompt: Prompt, seed: int | None, found: Comparison, yardstick: float) -> ComparedAnswer:
        @cache
        def in_float64() -> Comparison | None:
            return None if self.in_float64 is None else self._compare(self.in_float64(), prompt, seed)

        return ComparedAnswer(prompt_id=prompt.id, seed=seed, found=found, judged=judge(found, yardstick, in_float64))

    def _law_tests(self, advance: Advance) -> list[LawTest]:
        model, settings = self.model, self.settings
        prompts = [(prompt.id, model.encode(prompt.turns[0])) for prompt in self.prompts[:LAW_CANDIDATES]]
        subject = choose_subject(
            model.target, prompts, settings.warping, settings.num_samples, partial(advance, "laws")
        )
        return [
            run_law_test(
                model.target,
                model.drafter,
                subject,
                rule=rule,
                first_seed=settings.first_seed,
                num_samples=settings.num_samples,
                num_tests=len(settings.rules),
                prefill_chunk=model.engine.prefill_chunk,
                advance=partial(advance, "samples"),
            )
            for rule in settings.rules
        ]


def _tested(settings: CertifySettings) -> Tested:
    warping = Sampled(**asdict(settings.warping))
    return Tested(**asdict(settings) | {"rules": list(settings.rules), "warping": warping})
