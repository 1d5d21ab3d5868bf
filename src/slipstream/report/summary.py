"""A record in words: what was measured, what came out, and what to beware of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slipstream.records.schema import ALL, PLAIN, TRANSFORMERS, Record, Row, Verdicts
from slipstream.report.names import count, several, task_name, temperature_name

FEW_ANSWERS = 30
"""Below this, a row's figures hang on single prompts."""
MUCH_REPETITION = 0.2
"""Share of repeated 4-grams from which on a greedy text counts as looping."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something to beware of. severe: it puts the figures in doubt."""

    text: str
    severe: bool = False


def setting(record: Record) -> str:
    """What was measured, in one paragraph."""
    run = record.run
    size = f" ({_parameters(run.num_parameters)})" if run.num_parameters else ""
    threads = f", {count(run.threads, 'thread')}" if run.device == "cpu" and run.threads else ""
    runtime = "" if run.runtime == "eager" else f", {run.runtime} passes"
    ours = sum(entrant.kind == "ours" for entrant in run.entrants)
    peers = len(run.entrants) - ours
    rows = f"{count(ours, 'entrant')} of this package" + (f" and {count(peers, 'peer')}" if peers else "")
    top_p = f", top-p {run.top_p:g}" if run.top_p is not None else ""
    samples = f", {run.samples} samples a prompt" if run.samples > 1 else ""
    repeats = ", each timed once" if run.repeats == 1 else f", each timed {run.repeats} times"
    temperatures = several([f"{one:g}" for one in record.temperatures or run.temperatures])
    return (
        f"Model {run.model}{size} in {run.dtype} on {run.hardware} (device {run.device}{threads}{runtime}). "
        f"{rows} answered {count(record.num_prompts_done, 'prompt')} of {several(task_names(record))} "
        f"({run.data}) at temperature {temperatures}{top_p}, at most {run.max_new_tokens} new tokens each"
        f"{samples}{repeats}, seed {run.seed}."
    )


def provenance(record: Record) -> str:
    """Versions, commit, date and duration."""
    run = record.run
    commit = f"commit {run.commit}" if run.commit else "commit unknown"
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    target = f" Target weights {run.target}." if run.target else ""
    peers = "".join(f" {name}: {one.software}, {one.weights}." for name, one in run.peers.items())
    return f"{versions}; {commit}; {run.date}; took {_duration(record.wall_s)}.{target}{peers}"


def headlines(record: Record) -> list[str]:
    """What came out: the fastest of ours at each temperature, what had the highest tau, and how many are identical."""
    found = [_headline(record, temperature) for temperature in record.temperatures]
    return [*(one for one in found if one), identity(record)]


def best_here(record: Record) -> str:
    """The last word: which method of ours to use on this machine, or that none is faster than plain decoding.

    A method counts as faster if it is so in tokens per second and, over answers, in the median of its ratios.
    """
    found = {temperature: _best(record, temperature) for temperature in record.temperatures}
    if not found:
        return "nothing was measured"
    if not any(found.values()):
        return "nothing is faster than plain here"
    where = {one: f" at {temperature_name(one)}" if len(found) > 1 else "" for one in found}
    parts = [
        f"{row.entrant}, {row.ratio_to_plain:.2f} times plain{where[one]}{_faster_peer(record, one, row)}"
        if row
        else f"nothing is faster than plain{where[one]}"
        for one, row in found.items()
    ]
    return f"best here: {'; '.join(parts)}"


def _faster_peer(record: Record, temperature: float, best: Row) -> str:
    """Other software that was faster still."""
    peer = _fastest_peer(record, temperature)
    if peer is None or _ratio(peer) <= _ratio(best):
        return ""
    return f" (the peer {peer.entrant}: {peer.ratio_to_plain:.2f})"


def _best(record: Record, temperature: float) -> Row | None:
    faster = [
        row
        for row in drafting_rows(record, temperature)
        if _ratio(row) > 1 and (row.ratio_to_plain_spread is None or row.ratio_to_plain_spread.median > 1)
    ]
    return max(faster, key=_ratio, default=None)


