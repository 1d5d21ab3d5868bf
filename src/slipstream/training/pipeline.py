"""`train demo`: everything that ships in `slipstream/demo`, as named steps that are skipped while nothing changed.

A step declares files it reads, settings, and files it writes. What it last ran with (the hashes of its inputs, its
settings and the hashes of its outputs) stands in a state file; a step runs again when any of it differs. A step that
is killed has no entry and starts again, or resumes from its own checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slipstream.errors import ArtifactError, InputError, unknown_choice
from slipstream.training.data.encoded import write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One unit of work of the pipeline."""

    name: str
    """Unique within the pipeline."""
    run: Callable[[], None]
    """Does the work; must leave every output in place."""
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """Label -> file or folder whose content the outputs depend on, e.g. the target's weights."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """JSON values the outputs depend on."""
    outputs: tuple[Path, ...] = ()
    """Files the step writes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one step."""

    name: str
    skipped: bool
    reason: str
    """Why it ran, or `unchanged`."""


class Pipeline:
    """Steps in their order, with the state file that remembers what each last ran with."""

    def __init__(self, steps: Sequence[Stage], state_file: Path) -> None:
        names = [step.name for step in steps]
        if duplicates := {name for name in names if names.count(name) > 1}:
            raise InputError(f"Stage names are used twice: {', '.join(sorted(duplicates))}.")
        self.steps, self._state_file = tuple(steps), state_file

    def run(self, only: str | None = None) -> Iterator[Outcome]:
        """Run what is not up to date, in order; `only` restricts it to one step. Yields after each step."""
        names = [step.name for step in self.steps]
        if only is not None and only not in names:
            raise unknown_choice("step", only, names)
        for step in self.steps:
            if only in (None, step.name):
                yield self._run_step(step)

    def _run_step(self, step: Stage) -> Outcome:
        reason = self.stale(step)
        if reason is None:
            return Outcome(step.name, True, "unchanged")
        logger.info("step %s: %s", step.name, reason)
        step.run()
        if missing := [str(path) for path in step.outputs if not path.exists()]:
            raise ArtifactError(f"Stage {step.name} ended without writing {', '.join(missing)}.")
        self._remember(step)
        return Outcome(step.name, False, reason)

    def stale(self, step: Stage) -> str | None:
        """Why a step has to run, or None when its outputs are up to date."""
        saved = self._state().get(step.name)
        if saved is None:
            return "never completed"
        if missing := [path.name for path in step.outputs if not path.exists()]:
            return f"output {missing[0]} is missing"
        record = self._record(step)
        for part in ("inputs", "settings", "outputs"):
            keys = sorted({*saved[part], *record[part]})
            if changed := [key for key in keys if saved[part].get(key) != record[part].get(key)]:
                return f"{part} changed: {', '.join(changed)}"
        return None

    def _record(self, step: Stage) -> dict[str, dict[str, Any]]:
        return {
            "inputs": {label: content_hash(path) for label, path in step.inputs.items()},
            "settings": json.loads(json.dumps(dict(step.settings))),
            "outputs": {str(path): content_hash(path) for path in step.outputs},
        }

    def _state(self) -> dict[str, Any]:
        if not self._state_file.is_file():
            return {}
        try:
            state: dict[str, Any] = json.loads(self._state_file.read_text())
        except ValueError as error:
            raise ArtifactError(
                f"{self._state_file} is not valid JSON ({error}). Delete it to run all steps."
            ) from error
        return state

    def _remember(self, step: Stage) -> None:
        state = {**self._state(), step.name: self._record(step)}
        self._state_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._state_file, (json.dumps(state, indent=1) + "\n").encode())


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of a folder's file names and contents. Raises InputError if there is neither."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path)}\0{content_hash(file)}\n".encode())
    elif path.is_file():
        with path.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    else:
        raise InputError(f"{path} does not exist, but a step of the pipeline reads it.")
    return digest.hexdigest()
