"""Answers in the layout of Spec-Bench and EAGLE (one JSON line a question), so that their own scripts can read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slipstream.bench.record import seconds_of
from slipstream.records.schema import Answer


def write_answers(folder: Path, answers: Iterable[Answer], model: str) -> list[Path]:
    """Write one file an entrant and temperature, `ENTRANT-tT.jsonl`; returns their paths.

    Each line: question_id, category, answer_id, model_id, choices (one a sample: turns, decoding_steps, new_tokens,
    wall_time, accept_lengths) and tstamp, which is 0 so that equal answers make equal files. accept_lengths are the
    tokens of each pass, in ascending order: the journal keeps their histogram.
    """
    files: dict[tuple[str, float], dict[tuple[str, Any], dict[int, list[Answer]]]] = {}
    categories: dict[tuple[str, Any], str] = {}
    for one in answers:
        question = one.task, one.prompt_id
        categories[question] = one.category or one.task
        samples = files.setdefault((one.entrant, one.temperature), {}).setdefault(question, {})
        samples.setdefault(one.sample, []).append(one)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for (entrant, temperature), questions in files.items():
        path = folder / f"{entrant}-t{temperature:g}.jsonl"
        model_id = f"{model}-{entrant}-temperature-{temperature:g}"
        lines = [
            {
                "question_id": number,
                "category": categories[task, number],
                "answer_id": hashlib.sha256(f"{model_id} {task} {number}".encode()).hexdigest()[:22],
                "model_id": model_id,
                "choices": [_choice(index, turns) for index, turns in sorted(samples.items())],
                "tstamp": 0,
            }
            for (task, number), samples in questions.items()
        ]
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        written.append(path)
    return written


def _choice(index: int, turns: list[Answer]) -> dict[str, Any]:
    return {
        "index": index,
        "turns": [one.text for one in turns],
        "decoding_steps": [one.num_cycles for one in turns],
        "new_tokens": [len(one.token_ids) for one in turns],
        "wall_time": [seconds_of(one) for one in turns],
        "accept_lengths": [
            length for one in turns for length, count in enumerate(one.accept_lengths) for _ in range(count)
        ],
    }