def identity(record: Record) -> str:
    """How many answers of ours were compared with plain's, and how many equal them."""
    total = ours_verdicts(record)
    if not total.total:
        return f"No answer of a method was compared with plain decoding's{_peers_identity(record)}."
    others = {"differ by rounding alone": total.rounding, "are faults": total.fault, "differ unjudged": total.differs}
    rest = "".join(f"; {number:,} {what}" for what, number in others.items() if number)
    return (
        f"{total.identical:,} of {count(total.total, 'answer')} of the methods have the same token ids as plain "
        f"decoding's{rest}{_peers_identity(record)}."
    )


def _peers_identity(record: Record) -> str:
    """The same of the peers, at the temperatures at which they can be compared."""
    peers = {one.name for one in record.run.entrants if one.kind == "peer"}
    rows = [row for one in record.temperatures for row in record.rows_of(ALL, one) if row.entrant in peers]
    total = _added(rows)
    rest = f", and {total.rounding:,} but for rounding" if total.rounding else ""
    return f"; of the peers', {total.identical:,} of {total.total:,}{rest}" if total.total else ""


def ours_verdicts(record: Record) -> Verdicts:
    """The verdicts of all methods of ours but plain, added up."""
    return _added([row for one in record.temperatures for row in drafting_rows(record, one)])


def _added(rows: Sequence[Row]) -> Verdicts:
    found = [row.verdicts for row in rows if row.verdicts is not None]
    return Verdicts(
        identical=sum(one.identical for one in found),
        rounding=sum(one.rounding for one in found),
        fault=sum(one.fault for one in found),
        differs=sum(one.differs for one in found),
    )


def drafting_rows(record: Record, temperature: float) -> list[Row]:
    """The rows of all tasks together of our methods that draft."""
    ours = {one.name for one in record.run.entrants if one.kind == "ours" and one.method != PLAIN}
    return [row for row in record.rows_of(ALL, temperature) if row.entrant in ours]


def notes(record: Record) -> list[Note]:
    """What a reader must know before believing the figures."""
    return [
        *_faults(record),
        *_incomplete(record),
        *_truncated(record),
        *_repetitive(record),
        *_few(record),
        *(Note(f"{name} was left out: {reason}") for name, reason in record.run.left_out.items()),
        *(Note(_continued(how)) for how in record.run.continued),
    ]


def task_names(record: Record) -> list[str]:
    """The tasks with answers; all asked for if there are none yet."""
    return [task_name(task) for task in record.measured_tasks or record.run.tasks] or ["no task"]


# Headlines


def _headline(record: Record, temperature: float) -> str | None:
    rows = drafting_rows(record, temperature)
    fastest = max((row for row in rows if row.ratio_to_plain is not None), key=_ratio, default=None)
    if fastest is None or fastest.ratio_to_plain is None:
        return None
    if fastest.ratio_to_plain > 1:
        text = f"{temperature_name(temperature)}: {fastest.entrant} is the fastest, {_speed(fastest)}"
    else:
        text = f"{temperature_name(temperature)}: no method is faster than plain; {fastest.entrant} comes nearest, "
        text += _speed(fastest)
    text += _best_peer(record, temperature)
    longest = max((row for row in rows if row.tau is not None), key=lambda row: row.tau or 0.0, default=None)
    if longest is None or longest is fastest:
        return f"{text}. {fastest.entrant} also has the highest tau." if longest else f"{text}."
    ratio = f" at {longest.ratio_to_plain:.2f} times plain's speed" if longest.ratio_to_plain is not None else ""
    return f"{text}. The highest tau is {longest.entrant}'s, {longest.tau:.2f}{ratio}."


def _best_peer(record: Record, temperature: float) -> str:
    """How fast other software was in the same run, be it faster or not."""
    best = _fastest_peer(record, temperature)
    text = f"; the fastest peer is {best.entrant}, {best.ratio_to_plain:.2f} times plain's" if best else ""
    others = (record.row(ALL, name, temperature) for name, peer in record.run.peers.items() if peer.is_another_model)
    known = (row for row in others if row is not None and row.ratio_to_plain is not None)
    return text + "".join(f"; {row.entrant}, another model, has {row.ratio_to_plain:.2f} times" for row in known)


