"""The training run that all drafters share: what differs between them is the recipe (`recipe.py`).

The target is frozen. `accelerate` places and parallelises the run, which lives in a folder: the artefact as the recipe
saves it, `training.json` with settings and losses, and in `state/` what resuming needs. A run that was interrupted
anywhere continues as if it never had been: order, noise and dropout follow from seed and step alone.

Several processes share the dialogues of a step, and only share them: losses and gradients are those of the step in one
process but for rounding, so a run may go on with another number of processes. Dropout alone draws otherwise.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor

from slipstream.drafting.recipe import Batch, Paths, Recipe, Report, Score, StepLosses, at_least_one
from slipstream.drafting.run_settings import AUTO, PRECISIONS, RunSettings
from slipstream.errors import ArtifactError, InputError, SlipstreamError
from slipstream.runtime.heartbeat import together
from slipstream.target.dtypes import multiplies_faster_in_bfloat16
from slipstream.target.target import Target
from slipstream.training.data.batches import Plan, laid_out, share, split
from slipstream.training.data.dialogues import Dialogue
from slipstream.training.data.encoded import write_atomically
from slipstream.training.data.features import GIB, FeatureSource
from slipstream.training.optimizers import build_optimizers

LOG, STATE = "training.json", "state"
WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer{}.bin"
"""Files of a state, as accelerate names them."""
_SEEDS = 1 << 63


class HeadRun:
    """One training run in a folder; `steps()` yields a report per optimizer step."""

    def __init__(
        self, target: Target, dialogues: Sequence[Dialogue], out: Path, settings: RunSettings, recipe: Recipe
    ) -> None:
        """recipe: with fresh weights on the target's device, drawn from the settings' seed.

        Raises InputError where there are too few dialogues or accelerate is not at hand.
        """
        settings = replace(settings, precision=suited_precision(target, settings.precision))
        self.target, self.out, self.settings, self.recipe = target, out, settings, recipe
        self.held_out, self.dialogues = split(dialogues, settings.held_out)
        self._text_hash = hashlib.sha256(repr([one.token_ids for one in dialogues]).encode()).hexdigest()[:16]
        self.accelerator = _accelerator(target, settings.precision)
        self.plan = Plan(
            [len(one.token_ids) for one in self.dialogues],
            batch_size=settings.batch_size,
            tokens_per_step=settings.tokens_per_step,
            seed=settings.seed,
        )
        _check_share(settings.batch_size, self.accelerator.num_processes)
        self.num_steps = settings.steps or self.plan.num_steps(settings.epochs)
        assert settings.learning_rate is not None, "the method has a rule"
        self._peak_rate = settings.learning_rate
        how = recipe.optimisation
        parameters = [parameter for parameter in recipe.module.parameters() if parameter.requires_grad]
        optimizers = build_optimizers(settings.optimizer, parameters, how, self._peak_rate, target.vocab_size)
        self._module, *self._optimizers = self.accelerator.prepare(recipe.module, *optimizers)
        limit = int(settings.cache_gib * GIB / self.accelerator.num_processes) if recipe.features else 0
        self.features = FeatureSource(target, self.dialogues, out / "features", limit, recipe.features)
        self._held_out_features = FeatureSource(target, self.held_out, None, 0, recipe.features)
        self.step, self.num_tokens, self.elapsed_s = 0, 0, 0.0
        self._stop_asked = False
        self._recent: deque[tuple[int, float]] = deque(maxlen=20)  # tokens and seconds of the latest steps
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
        """Train to the end; measures, checkpoints and saves the artefact every `report_every` steps and at the end.

        After `stop` it ends early, with everything saved. Raises SlipstreamError where another process is gone.
        """
        with frozen(self.target.model), together():
            for indices in self.plan.after(self.step):
                if self.step >= self.num_steps:
                    break
                yield self._advance(indices)
                if self.step < self.num_steps and self._stopping():
                    self._save()
                    break

    def stop(self) -> None:
        """End `steps` after the step at hand. May be called from a signal handler, and on any of several processes."""
        self._stop_asked = True

    def _stopping(self) -> bool:
        """Whether any process was asked to stop: all must save at the same step."""
        if self.accelerator.num_processes == 1:
            return self._stop_asked
        asked = torch.tensor([int(self._stop_asked)], device=self.accelerator.device)
        return bool(self.accelerator.gather(asked).any())

    def _advance(self, indices: Sequence[int]) -> Report:
        began = time.perf_counter()
        batch = self.batch(indices)
        rate, losses = self.train_step(batch)
        loss = losses.total.item()
        seconds = time.perf_counter() - began
        self.step += 1
        num_tokens = sum(len(self.dialogues[index].token_ids) for index in indices)
        self.num_tokens += num_tokens
        self._recent.append((num_tokens, seconds))
        due = self.step % self.settings.report_every == 0 or self.step == self.num_steps
        score = self._score() if due else None
        self.elapsed_s += time.perf_counter() - began
        report = Report(
            step=self.step,
            num_steps=self.num_steps,
            elapsed_s=self.elapsed_s,
            learning_rate=rate,
            loss=loss,
            parts={name: part.item() for name, part in losses.parts.items()},
            accuracy=_accuracy(losses.score),
            held_out=() if score is None else _accuracy(score),
            tau={} if score is None or score.paths is None else score.paths.tau(),
            right={} if score is None or score.paths is None else score.paths.shares(),
            num_tokens=self.num_tokens,
            tokens_per_s=sum(tokens for tokens, _ in self._recent) / sum(took for _, took in self._recent),
        )
        if due:
            self._save(report)
        return report

    def train_step(self, batch: Batch) -> tuple[float, StepLosses]:
        """One step of the optimizer on the shares of all processes. Returns the learning rate and the step's losses."""
        rate = self._learning_rate()
        for group in (group for one in self._optimizers for group in one.param_groups):
            group["lr"] = rate
        self._module.train()
        torch.manual_seed(batch.text_seeds[0])
        own = self.recipe.losses(self._module, batch)
        losses = self._of_all(own, batch.idle)
        if not torch.isfinite(losses.total):
            raise SlipstreamError(
                f"the loss is {losses.total.item()} at step {self.step}; lower learning_rate, which is "
                f"{self._peak_rate}"
            )
        self.accelerator.backward(own.total * (0.0 if batch.idle else 1.0))
        self._clip()
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return rate, losses

    def _clip(self) -> None:
        how = self.recipe.optimisation
        if how.clip_value is not None:
            self.accelerator.clip_grad_value_(self._module.parameters(), how.clip_value)
        if how.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self._module.parameters(), how.clip_norm)

    def _of_all(self, own: StepLosses, idle: bool) -> StepLosses:
        """The losses of the step from those of its shares, which are divided by mean counts (`Batch.divisor`)."""
        n, score = self.accelerator.num_processes, own.score
        if n == 1:
            return own
        found = [own.total / n, *(part / n for part in own.parts.values()), *score.num_correct, *score.num_rows]
        row = torch.stack([one.detach().double() for one in found])
        total, *values = self._sum_over_processes(row, idle)
        parts = dict(zip(own.parts, values[: len(own.parts)], strict=True))
        correct, rows = torch.stack(values[len(own.parts) :]).reshape(2, -1)
        return StepLosses(total, parts, Score(correct, rows))

    def _divisor(self, idle: bool, count: Tensor) -> Tensor:
        """A share's divisor: the step's, divided among the processes."""
        n: int = self.accelerator.num_processes
        return at_least_one(self._sum_over_processes(count, idle)) / n

    def _sum_over_processes(self, values: Tensor, idle: bool) -> Tensor:
        whole: Tensor = self.accelerator.reduce(torch.zeros_like(values) if idle else values.detach(), "sum")
        return whole

    def _learning_rate(self) -> float:
        warmup = min(self.settings.warmup_steps, max(1, self.num_steps // 10))
        return self._peak_rate * self.recipe.optimisation.rate(self.step, self.num_steps, warmup)

    def measure(self) -> tuple[float, ...]:
        """Accuracy on the held-out dialogues by depth; () if there are none."""
        score = self._score()
        return () if score is None else _accuracy(score)

    @torch.no_grad()
    def _score(self) -> Score | None:
        """Of the held-out dialogues; None if there are none."""
        self._module.eval()
        module = self.accelerator.unwrap_model(self._module)
        scores = []
        for index in range(len(self.held_out)):
            batch = self._batch(self.held_out, [index], [0], self._held_out_features)
            scores.append(self.recipe.measure(module, batch))
        return _sum(scores) if scores else None

    # --- data -------------------------------------------------------------------------------------------------------

    def batch(self, indices: Sequence[int]) -> Batch:
        """This process's share of the step at hand, dialogues of these numbers, with their features."""
        n = self.accelerator.num_processes
        places = share(len(indices), self.accelerator.process_index, n)
        batch = self._batch(self.dialogues, indices, places or [0], self.features)
        idle = not places
        return batch if n == 1 else replace(batch, divisor=partial(self._divisor, idle), idle=idle)

    def _batch(
        self, dialogues: Sequence[Dialogue], step: Sequence[int], places: Sequence[int], source: FeatureSource
    ) -> Batch:
        """Some of the dialogues of a step, whose numbers are `step`."""
        indices = [step[place] for place in places]
        chosen = [dialogues[index] for index in indices]
        ids, answer = (one.to(self.target.device) for one in laid_out(chosen))
        all_ids, all_answers = laid_out([dialogues[index] for index in step])
        seed = self.settings.seed * 1_000_003 + self.step
        return Batch(
            ids=ids,
            answer=answer,
            lengths=tuple(len(one.token_ids) for one in chosen),
            features=source(indices) if self.recipe.features else None,
            seed=seed,
            text_seeds=tuple((seed * 1_000_003 + place) % _SEEDS for place in places),
            step_answers=all_ids[all_answers].to(self.target.device),
        )

    # --- files ------------------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be continued."""
        settings = json.loads(json.dumps({**asdict(self.settings), **self.recipe.identity}))
        return {
            **settings,
            "target": self.target.hash,
            "num_dialogues": len(self.dialogues) + len(self.held_out),
            "dialogues": self._text_hash,
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
        self._load(state)
        self.step, self.elapsed_s, self.history = saved["step"], saved["elapsed_s"], saved["losses"]
        self.num_tokens = saved["num_tokens"]
        return True

    def _save(self, report: Report | None = None) -> None:
        """The artefact, the log, and the state for resuming, which is replaced as a whole."""
        if report is not None:
            self.history.append(report.entry())
        new = self.out / f"{STATE}.new"
        if self.accelerator.is_main_process:
            self._write(new)
            log = {
                "settings": self.identity(),
                "versions": {"torch": torch.__version__},
                "step": self.step,
                "num_tokens": self.num_tokens,
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

    def _write(self, folder: Path) -> None:
        """Weights and optimizers, which all processes hold alike."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        save_model(self.accelerator.unwrap_model(self._module), str(folder / WEIGHTS))
        for number, optimizer in enumerate(self._optimizers):
            torch.save(optimizer.state_dict(), folder / OPTIMIZER.format(f"_{number}" if number else ""))

    def _load(self, folder: Path) -> None:
        load_model(self.accelerator.unwrap_model(self._module), folder / WEIGHTS)
        for number, optimizer in enumerate(self._optimizers):
            file = folder / OPTIMIZER.format(f"_{number}" if number else "")
            optimizer.load_state_dict(torch.load(file, map_location=self.target.device, weights_only=True))


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """No gradients for the model's weights, as they were before on leaving.

    But for offloaded ones that accelerate has made anew in a pass without gradients: they cannot have any.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            if not parameter.is_inference():
                parameter.requires_grad_(True)


def _check_share(batch_size: int | None, num_processes: int) -> None:
    """Raise InputError where some processes would have nothing to do in any step."""
    if batch_size is not None and batch_size < num_processes:
        raise InputError(
            f"a step of {batch_size} dialogues cannot be shared among {num_processes} processes; give batch_size "
            f"{num_processes} or more (--batch-size), or start fewer processes"
        )


def suited_precision(target: Target, asked: str) -> str:
    """`asked`, or where that is auto what suits the target: a float32 target asks for float32 throughout."""
    if asked != AUTO:
        return asked
    return "bf16" if target.dtype == torch.bfloat16 and multiplies_faster_in_bfloat16(target.device) else "fp32"


def _accelerator(target: Target, precision: str) -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise InputError("training a draft head needs accelerate: pip install accelerate") from error
    accelerator = Accelerator(mixed_precision=PRECISIONS[precision], cpu=target.device.type == "cpu")
    if accelerator.device.type != target.device.type:
        raise InputError(
            f"the target is on {target.device}, but accelerate works on {accelerator.device}; load it there"
        )
    return accelerator


def _sum(scores: Sequence[Score]) -> Score:
    """Of several batches. Recipes count paths in all batches or in none."""
    paths = [one.paths for one in scores if one.paths is not None]
    return Score(
        torch.stack([one.num_correct for one in scores]).sum(dim=0),
        torch.stack([one.num_rows for one in scores]).sum(dim=0),
        Paths(
            paths[0].tops,
            torch.stack([one.num_starts for one in paths]).sum(dim=0),
            torch.stack([one.num_right for one in paths]).sum(dim=0),
        )
        if paths
        else None,
    )


def _accuracy(score: Score) -> tuple[float, ...]:
    return tuple((score.num_correct / score.num_rows.clamp(min=1)).tolist())
