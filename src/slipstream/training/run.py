"""The training run that all drafters share: what differs between them is the recipe (`recipe.py`).

The target is frozen. `accelerate` places, parallelises and resumes the run, which lives in a folder: the artefact as
the recipe saves it, `training.json` with settings and losses, and in `state/` what resuming needs. A run that was
interrupted anywhere continues as if it never had been: order, noise and dropout follow from seed and step alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.drafting.recipe import Batch, Recipe, Report, Score, StepLosses
from slipstream.drafting.run_settings import PRECISIONS, RunSettings
from slipstream.errors import ArtifactError, InputError, SlipstreamError
from slipstream.target.target import Target
from slipstream.training.data.batches import Order, collate, split
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.data.encoded import write_atomically
from slipstream.training.data.features import GIB, FeatureSource

LOG, STATE = "training.json", "state"


class HeadRun:
    """One training run in a folder; `steps()` yields a report per optimizer step."""

    def __init__(
        self, target: Target, dialogues: Sequence[Dialogue], out: Path, settings: RunSettings, recipe: Recipe
    ) -> None:
        """recipe: with fresh weights on the target's device, drawn from the settings' seed.

        Raises InputError where there are too few dialogues or accelerate is not at hand.
        """
        self.target, self.out, self.settings, self.recipe = target, out, settings, recipe
        self.held_out, self.dialogues = split(dialogues, settings.held_out)
        self._text_hash = hashlib.sha256(repr([one.token_ids for one in dialogues]).encode()).hexdigest()[:16]
        self.accelerator = _accelerator(target, settings.precision)
        self._order = Order(len(self.dialogues), settings.seed)
        self._loader = self._batches()
        self.steps_per_epoch = len(self._loader)
        self.num_steps = settings.steps or max(1, round(settings.epochs * self.steps_per_epoch))
        how = recipe.optimisation
        parameters = [parameter for parameter in recipe.module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, betas=how.betas, weight_decay=how.weight_decay
        )
        self._module, self._optimizer = self.accelerator.prepare(recipe.module, optimizer)
        limit = int(settings.cache_gib * GIB / self.accelerator.num_processes) if recipe.needs_features else 0
        self.features = FeatureSource(target, self.dialogues, out / "features", limit)
        self._held_out_features = FeatureSource(target, self.held_out, None, 0)
        self.step, self.elapsed_s = 0, 0.0
        self.history: list[dict[str, Any]] = []
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file; give a folder for the run")
        if self.accelerator.is_main_process:
            out.mkdir(parents=True, exist_ok=True)

    def finish(self) -> None:
        """Continue what is in the folder, if anything, and train to the end."""
        self.resume()
        for _ in self.steps():
            pass

    # --- the loop ---------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[Report]:
        """Train to the end; measures, checkpoints and saves the artefact every `report_every` steps and at the end."""
        with frozen(self.target.model):
            while self.step < self.num_steps:
                for batch in self._rest_of_epoch():
                    yield self._advance(*batch)
                    if self.step == self.num_steps:
                        break

    def _advance(self, indices: list[int], ids: Tensor, answer: Tensor) -> Report:
        began = time.perf_counter()
        rate, losses = self._train_step(indices, ids, answer)
        self.step += 1
        due = self.step % self.settings.report_every == 0 or self.step == self.num_steps
        held_out = self.measure() if due else ()
        self.elapsed_s += time.perf_counter() - began
        report = Report(
            step=self.step,
            num_steps=self.num_steps,
            elapsed_s=self.elapsed_s,
            learning_rate=rate,
            loss=losses.total.item(),
            parts={name: loss.item() for name, loss in losses.parts.items()},
            accuracy=_accuracy(losses.score),
            held_out=held_out,
        )
        if due:
            self._save(report)
        return report

    def _train_step(self, indices: list[int], ids: Tensor, answer: Tensor) -> tuple[float, StepLosses]:
        rate = self._learning_rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._module.train()
        features = self.features(indices, ids) if self.recipe.needs_features else None
        seed = self._step_seed()
        torch.manual_seed(seed)
        losses = self.recipe.losses(self._module, Batch(ids, answer, features, seed))
        if not torch.isfinite(losses.total):
            raise SlipstreamError(
                f"the loss is {losses.total.item()} at step {self.step}; lower learning_rate, which is "
                f"{self.settings.learning_rate}"
            )
        self.accelerator.backward(losses.total)
        self._clip()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return rate, losses

    def _clip(self) -> None:
        how = self.recipe.optimisation
        if how.clip_value is not None:
            self.accelerator.clip_grad_value_(self._module.parameters(), how.clip_value)
        if how.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self._module.parameters(), how.clip_norm)

    def _step_seed(self) -> int:
        stream = self.step * self.accelerator.num_processes + int(self.accelerator.process_index)
        return self.settings.seed * 1_000_003 + int(stream)

    def _learning_rate(self) -> float:
        warmup = min(self.settings.warmup_steps, max(1, self.num_steps // 10))
        return self.settings.learning_rate * self.recipe.optimisation.rate(self.step, self.num_steps, warmup)

    @torch.no_grad()
    def measure(self) -> tuple[float, ...]:
        """Accuracy on the held-out dialogues by depth; () if there are none."""
        self._module.eval()
        module = self.accelerator.unwrap_model(self._module)
        scores = []
        for first in range(0, len(self.held_out), self.settings.batch_size):
            indices = list(range(first, min(first + self.settings.batch_size, len(self.held_out))))
            _, ids, answer = collate([(index, self.held_out[index]) for index in indices])
            ids, answer = ids.to(self.target.device), answer.to(self.target.device)
            features = self._held_out_features(indices, ids) if self.recipe.needs_features else None
            scores.append(self.recipe.measure(module, Batch(ids, answer, features, self.settings.seed)))
        if not scores:
            return ()
        correct, rows = (
            torch.stack(counts).sum(dim=0)
            for counts in zip(*((score.num_correct, score.num_rows) for score in scores), strict=True)
        )
        return _accuracy(Score(correct, rows))

    # --- data -------------------------------------------------------------------------------------------------------

    def _batches(self) -> Any:
        needed = self.settings.batch_size * self.accelerator.num_processes
        if len(self.dialogues) < needed:
            raise InputError(
                f"{len(self.dialogues)} dialogues are fewer than a batch of {needed}; give more data or a smaller batch"
            )
        items: Any = list(enumerate(self.dialogues))  # a list serves as a dataset
        loader: Any = torch.utils.data.DataLoader(
            items,
            batch_size=self.settings.batch_size,
            sampler=self._order,
            collate_fn=collate,
            drop_last=True,
        )
        return self.accelerator.prepare(loader)

    def _rest_of_epoch(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """The batches of the current epoch that have not been trained on."""
        from accelerate import skip_first_batches

        self._order.epoch, done = divmod(self.step, self.steps_per_epoch)
        yield from skip_first_batches(self._loader, done) if done else self._loader

    # --- files ------------------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be continued."""
        settings = json.loads(json.dumps({**asdict(self.settings), **self.recipe.identity}))
        return {
            **settings,
            "target": self.target.hash,
            "num_dialogues": len(self.dialogues) + len(self.held_out),
            "dialogues": self._text_hash,
            "num_processes": self.accelerator.num_processes,
        }

    def resume(self) -> bool:
        """Continue the run in the folder, if there is one. Raises InputError if its settings differ."""
        state, log, new = self.out / STATE, self.out / LOG, self.out / f"{STATE}.new"
        if not state.exists() and (new / LOG).is_file():
            new.rename(state)  # killed while the state was being replaced; the log is the last file written to it
        if not (state / LOG).is_file():
            return False
        try:
            saved = json.loads((state / LOG).read_text())
        except ValueError as error:
            raise ArtifactError(f"{state / LOG} is not valid JSON ({error}); delete {state} to start over") from error
        wanted = self.identity()
        differing = [key for key in wanted if saved["settings"].get(key) != wanted[key]]
        if differing:
            pairs = ", ".join(f"{key} {saved['settings'].get(key)!r} (now {wanted[key]!r})" for key in differing)
            raise InputError(
                f"the run in {self.out} has other settings: {pairs}. Use the same settings or another folder, or "
                f"delete {log.parent} to start over."
            )
        self.accelerator.load_state(str(state))
        self.step, self.elapsed_s, self.history = saved["step"], saved["elapsed_s"], saved["losses"]
        return True

    def _save(self, report: Report) -> None:
        """The artefact, the log, and the state for resuming, which is replaced as a whole."""
        self.history.append(report.entry())
        new = self.out / f"{STATE}.new"
        self.accelerator.save_state(str(new))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            log = {
                "settings": self.identity(),
                "versions": {"torch": torch.__version__},
                "step": self.step,
                "elapsed_s": self.elapsed_s,
                "losses": self.history,
            }
            content = json.dumps(log, indent=1).encode()
            (new / LOG).write_bytes(content)
            self.recipe.save(self.out, self.step)  # first: a state that says "finished" must never lack its artefact
            write_atomically(self.out / LOG, content)
            old = self.out / f"{STATE}.old"
            shutil.rmtree(old, ignore_errors=True)
            if (self.out / STATE).exists():
                (self.out / STATE).rename(old)  # renamed as a whole: a state is never half removed
            new.rename(self.out / STATE)
            shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """No gradients for the model's weights, as they were before on leaving."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _accelerator(target: Target, precision: str) -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise InputError("training a draft head needs accelerate: pip install 'slipstream-llm[train]'") from error
    accelerator = Accelerator(mixed_precision=PRECISIONS[precision], cpu=target.device.type == "cpu")
    if accelerator.device.type != target.device.type:
        raise InputError(
            f"the target is on {target.device}, but accelerate works on {accelerator.device}; load it there"
        )
    return accelerator


def _accuracy(score: Score) -> tuple[float, ...]:
    return tuple((score.num_correct / score.num_rows.clamp(min=1)).tolist())
