"""Training of the demo target: a small Llama on the weighted mix, within a wall-clock or step budget.

The learning rate warms up, stays, then falls linearly to zero over the final phase (warmup-stable-decay), so the end
may be chosen, or moved on resuming, at any time before that. Matrices inside the layers are trained by Muon, embeddings
and norms by AdamW; weights are float32, the arithmetic bf16 autocast. A checkpoint holds everything: a resumed run of a
step budget continues bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from slipstream.errors import ArtifactError, InputError
from slipstream.training.data.corpus import MIX, PackedStream, Source
from slipstream.training.data.encoded import Corpus, held_out_rows, prepare, write_atomically
from slipstream.training.data.held_out import TaskBits, bits_per_byte, packed_losses
from slipstream.training.data.tokenizer import BOS, END, PAD, SPECIAL_TOKENS
from slipstream.training.next_token import split_rows, token_losses
from slipstream.training.settings import Budget, TargetSettings, learning_rate

CHECKPOINT, BEST, LOG = "checkpoint.pt", "best.safetensors", "log.json"


# --- model ----------------------------------------------------------------------------------------------------------


def build_model(settings: TargetSettings) -> Any:
    """A freshly initialised LlamaForCausalLM; projections into the residual stream are scaled by 1/sqrt(2 layers)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_kv_heads,
        head_dim=settings.hidden_size // settings.num_heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        initializer_range=0.02,
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(END),
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_((2 * settings.num_layers) ** -0.5)
    return model


def build_optimizers(model: Any, settings: TargetSettings) -> list[torch.optim.Optimizer]:
    """Muon (arXiv 2502.16982, update scaled to AdamW's) for the layers' matrices, AdamW for the rest."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    outer = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in n)]
    return [
        torch.optim.Muon(
            inner, lr=settings.learning_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(outer, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


# --- the run --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Report:
    """One line of progress: every step's training loss, and the held-out losses when they were measured."""

    step: int
    progress: float
    """Share of the budget used, 0..1."""
    num_tokens: int
    """Tokens trained on so far."""
    elapsed_s: float
    """Training time so far, over all resumed parts."""
    tokens_per_second: float
    """Of this step."""
    learning_rate: float
    loss: float
    """Weighted mean cross-entropy of the step, nats per token."""
    held_out: dict[str, float] = field(default_factory=dict)
    """Task -> nats per token; empty when not measured at this step."""


