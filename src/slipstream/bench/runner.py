"""One benchmark run: every entrant answers every prompt, and each prompt's answers go to the journal together.

All entrants answer a turn before any sees the next, and who goes first rotates, so that a machine that slows down or
speeds up hits all alike. Everyone continues the same conversation: before a second turn, plain decoding's answer stands
as the assistant's. An answer that differs from plain decoding's is generated again by both in float64: equal there, the
difference was rounding, otherwise it is a fault. Peers are judged alike wherever they can be compared and have a
float64; another model's answers are not compared.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from slipstream.bench.comparison import first_difference
from slipstream.bench.entrants import Answering, ExactEntrants, Reply
from slipstream.bench.processes.software import has_float64, is_another_model
from slipstream.bench.run_folder import check_same, holds_run
from slipstream.bench.settings import PLAIN, BenchSettings
from slipstream.bench.shards import share_of_tasks
from slipstream.bench.tasks import in_turns
from slipstream.bench.tree_picture import pictured
from slipstream.bench.tree_statistics import TreeTally
from slipstream.bench.truncation import Encoded, encode_within
from slipstream.errors import InputError
from slipstream.model import Model
from slipstream.prompts import Prompt
from slipstream.records.journal import Journal, answer_line
from slipstream.records.machine import provenance, shown_command
from slipstream.records.run_files import JOURNAL_FILE, SETTINGS_FILE, read_run, write_json
from slipstream.records.schema import Answer, CycleMs, PeerSoftware, Picture, TreeCounts
from slipstream.records.shapes import read_shape
from slipstream.runtime.kept_costs import KeptCosts
from slipstream.share import ALONE, Share

_HOW = ("dtype", "device", "runtime", "threads")
_WARM_UP_TOKENS = 8
_COST_CONTEXT = 64  # cached tokens
_JUDGED_PARAMETERS = 1e9  # up to so many, `judge="auto"` generates again in float64


@dataclass(frozen=True, slots=True)
class Plan:
    """What is left of a run when it starts or goes on."""

    num_answers: int
    """Answers that are left."""
    left_s: float
    """About how long they take, if each runs to the last token that it may have."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come."""

    num_done: int
    num_prompts: int
    prompt: Prompt
    """The one just finished."""
    left_s: float
    """Estimated from the prompts finished so far, without the warm-up."""


class Watcher:
    """Is told how a run fares. Does nothing; subclasses show it."""

    def warming_up(self, entrant: str, number: int, num_entrants: int) -> None:
        """An entrant, the number-th of all (from 1), is about to answer untimed."""

    def starting(self, plan: Plan) -> None:
        """The warm-up is over; the answers that count begin."""

    def answered(self, entrant: str) -> None:
        """One answer is there."""

    def finished(self, progress: Progress) -> None:
        """All answers to a prompt are there and kept."""


