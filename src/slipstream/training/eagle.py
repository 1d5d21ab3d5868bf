"""Training of an EAGLE head for any target (EAGLE, arXiv 2401.15077, section 3.2 and the released code).

The target is frozen; the head learns its features and, through its LM head, its distributions. As published: SmoothL1
on features plus 0.1 x cross-entropy, on answers; uniform noise on the features fed; gradients clipped by value; AdamW
with betas .9 and .95, linear warm-up and decay. `accelerate` places, parallelises and resumes the run.

A run lives in a folder: `config.json` and `model.safetensors` are the head in the published layout, `training.json`
the settings and losses, `state/` what resuming needs.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.drafters.eagle_checkpoint import save_head
from slipstream.drafters.eagle_head import EagleHead, HeadSizes
from slipstream.errors import ArtifactError, InputError, SlipstreamError
from slipstream.target import Target
from slipstream.training.batches import Order, collate, split
from slipstream.training.dialogues import Dialogue
from slipstream.training.eagle_settings import PRECISIONS, EagleSettings
from slipstream.training.encoded import write_atomically
from slipstream.training.features import GIB, FeatureSource
from slipstream.training.losses import Losses, RolloutLoss

LOG, STATE = "training.json", "state"
_BETAS = (0.9, 0.95)


@dataclass(frozen=True, slots=True)
class EagleReport:
    """Progress after one optimizer step."""

    step: int
    num_steps: int
    elapsed_s: float
    """Training time so far, over all resumed parts."""
    learning_rate: float
    loss: float
    """Weighted sum of all losses."""
    feature_loss: float
    """SmoothL1 of the first step ahead."""
    token_loss: float
    """Cross-entropy of the first step ahead, nats."""
    accuracy: tuple[float, ...]
    """Of this batch: share of rows whose first choice is the target's, by step ahead trained."""
    held_out: tuple[float, ...] = ()
    """The same on the held-out dialogues, by depth, when measured."""

    @property
    def left_s(self) -> float:
        """Estimate of the time that is left."""
        return self.elapsed_s / self.step * (self.num_steps - self.step)


def train_eagle(
    target: Target, dialogues: Sequence[Dialogue], out: Path, settings: EagleSettings | None = None
) -> EagleHead:
    """Train a head and save it in `out`; a run that was interrupted there is continued.

    Returns the head on the target's device and in its dtype. Raises InputError for unusable data or settings that
    differ from those of the run in `out`.
    """
    run = EagleRun(target, dialogues, out, settings)
    run.resume()
    for _ in run.steps():
        pass
    return run.head.place(target.device, target.dtype).requires_grad_(False).eval()