def _fastest_peer(record: Record, temperature: float) -> Row | None:
    """Of those that run the very model."""
    other_models = {name for name, peer in record.run.peers.items() if peer.is_another_model}
    peers = {one.name for one in record.run.entrants if one.kind == "peer"} - other_models
    rows = (row for row in record.rows_of(ALL, temperature) if row.entrant in peers)
    return max((row for row in rows if row.ratio_to_plain is not None), key=_ratio, default=None)


def _speed(row: Row) -> str:
    """As in "1.45 times plain's tokens per second (median over answers 1.38, quartiles 1.10 to 1.61; tau 2.25)"."""
    spread = row.ratio_to_plain_spread
    parts = [f"median over answers {spread.median:.2f}, quartiles {spread.q1:.2f} to {spread.q3:.2f}"] if spread else []
    if row.ratio_to_transformers is not None:
        parts.append(f"{row.ratio_to_transformers:.2f} times that of transformers' plain")
    if row.tau is not None:
        parts.append(f"tau {row.tau:.2f}")
    return f"{row.ratio_to_plain:.2f} times plain's tokens per second" + (f" ({'; '.join(parts)})" if parts else "")


def _ratio(row: Row) -> float:
    return row.ratio_to_plain or 0.0


# Notes


def _faults(record: Record) -> list[Note]:
    total = ours_verdicts(record)
    found = []
    if total.fault:
        found.append(
            Note(
                f"{count(total.fault, 'answer')} differ from plain decoding in float64 too: faults. See the list.", True
            )
        )
    if total.differs:
        found.append(Note(f"{count(total.differs, 'answer')} differ from plain decoding and were not judged.", True))
    if total.rounding:
        text = (
            f"{count(total.rounding, 'answer')} differ from plain decoding in {record.run.dtype}, but not in float64."
        )
        found.append(Note(text))
    return found


def _incomplete(record: Record) -> list[Note]:
    if record.complete:
        return []
    done = f"{record.num_prompts_done:,} of {count(record.num_prompts, 'prompt')}"
    return [Note(f"The run is not complete: {done} done. slipstream bench run goes on with --resume.", severe=True)]


def _truncated(record: Record) -> list[Note]:
    cut = {task: found.num_truncated for task, found in record.tasks.items() if found.num_truncated}
    if not cut:
        return []
    limit = f" to {record.run.max_prompt_tokens:,} tokens" if record.run.max_prompt_tokens else ""
    parts = [f"{number} of {record.tasks[task].num_turns} of {task_name(task)}" for task, number in cut.items()]
    return [Note(f"Prompts were cut{limit} to fit: {several(parts)}.")]


def _repetitive(record: Record) -> list[Note]:
    row = record.row(ALL, PLAIN, 0.0)
    if row is None or row.repetition_rate is None or row.repetition_rate < MUCH_REPETITION:
        return []
    return [
        Note(
            f"At T = 0 the model repeats itself: {row.repetition_rate:.0%} of the 4-grams of its answers occurred in "
            "them before. Text that loops is easy to foresee, which flatters every method, and prompt lookup most."
        )
    ]


def _few(record: Record) -> list[Note]:
    found = []
    fewest = min((row.num_answers for one in record.temperatures for row in record.rows_of(ALL, one)), default=0)
    if fewest < FEW_ANSWERS:
        found.append(
            Note(f"Few answers: {fewest} in the smallest row of all tasks. Another sample may rank otherwise.")
        )
    if PLAIN not in {row.entrant for row in record.rows if row.num_answers}:
        found.append(Note("Plain decoding was not run: there are no speed-ups.", severe=True))
    elif any(one.kind == "peer" for one in record.run.entrants) and TRANSFORMERS not in {
        row.entrant for row in record.rows
    }:
        found.append(Note("transformers' own plain decoding was not run: there are no ratios to it."))
    return found


def _continued(how: Mapping[str, Any]) -> str:
    """When a run was gone on with, and what was different from its start."""
    changed = [
        f"{name} {', '.join(f'{key} {one}' for key, one in value.items()) if isinstance(value, Mapping) else value}"
        for name, value in how.items()
        if name != "date"
    ]
    return f"The run was interrupted and gone on with on {how.get('date', 'another day')}, under {'; '.join(changed)}."


# Numbers


def _parameters(number: int) -> str:
    for size, letter in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.1f} {letter} parameters"
    return f"{number:,} parameters"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
