"""Several methods on the same prompts in one run, every answer compared with plain decoding token by token.

All methods answer one prompt before any sees the next, and who goes first rotates, so that a machine that slows down
or speeds up hits all alike. An answer that differs from plain decoding is generated again by both in float64: if these
are identical the difference was rounding (a pass over many rows rounds differently from a pass over one), otherwise it
is a fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, Literal, get_args

from slipstream.bench.repetition import Repetition, repetition
from slipstream.prompts import Prompt

if TYPE_CHECKING:
    from slipstream import Model, Output, Stats

PLAIN = "plain"
Verdict = Literal["identical", "rounding", "fault"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One method's answer to one turn of a prompt."""

    prompt: Prompt
    turn: int
    """0-based."""
    method: str
    temperature: float
    output: Output
    verdict: Verdict
    """Against plain decoding; plain itself is identical."""
    first_difference: int | None
    """Index of the first generated token that differs from plain decoding's, in the run's own dtype."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "prompt_id": self.prompt.id,
            "kind": self.prompt.kind,
            "turn": self.turn,
            "method": self.method,
            "temperature": self.temperature,
            "verdict": self.verdict,
            "first_difference": self.first_difference,
            **self.output.to_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What to run. `plain` must be among the models: it is the reference of every comparison."""

    models: Mapping[str, Model]
    """By method name, all over the same target."""
    exact: Callable[[str], Model]
    """The same by name in float64, asked for only when an answer differs."""
    temperatures: Sequence[float] = (0.0, 1.0)
    seed: int = 0
    max_new_tokens: int = 64

    def warm_up(self, prompt: Prompt) -> None:
        """A short answer from every model, so that no first call is timed."""
        for model in self.models.values():
            model.generate(_opening(prompt), max_new_tokens=8, temperature=0.0)

    def num_answers(self, prompt: Prompt) -> int:
        """How many answers `answers` yields for a prompt."""
        return len(prompt.turns) * len(self.temperatures) * len(self.models)

    def answers(self, prompt: Prompt, *, first: int = 0) -> Iterator[Answer]:
        """All answers to one prompt: temperature by temperature, turn by turn, method by method.

        first: number of the method that goes first (modulo their count). Before a second turn, plain's answer to the
        first one stands as the assistant's for every method.
        """
        for temperature in self.temperatures:
            messages: Messages = []
            for turn, text in enumerate(prompt.turns):
                messages.append({"role": "user", "content": text})
                answers = self._turn(prompt, turn, messages, temperature, first)
                yield from answers.values()
                messages.append({"role": "assistant", "content": answers[PLAIN].output.text})

    def _turn(self, prompt: Prompt, turn: int, messages: Messages, temperature: float, first: int) -> dict[str, Answer]:
        order = _rotated(list(self.models), first)
        outputs = {method: self._generate(self.models[method], messages, temperature) for method in order}
        answers = {}
        for method in self.models:
            difference = first_difference(outputs[method].token_ids, outputs[PLAIN].token_ids)
            answers[method] = Answer(
                prompt=prompt,
                turn=turn,
                method=method,
                temperature=temperature,
                output=outputs[method],
                verdict="identical" if difference is None else self._judge(method, messages, temperature),
                first_difference=difference,
            )
        return answers

    def _judge(self, method: str, messages: Messages, temperature: float) -> Verdict:
        ours, plain = (self._generate(self.exact(name), messages, temperature) for name in (method, PLAIN))
        return "rounding" if first_difference(ours.token_ids, plain.token_ids) is None else "fault"

    def _generate(self, model: Model, messages: Messages, temperature: float) -> Output:
        return model.generate(
            messages,
            max_new_tokens=self.max_new_tokens,
            temperature=temperature,
            seed=self.seed if temperature else None,
        )


@dataclass(frozen=True, slots=True)
class Totals:
    """One method at one temperature, added up over answers."""

    method: str
    temperature: float
    stats: Stats
    verdicts: Mapping[Verdict, int]
    """Number of answers of each verdict."""
    repetition: Repetition
    """Of the answers: a text that loops is easy to foresee."""

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Totals:
        """Add up answers (at least one) of one method at one temperature."""
        stats = reduce(add, (answer.output.stats for answer in answers))
        verdicts = Counter(answer.verdict for answer in answers)
        repeated = reduce(Repetition.plus, (repetition(answer.output.token_ids) for answer in answers))
        return cls(answers[0].method, answers[0].temperature, stats, verdicts, repeated)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "method": self.method,
            "temperature": self.temperature,
            **self.stats.to_dict(),
            "cycle_ms": self.stats.cycle_ms(),
            "repetition_rate": self.repetition.rate,
            "verdicts": {verdict: self.verdicts[verdict] for verdict in VERDICTS},
        }


def summarise(answers: Iterable[Answer]) -> list[Totals]:
    """Totals by temperature, then method, in the order in which they first appear."""
    groups: dict[float, dict[str, list[Answer]]] = {}
    for answer in answers:
        groups.setdefault(answer.temperature, {}).setdefault(answer.method, []).append(answer)
    return [Totals.of(group) for methods in groups.values() for group in methods.values()]


def first_difference(ours: Sequence[int], reference: Sequence[int]) -> int | None:
    """Index of the first token that differs, a missing one included; None if the sequences are equal."""
    for index, (a, b) in enumerate(zip(ours, reference, strict=False)):
        if a != b:
            return index
    return None if len(ours) == len(reference) else min(len(ours), len(reference))


def _opening(prompt: Prompt) -> Messages:
    return [{"role": "user", "content": prompt.turns[0]}]


def _rotated(names: list[str], first: int) -> list[str]:
    cut = first % len(names)
    return names[cut:] + names[:cut]