class TargetRun:
    """One training run in a folder; `steps()` yields a Report per optimizer step until the budget is spent."""

    def __init__(
        self,
        data: Path,
        out: Path,
        budget: Budget,
        settings: TargetSettings | None = None,
        *,
        mix: Mapping[str, Source] = MIX,
        device: str = "cpu",
        compiled: bool = True,
        checkpoint_every_s: float = 240.0,
    ) -> None:
        self.settings = settings or TargetSettings()
        self.out, self.budget, self.device = out, budget, torch.device(device)
        out.mkdir(parents=True, exist_ok=True)
        self.corpus = prepare(data, out, self.settings.vocab_size, self.settings.context, mix)
        mix = self.corpus.mix
        self.model = build_model(self.settings).to(self.device)
        self.optimizers = build_optimizers(self.model, self.settings)
        seed = self.settings.seed
        self.streams = {
            "main": PackedStream(self.corpus.train, {n: s.main for n, s in mix.items()}, (seed, 0)),
            "final": PackedStream(self.corpus.train, {n: s.final for n, s in mix.items()}, (seed, 1)),
        }
        self.held_out = held_out_rows(self.corpus, min(1024, self.settings.context))
        self.step, self.num_tokens, self.elapsed_s, self.best = 0, 0, 0.0, math.inf
        self.history: list[dict[str, Any]] = []
        self._checkpoint_every_s = checkpoint_every_s
        self._losses = torch.compile(token_losses, dynamic=False) if compiled else token_losses

    def steps(self) -> Iterator[Report]:
        """Train until the budget is spent; checkpoints every few minutes and at the end."""
        saved_s = self.elapsed_s
        while (progress := self.budget.progress(self.elapsed_s, self.step)) < 1:
            started = time.perf_counter()
            rate, loss = self._train_step(progress)
            seconds = time.perf_counter() - started
            self.elapsed_s += seconds
            held_out: dict[str, float] = {}
            done = self.budget.progress(self.elapsed_s, self.step) >= 1
            if done or self.elapsed_s - saved_s >= self._checkpoint_every_s:
                started = time.perf_counter()
                held_out = self._measure_and_save(loss)
                self.elapsed_s += time.perf_counter() - started
                saved_s = self.elapsed_s
            speed = self.settings.tokens_per_step / seconds
            yield Report(self.step, progress, self.num_tokens, self.elapsed_s, speed, rate, loss, held_out)

    def _train_step(self, progress: float) -> tuple[float, float]:
        settings = self.settings
        rate = learning_rate(settings, self.step, progress)
        length = settings.row_length(progress)
        stream = self.streams["final" if progress >= 1 - settings.final_share else "main"]
        total = torch.zeros((), device=self.device)
        self.model.train()
        for _ in range(settings.tokens_per_step // settings.tokens_per_pass):
            rows = stream.take(settings.tokens_per_pass // length, length)
            inputs, labels, weights = split_rows(rows, settings.prompt_weight, self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                losses = self._losses(self.model, inputs, labels)
            loss = (losses * weights).sum() / weights.sum() * (settings.tokens_per_pass / settings.tokens_per_step)
            torch.autograd.backward([loss])
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        self.step += 1
        self.num_tokens += settings.tokens_per_step
        return rate, float(total)

    def _measure_and_save(self, loss: float) -> dict[str, float]:
        self.model.eval()
        losses = packed_losses(self.model, self.held_out, self.device)
        mean = sum(losses.values()) / max(1, len(losses))
        self.history.append(
            {
                "step": self.step,
                "num_tokens": self.num_tokens,
                "elapsed_s": round(self.elapsed_s, 1),
                "train_loss": loss,
                "held_out": losses,
            }
        )
        if mean <= self.best:
            self.best = mean
            self._save_best()
        self._save_checkpoint()
        return losses

    # --- files ------------------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued."""
        return {**json.loads(json.dumps(asdict(self.settings))), "corpus": self.corpus.key}

    def _save_best(self) -> None:
        from safetensors.torch import save_file

        weights = {n: p.detach().cpu().contiguous() for n, p in self.model.named_parameters()}
        save_file(weights, self.out / f"{BEST}.tmp", metadata={"format": "pt", "step": str(self.step)})
        os.replace(self.out / f"{BEST}.tmp", self.out / BEST)

    def _save_checkpoint(self) -> None:
        state = {
            "identity": self.identity(),
            "model": {n: p.detach() for n, p in self.model.named_parameters()},
            "optimizers": [o.state_dict() for o in self.optimizers],
            "streams": {n: (s.pass_number, s.position) for n, s in self.streams.items()},
            "progress": (self.step, self.num_tokens, self.elapsed_s, self.best),
            "history": self.history,
        }
        torch.save(state, self.out / f"{CHECKPOINT}.tmp")
        os.replace(self.out / f"{CHECKPOINT}.tmp", self.out / CHECKPOINT)
        log = {"settings": self.identity(), "budget": asdict(self.budget), "losses": self.history}
        write_atomically(self.out / LOG, json.dumps(log, indent=1).encode())

    def resume(self) -> bool:
        """Continue from the folder's checkpoint, if there is one. Raises InputError if its settings differ."""
        path = self.out / CHECKPOINT
        if not path.is_file():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        _check_identity(path, state["identity"], self.identity())
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state["model"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name, (pass_number, position) in state["streams"].items():
            self.streams[name].seek(pass_number, position)
        self.step, self.num_tokens, self.elapsed_s, self.best = state["progress"]
        self.history = state["history"]
        return True


def _check_identity(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [k for k in sorted({*saved, *wanted}) if saved.get(k) != wanted.get(k)]
    if differing:
        pairs = ", ".join(f"{k} {saved.get(k)!r} (now {wanted.get(k)!r})" for k in differing)
        raise InputError(
            f"{path} was trained with other settings: {pairs}. "
            "Use the same settings, another --out, or --no-resume to start over."
        )


def export(checkpoint_dir: Path, out_dir: Path) -> None:
    """Write the best weights of a run in bf16, with config, generation config and tokenizer, for `from_pretrained`."""
    from safetensors.torch import load_file, save_file
    from transformers import GenerationConfig

    if not (checkpoint_dir / BEST).is_file():
        raise ArtifactError(f"{checkpoint_dir} has no {BEST}: no checkpoint was written there yet.")
    saved = json.loads((checkpoint_dir / LOG).read_text())["settings"]
    saved.pop("corpus")
    saved["row_lengths"] = tuple(tuple(pair) for pair in saved["row_lengths"])
    model = build_model(TargetSettings(**saved))
    model.load_state_dict(load_file(checkpoint_dir / BEST), strict=False)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(out_dir)
    model.generation_config.save_pretrained(out_dir)
    weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}  # tied head: once
    save_file(weights, out_dir / "model.safetensors", metadata={"format": "pt"})
    (out_dir / "model.safetensors").chmod(0o644)
    for file in (checkpoint_dir / "tokenizer").iterdir():
        shutil.copyfile(file, out_dir / file.name)


def measure(exported: Path, corpus: Corpus, device: str = "cpu") -> list[TaskBits]:
    """Held-out bits per byte of an exported target; also written to `held_out.json` beside its folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).to(device).eval()
    table = bits_per_byte(model, corpus, torch.device(device))
    rows = [asdict(row) for row in table]
    write_atomically(exported.parent / "held_out.json", (json.dumps(rows, indent=1) + "\n").encode())
    return table