class BenchRun:
    """A run in a folder. Making it creates or checks the folder; `run` does the work."""

    def __init__(
        self,
        folder: Path,
        plain: Model,
        model: str,
        settings: BenchSettings,
        tasks: Mapping[str, Sequence[Prompt]],
        *,
        share: Share = ALONE,
        resume: bool = False,
    ) -> None:
        """plain: the target with plain decoding. model: what the user calls it. tasks: of all processes together.
        share: this one's. resume: go on in a folder of a run.

        Raises InputError for a folder that is in use without `resume`, ArtifactError for one of another run.
        """
        context = plain.target.context_length
        if context is not None and settings.max_new_tokens >= context:
            raise InputError(
                f"max_new_tokens is {settings.max_new_tokens}, but the model's context is {context}; ask for fewer"
            )
        self.folder, self.plain, self.settings = folder, plain, settings
        mine = share_of_tasks(tasks, share)
        self.prompts = list(in_turns(mine))
        self._run = {**_described_run(plain, model, settings, mine), **_described_share(share)}
        self._prepare(resume)
        self._journal = Journal(folder / JOURNAL_FILE)
        self._first = {(prompts[0].kind, prompts[0].id) for prompts in tasks.values()}

    @property
    def num_done(self) -> int:
        """Prompts that are finished."""
        return len(self._journal.done)

    @property
    def left(self) -> list[tuple[int, Prompt]]:
        """The prompts that are not, with their numbers."""
        done = self._journal.done
        return [(number, one) for number, one in enumerate(self.prompts) if (one.kind, one.id) not in done]

    def num_answers(self, num_entrants: int, *, left: bool = False) -> int:
        """How many answers the run has, or are left: of every entrant to every turn, at every temperature."""
        each = sum(self.settings.samples if one else 1 for one in self.settings.temperatures)
        prompts = [one for _, one in self.left] if left else self.prompts
        return each * num_entrants * _num_turns(prompts)

    def _prepare(self, resume: bool) -> None:
        if not holds_run(self.folder, resume=resume):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(self._run)
            return
        check_same(self.folder, {key: self._run[key] for key in ("settings", "target", *_HOW)})
        before = read_run(self.folder)
        changed = {key: self._run[key] for key in ("commit", "versions", "hardware") if before[key] != self._run[key]}
        if changed:
            before["continued"] = [*before.get("continued", []), {"date": self._run["date"], **changed}]
            self._write(before)

    def _write(self, run: Mapping[str, Any]) -> None:
        write_json(self.folder / SETTINGS_FILE, run)

    def measure_costs(self) -> None:
        """Time the target's pass over 1 to 64 rows, once a run."""
        run = read_run(self.folder)
        if "verify_cost" not in run:
            run["verify_cost"] = KeptCosts(self.plain.target, fresh=True).passes().at(_COST_CONTEXT)
            self._write(run)

    def leave_out(self, name: str, reason: str) -> None:
        """Remember that an entrant does not apply to this target."""
        run = read_run(self.folder)
        run["left_out"] = {**run.get("left_out", {}), name: reason}
        self._write(run)

    def describe_peers(self, peers: Mapping[str, PeerSoftware]) -> None:
        """Remember what runs in processes of its own, by entrant. Raises ArtifactError if the run has had others."""
        found, run = {name: asdict(one) for name, one in peers.items()}, read_run(self.folder)
        if "peers" in run:
            check_same(self.folder, {"peers": found})
        elif found:
            self._write({**run, "peers": found})

    def run(self, entrants: Mapping[str, Answering], exact: ExactEntrants, watcher: Watcher | None = None) -> None:
        """Warm up, then answer every prompt that is not finished yet."""
        watcher = watcher or Watcher()
        if not self.left:
            return
        expected = self._warm_up(entrants, watcher)
        watcher.starting(Plan(self.num_answers(len(entrants), left=True), self._left_s(expected)))
        for number, prompt in self.left:
            began = time.perf_counter()
            lines = list(map(answer_line, self._answers(prompt, number, entrants, exact, watcher)))
            self._journal.finish(prompt.kind, prompt.id, lines, time.perf_counter() - began)
            watcher.finished(Progress(self.num_done, len(self.prompts), prompt, self._left_s(expected)))

    def _warm_up(self, entrants: Mapping[str, Answering], watcher: Watcher) -> Mapping[str, float]:
        """Short answers from all, so that no first call is timed; returns the seconds that a full answer may take.

        That is measured once a run: one that goes on has each entrant answer once and reads the rest from the folder.
        """
        run = read_run(self.folder)
        known: dict[str, float] | None = run.get("expected_s")
        encoded = self._encode([{"role": "user", "content": self.left[0][1].turns[0]}])
        budget = min(_WARM_UP_TOKENS, self.settings.max_new_tokens)
        replies = {}
        for number, (name, entrant) in enumerate(entrants.items(), 1):
            watcher.warming_up(name, number, len(entrants))
            temperatures = self.settings.temperatures
            for temperature in temperatures[:1] if known else (*temperatures, temperatures[-1]):
                replies[name] = entrant.answer(encoded.ids, temperature, 0, budget)
        if known is None:
            prefill_s = replies[PLAIN].stats.prefill_s
            known = {name: self._full_answer_s(reply, prefill_s) for name, reply in replies.items()}
            self._write({**run, "expected_s": known})
        return known

    def _full_answer_s(self, reply: Reply, prefill_s: float) -> float:
        """Seconds of an answer as long as it may be, from a short one. prefill_s: plain decoding's of the prompt."""
        prefill_s = min(reply.stats.prefill_s or prefill_s, reply.total_s)
        each = (reply.total_s - prefill_s) / max(1, len(reply.token_ids))
        return round(prefill_s + each * self.settings.max_new_tokens, 4)

    def _left_s(self, expected: Mapping[str, float]) -> float:
        """By the pace of the turns that are finished; before there are any, by what a full answer may take."""
        num_left = _num_turns([one for _, one in self.left])
        if self.num_done:
            return self._journal.wall_s * num_left / (_num_turns(self.prompts) - num_left)
        return sum(expected.values()) * self.settings.repeats * self.num_answers(1, left=True)

    def _encode(self, messages: list[dict[str, str]]) -> Encoded:
        context = self.plain.target.context_length
        limits = [self.settings.max_prompt_tokens]
        limits.append(None if context is None else context - self.settings.max_new_tokens)
        return encode_within(self.plain, messages, min((one for one in limits if one is not None), default=None))

    def _answers(
        self, prompt: Prompt, number: int, entrants: Mapping[str, Answering], exact: ExactEntrants, watcher: Watcher
    ) -> Iterator[Answer]:
        for temperature in self.settings.temperatures:
            for sample in range(self.settings.samples if temperature else 1):
                messages: list[dict[str, str]] = []
                for turn, text in enumerate(prompt.turns):
                    messages.append({"role": "user", "content": text})
                    encoded = self._encode(messages)
                    rounds = self._rounds(encoded.ids, temperature, sample, number + turn, entrants, watcher)
                    place: dict[str, Any] = {
                        "task": prompt.kind,
                        "prompt_id": prompt.id,
                        "category": prompt.category,
                        "turn": turn,
                        "sample": sample,
                        "temperature": temperature,
                        "num_prompt_tokens": len(encoded.ids),
                        "num_tokens_cut": encoded.num_cut,
                    }
                    is_first = turn == sample == 0 and (prompt.kind, prompt.id) in self._first
                    for name in entrants:
                        replies = [one[name] for one in rounds]
                        difference = first_difference(replies[0].token_ids, rounds[0][PLAIN].token_ids)
                        verdict = self._verdict(
                            name, entrants[name], difference, encoded.ids, temperature, sample, exact
                        )
                        yield Answer(
                            **place,
                            entrant=name,
                            **self._figures(replies, is_first),
                            verdict=verdict,
                            first_difference=None if verdict is None else difference,
                        )
                    answer = rounds[0][PLAIN].token_ids
                    messages.append({"role": "assistant", "content": self._text(answer)})

    def _rounds(
        self,
        ids: list[int],
        temperature: float,
        sample: int,
        first: int,
        entrants: Mapping[str, Answering],
        watcher: Watcher,
    ) -> list[dict[str, Reply]]:
        """Each entrant's reply, once for every repeat."""
        rounds: list[dict[str, Reply]] = []
        for repeat in range(self.settings.repeats):
            names = list(entrants)
            cut = (first + repeat) % len(names)
            rounds.append({})
            for name in names[cut:] + names[:cut]:
                rounds[-1][name] = entrants[name].answer(ids, temperature, sample, self.settings.max_new_tokens)
                if repeat == self.settings.repeats - 1:
                    watcher.answered(name)
        return rounds

    def _verdict(
        self,
        name: str,
        entrant: Answering,
        difference: int | None,
        ids: list[int],
        temperature: float,
        sample: int,
        exact: ExactEntrants,
    ) -> str | None:
        """Against plain decoding; None where the two cannot be compared token by token."""
        sampled_freely = temperature > 0 and (entrant.is_peer or self.settings.verification == "rejection")
        if (sampled_freely and name != PLAIN) or is_another_model(entrant.spec):
            return None
        if difference is None:
            return "identical"
        if not self._judged or not has_float64(entrant.spec):
            return "differs"
        ours, plain = (
            exact[one].answer(ids, temperature, sample, self.settings.max_new_tokens).token_ids for one in (name, PLAIN)
        )
        return "rounding" if first_difference(ours, plain) is None else "fault"

    @property
    def _judged(self) -> bool:
        small = self.plain.target.model.num_parameters() <= _JUDGED_PARAMETERS
        return self.settings.judge == "float64" or (self.settings.judge == "auto" and small)

    def _figures(self, replies: Sequence[Reply], is_first: bool) -> dict[str, Any]:
        """Of an answer, fields of `Answer`: all of its first time, and every time's seconds.

        is_first: whether it is a task's first, of which a tree is kept to be drawn.
        """
        reply, stats = replies[0], replies[0].stats
        tally = TreeTally()
        for cycle in reply.cycles:
            if cycle.tree.num_nodes:
                tally.count(cycle)
        picture = pictured(reply.cycles, reply.token_ids, self.plain.tokenizer) if is_first else None
        return {
            "token_ids": reply.token_ids,
            "text": self._text(reply.token_ids),
            "seconds": [round(one.total_s, 6) for one in replies],
            "num_cycles": stats.num_cycles,
            "num_drafted": stats.num_drafted,
            "num_accepted": stats.num_accepted,
            "accept_lengths": stats.accept_lengths,
            "prefill_s": round(stats.prefill_s, 6),
            "cycle_ms": CycleMs(**{part: round(one, 4) for part, one in stats.cycle_ms().items()}),
            "memory_peak_gib": _rounded(reply.memory.peak_gib),
            "memory_growth_gib": _rounded(reply.memory.growth_gib),
            "trees": read_shape(TreeCounts, tally.to_dict(), "trees") if tally.num_cycles else None,
            "picture": None if picture is None else read_shape(Picture, picture, "picture"),
        }

    def _text(self, token_ids: Sequence[int]) -> str:
        text: str = self.plain.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text


def _described_run(
    plain: Model, model: str, settings: BenchSettings, tasks: Mapping[str, Sequence[Prompt]]
) -> dict[str, Any]:
    if plain.tokenizer is None:
        raise InputError("a benchmark needs the model's tokenizer")
    return {
        "format": 1,
        **provenance(plain.target, model, sys.argv),
        "runtime": plain.target.executor.name,
        "threads": torch.get_num_threads(),
        "settings": settings.to_dict(),
        "num_prompts": {name: len(prompts) for name, prompts in tasks.items()},
        "num_turns": {name: sum(len(one.turns) for one in prompts) for name, prompts in tasks.items()},
    }


def _described_share(share: Share) -> dict[str, Any]:
    """Nothing if the process is alone."""
    if share.world_size == 1:
        return {}
    command = f"RANK={share.rank} WORLD_SIZE={share.world_size} {shown_command(sys.argv)}"
    return {"share": [share.rank, share.world_size], "command": command}


def _num_turns(prompts: Sequence[Prompt]) -> int:
    return sum(len(one.turns) for one in prompts)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
