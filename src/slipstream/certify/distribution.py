"""Whether sampled answers follow the target's own law: the first three tokens under many seeds, by chi-square."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from slipstream.certify.chi_square import p_value, smallest_bias
from slipstream.certify.law import NUM_TOKENS, Cells, Text, target_cells
from slipstream.certify.options import Warping
from slipstream.certify.requests import make_request
from slipstream.core.sampling import SamplingSettings
from slipstream.drafting.base import Drafter
from slipstream.engine.engine import Engine
from slipstream.engine.sequence import Request
from slipstream.records.certificate import LawTest
from slipstream.target.target import Target

ALPHA = 1e-3
"""The probability that a certificate of a sound engine calls any of its tests a fault."""


@dataclass(frozen=True, slots=True)
class LawSubject:
    """A prompt, and the cells of what the target says after it."""

    prompt_id: int | str
    request: Request
    cells: Cells


def choose_subject(
    target: Target,
    prompts: Sequence[tuple[int | str, Sequence[int]]],
    warping: Warping,
    num_samples: int,
    advance: Callable[[], None] = lambda: None,
) -> LawSubject:
    """Of (id, token ids) the prompt whose continuations are spread over most cells: there a bias shows best."""
    subjects = []
    for number, ids in prompts:
        request = make_request(target, ids, NUM_TOKENS, warping.settings())
        subjects.append(LawSubject(number, request, target_cells(target, request, num_samples)))
        advance()
    return max(subjects, key=lambda subject: len(subject.cells.probabilities))


def run_law_test(
    target: Target,
    drafter: Drafter,
    subject: LawSubject,
    *,
    rule: str,
    first_seed: int,
    num_samples: int,
    num_tests: int,
    prefill_chunk: int,
    advance: Callable[[], None],
) -> LawTest:
    """Sample under seeds first_seed, first_seed + 1, ... num_tests: tests of the run, for the smallest bias."""
    engine = Engine(target, drafter, prefill_chunk=prefill_chunk)
    texts: list[Text] = []
    drafted = accepted = cycles = 0
    for number in range(num_samples):
        sampling = SamplingSettings(seed=first_seed + number, verification=rule)
        steps = list(engine.generate(replace(subject.request, sampling=sampling)))
        texts.append(tuple(token for step in steps for token in step.token_ids))
        cycles += len(steps)
        drafted += sum(step.num_drafted for step in steps)
        accepted += sum(step.num_accepted for step in steps)
        advance()
    cells = subject.cells
    return LawTest(
        rule=rule,
        prompt_id=subject.prompt_id,
        num_samples=num_samples,
        num_cells=len(cells.probabilities),
        p_value=p_value(cells.count(texts), [num_samples * one for one in cells.probabilities]),
        smallest_bias=smallest_bias(num_samples, len(cells.probabilities), ALPHA / num_tests),
        num_cycles=cycles,
        num_drafted=drafted,
        num_accepted=accepted,
    )
