"""What `slipstream certify` writes down, for writer and readers alike. What is compared: `docs/certificate.md`.

Names are made as in `slipstream.records.schema`. None stands for what was not measured, and for infinity. Fields with a
default are those that earlier versions did not write.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slipstream.errors import InputError
from slipstream.records.record import json_text, read_json
from slipstream.records.shapes import read_shape

FORMAT = 1
"""Version of the layout. It changes when a reader of the one before would misread a certificate, not for a new field.
Certificates written before there was a format have none; those that say all that is needed are read too."""

LOSSLESS, ROUNDING, FAULT, INCONCLUSIVE = "lossless", "lossless up to rounding", "FAULT", "inconclusive"
VERDICTS = (LOSSLESS, ROUNDING, FAULT, INCONCLUSIVE)
PASSING = (LOSSLESS, ROUNDING)


@dataclass(frozen=True, slots=True)
class Floor:
    """The rounding floor: by how much a row changes where nothing but the dummies changes, at most.

    Zero in both means that not one bit of the row depends on what other rows hold, nor on the run.
    """

    logits: float = 0.0
    hidden: float = 0.0
    num_passes: int = 0
    """Passes that were made again to measure it."""

    @property
    def is_zero(self) -> bool:
        return self.logits == 0.0 and self.hidden == 0.0

    def __or__(self, other: Floor) -> Floor:
        """Both measurements together."""
        return Floor(max(self.logits, other.logits), max(self.hidden, other.hidden), self.num_passes + other.num_passes)


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place at which an answer differs from a reference's."""

    index: int
    """Of the generated token."""
    token: int | None
    """Ours; None: our answer has ended."""
    reference_token: int | None
    """None: the reference's answer has ended, or ends here for another reason."""
    margin: float
    """By how much the reference's best score exceeds its second: logits, for a seeded answer log p + noise."""
    shortfall: float | None
    """By how much our token's score falls short of the reference's best; None where an answer has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuledAgainst:
    """One answer beside one reference, and the ruling on it."""

    ruling: str
    reason: str
    num_compared: int
    """Tokens compared, that of the difference included."""
    logit_distance: float | None
    """The largest distance of the reference's logits from those of the same-shape one, as far as the texts agree."""
    divergence: Difference | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedAnswer:
    """One answer of the method."""

    prompt_id: int | str
    seed: int | None
    """None: greedy."""
    ruling: str
    """The worst of those on its references."""
    num_tokens: int
    finish_reason: str
    num_passes: int
    num_drafted: int
    num_accepted: int
    rows_of_passes: list[int]
    """The different numbers of rows that its passes had."""
    floor: Floor
    yardstick: float | None
    """Rounding between transformers' own passes; None where the answer is seeded."""
    num_states_differing: int
    """Tokens whose last hidden state is not, bit for bit, that of the same-shape reference."""
    state_distance: float | None
    """The largest difference between those states."""
    references: dict[str, RuledAgainst]
    """By name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """All answers of one way of decoding against one reference."""

    reference: str
    num_answers: int
    num_tokens: int
    """Tokens compared: those up to the first difference, in every answer."""
    num_diverged: int
    """Answers that differ somewhere."""
    rulings: dict[str, int]
    """How many answers were ruled what."""
    divergences_per_token: float
    """num_diverged / num_tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LawTest:
    """One verification rule's samples against the target's law."""

    rule: str
    prompt_id: int | str
    num_samples: int
    num_cells: int
    p_value: float
    smallest_bias: float
    """Total variation distance from the law that would have been found 9 times in 10."""
    num_cycles: int
    num_drafted: int
    num_accepted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustedTest(LawTest):
    """One of several."""

    adjusted_p_value: float
    """Corrected for their number (Holm)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """The tests of the distribution."""

    alpha: float
    """An adjusted p-value below it is a fault."""
    tests: list[AdjustedTest]
    num_tokens: int = 3
    """The first ones of each sample are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The distribution that was sampled (`slipstream.certify.options.Warping`)."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """How much was tested (`slipstream.certify.CertifySettings`)."""

    max_new_tokens: int
    num_seeds: int
    first_seed: int
    num_samples: int
    rules: list[str]
    warping: Sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRecord:
    """A certificate: on what, of what, and all that was found."""

    command: str
    date: str
    """YYYY-MM-DD, in UTC."""
    commit: str | None
    """Of this package; None: an installed one."""
    versions: dict[str, str]
    """By package."""
    hardware: str
    device: str
    dtype: str
    """Of the target's weights."""
    model: str
    """What the user calls it."""
    target: str
    """Hash of the target's weights."""
    num_parameters: int
    num_threads: int
    """Of PyTorch on a CPU."""
    options: dict[str, Any]
    """Of the method."""
    settings: Tested
    method: str
    verdict: str
    """One of `VERDICTS`."""
    faults: list[str]
    """What the verdict FAULT rests on, a line each."""
    doubts: list[str]
    """What keeps a run without faults from passing, a line each."""
    floor: Floor
    """Of all answers."""
    yardstick: float
    """Of all answers."""
    greedy: list[Total]
    """The greedy answers, by reference."""
    seeded: list[Total]
    distribution: Distribution
    wall_s: float
    answers: list[CertifiedAnswer]
    runtime: str = "eager"
    """How passes of the target and of draft models were run: eager or compiled."""
    num_processes: int = 1
    """That shared the target's weights."""


def certificate_json(record: CertificateRecord) -> dict[str, Any]:
    """A certificate as JSON has it: what `parse_certificate` reads."""
    return {"format": FORMAT, **asdict(record)}


def write_certificate(record: CertificateRecord, path: Path) -> None:
    """Write it as JSON, one answer a line. Raises InputError where that cannot be."""
    try:
        path.write_text(json_text(certificate_json(record)), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def load_certificate(path: Path) -> CertificateRecord:
    """The certificate in a file. Raises InputError saying what is missing or damaged, or that it is older or newer."""
    if not path.is_file():
        raise InputError(f"there is no certificate {path}; `slipstream certify --out FILE` writes one")
    return parse_certificate(read_json(path), str(path))


def parse_certificate(data: Any, place: str = "certificate") -> CertificateRecord:
    """The certificate of parsed JSON. place: what to call it in messages."""
    if not isinstance(data, dict) or "verdict" not in data:
        raise InputError(f"{place} is no certificate; `slipstream certify --out FILE` writes one")
    version = data.get("format")
    if version not in (None, FORMAT):
        raise InputError(f"{place} is of format {version}, newer than this version reads ({FORMAT}); update slipstream")
    try:
        record = read_shape(CertificateRecord, data, place)
    except InputError as error:
        age = f"; it is older than format {FORMAT}: certify anew" if version is None else ""
        raise InputError(f"{error}{age}") from error
    if record.verdict not in VERDICTS:
        raise InputError(f"{place}.verdict is {record.verdict!r}; it must be one of {', '.join(VERDICTS)}")
    return record