class EagleRun:
    """One training run in a folder; `steps()` yields a report per optimizer step."""

    def __init__(
        self, target: Target, dialogues: Sequence[Dialogue], out: Path, settings: EagleSettings | None = None
    ) -> None:
        self.target, self.out, self.settings = target, out, settings or EagleSettings()
        self.held_out, self.dialogues = split(dialogues, self.settings.held_out)
        self.accelerator = _accelerator(target, self.settings.precision)
        self._order = Order(len(self.dialogues), self.settings.seed)
        self._loader = self._batches()
        self.steps_per_epoch = len(self._loader)
        self.num_steps = self.settings.steps or max(1, round(self.settings.epochs * self.steps_per_epoch))
        torch.manual_seed(self.settings.seed)
        self.head = EagleHead(HeadSizes.like(target, fc_bias=self.settings.fc_bias)).to(target.device)
        optimizer = torch.optim.AdamW(self.head.parameters(), lr=self.settings.learning_rate, betas=_BETAS)
        loss = RolloutLoss(self.head, target)
        self._loss, self._optimizer = self.accelerator.prepare(loss, optimizer)
        limit = int(self.settings.cache_gib * GIB / self.accelerator.num_processes)
        self.features = FeatureSource(target, self.dialogues, out / "features", limit)
        self._held_out_features = FeatureSource(target, self.held_out, None, 0)
        self.step, self.elapsed_s = 0, 0.0
        self.history: list[dict[str, Any]] = []
        if self.accelerator.is_main_process:
            out.mkdir(parents=True, exist_ok=True)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[EagleReport]:
        """Train to the end; measures, checkpoints and saves the head every `report_every` steps and at the end."""
        with frozen(self.target.model):
            while self.step < self.num_steps:
                for batch in self._rest_of_epoch():
                    yield self._advance(*batch)
                    if self.step == self.num_steps:
                        break

    def _advance(self, indices: list[int], ids: Tensor, answer: Tensor) -> EagleReport:
        began = time.perf_counter()
        rate, losses, loss = self._train_step(indices, ids, answer)
        self.step += 1
        due = self.step % self.settings.report_every == 0 or self.step == self.num_steps
        held_out = self.measure() if due else ()
        self.elapsed_s += time.perf_counter() - began
        report = EagleReport(
            step=self.step,
            num_steps=self.num_steps,
            elapsed_s=self.elapsed_s,
            learning_rate=rate,
            loss=loss,
            feature_loss=float(losses.feature[0]),
            token_loss=float(losses.token[0]),
            accuracy=_accuracy(losses),
            held_out=held_out,
        )
        if due:
            self._save(report)
        return report

    def _train_step(self, indices: list[int], ids: Tensor, answer: Tensor) -> tuple[float, Losses, float]:
        settings = self.settings
        rate = self._learning_rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._loss.train()
        features = self.features(indices, ids)
        losses: Losses = self._loss(ids, features, answer, settings.steps_ahead, self._noise(features))
        each = settings.feature_weight * losses.feature + settings.token_weight * losses.token  # [steps ahead]
        loss = (each * settings.ahead_decay ** torch.arange(settings.steps_ahead, device=each.device)).sum()
        if not torch.isfinite(loss):
            raise SlipstreamError(
                f"the loss is {loss.item()} at step {self.step}; lower learning_rate, which is {settings.learning_rate}"
            )
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_value_(self._loss.parameters(), settings.clip_value)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return rate, losses.detach(), loss.item()

    def _noise(self, features: Tensor) -> Tensor:
        """Uniform noise of a step, drawn from a seed of its own, so that a resumed run sees the same."""
        stream = self.step * self.accelerator.num_processes + self.accelerator.process_index
        generator = torch.Generator(features.device).manual_seed(self.settings.seed * 1_000_003 + stream)
        unit = torch.rand(features.shape, generator=generator, device=features.device) * 2 - 1
        return unit * self.settings.noise

    def _learning_rate(self) -> float:
        """Linear up, linear down."""
        warmup = min(self.settings.warmup_steps, max(1, self.num_steps // 10))
        up = (self.step + 1) / max(1, warmup)
        down = (self.num_steps - self.step) / max(1, self.num_steps - warmup)
        return self.settings.learning_rate * min(1.0, up, down)

    @torch.no_grad()
    def measure(self) -> tuple[float, ...]:
        """Accuracy on the held-out dialogues by depth, the head fed with its own features; () if there are none.

        At depth d the first d - 1 drafted tokens are the text's own: the accuracy of a node whose path is right.
        """
        self._loss.eval()
        loss = self.accelerator.unwrap_model(self._loss)
        correct = torch.zeros(self.settings.measured_depth, device=self.target.device)
        rows = torch.zeros_like(correct)
        for first in range(0, len(self.held_out), self.settings.batch_size):
            indices = list(range(first, min(first + self.settings.batch_size, len(self.held_out))))
            _, ids, answer = collate([(index, self.held_out[index]) for index in indices])
            ids, answer = ids.to(self.target.device), answer.to(self.target.device)
            features = self._held_out_features(indices, ids)
            losses = loss(ids, features, answer, self.settings.measured_depth)
            correct += losses.num_correct
            rows += losses.num_rows
        return tuple((correct / rows.clamp(min=1)).tolist()) if self.held_out else ()

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
        settings = json.loads(json.dumps(asdict(self.settings)))
        return {
            **settings,
            "target": self.target.hash,
            "num_dialogues": len(self.dialogues) + len(self.held_out),
            "num_processes": self.accelerator.num_processes,
        }

    def resume(self) -> bool:
        """Continue the run in the folder, if there is one. Raises InputError if its settings differ."""
        state, log = self.out / STATE, self.out / LOG
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

    def _save(self, report: EagleReport) -> None:
        """The head, the log, and the state for resuming, which is replaced as a whole."""
        entry = asdict(report)
        entry["elapsed_s"] = round(entry["elapsed_s"], 1)
        self.history.append(entry)
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
            shutil.rmtree(self.out / STATE, ignore_errors=True)
            new.rename(self.out / STATE)
            save_head(self.head, self.out, self.target, {"steps": self.step, **_summary(self.settings)})
            write_atomically(self.out / LOG, content)
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


def _accuracy(losses: Losses) -> tuple[float, ...]:
    return tuple((losses.num_correct / losses.num_rows.clamp(min=1)).tolist())


def _summary(settings: EagleSettings) -> dict[str, Any]:
    """What of the settings goes into the head's config.json; all of them stand in training.json."""
    names = ("steps_ahead", "learning_rate", "feature_weight", "token_weight", "noise", "clip_value", "seed")
    return {name: getattr(settings, name) for name in names}
