"""`bench run --peer`: peers that run in processes of their own, and their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from slipstream.bench.entrants import Reply
from slipstream.bench.memory import peak_memory
from slipstream.bench.processes.process import PeerProcess, environment_of_others
from slipstream.bench.processes.software import OTHERS, Interpreters, check_other, is_another_model
from slipstream.bench.processes.weights import openvino_folder, smollm2_gguf
from slipstream.bench.settings import BenchSettings, EntrantSpec
from slipstream.errors import InputError
from slipstream.files.packaged import SMOLLM2
from slipstream.output import Stats
from slipstream.records.schema import PeerSoftware
from slipstream.target import smollm2
from slipstream.target.target import Target

_CHILD = Path(__file__).with_name("child.py")
_HF_CHILD = "slipstream.bench.processes.hf_child"


class ProcessEntrant:
    """One row of the tables that answers in a process of its own."""

    is_peer = True

    def __init__(
        self, spec: EntrantSpec, settings: BenchSettings, target: Target, process: PeerProcess, weights: str
    ) -> None:
        """weights: what its weights are, in words."""
        self.spec, self.name, self.target = spec, spec.name, target
        self._settings, self._process, self._weights = settings, process, weights

    @property
    def software(self) -> PeerSoftware:
        """What it is, for the record."""
        return PeerSoftware(self._process.software, self._weights, is_another_model(self.spec))

    def answer(self, prompt_ids: Sequence[int], temperature: float, sample: int, max_new_tokens: int) -> Reply:
        """As `Entrant.answer`. Raises SlipstreamError where the process fails or has ended."""
        context = self.target.context_length
        room = max_new_tokens if context is None else min(max_new_tokens, context - len(prompt_ids))
        request = {
            "prompt_ids": list(prompt_ids),
            "max_new_tokens": room,
            "temperature": temperature,
            "top_k": 0,
            "top_p": 1.0 if self._settings.top_p is None else self._settings.top_p,
            "seed": self._settings.seed + sample,
            "eos_token_ids": list(self.target.eos_token_ids),
        }
        with peak_memory(self.target.device, self._process.pid) as memory:
            found = self._process.ask(request)
        token_ids, lengths = list(found["token_ids"]), list(found["accept_lengths"])
        stats = Stats(
            num_tokens=len(token_ids),
            num_cycles=sum(lengths),
            accept_lengths=lengths,
            prefill_s=float(found["prefill_s"]),
        )
        return Reply(token_ids=token_ids, stats=stats, total_s=float(found["seconds"]), memory=memory, cycles=[])

    def close(self) -> None:
        """End the process."""
        self._process.close()


class Processes:
    """The processes of a run's peers."""

    def __init__(
        self, model: str, loading: Mapping[str, Any], interpreters: Interpreters, tell: Callable[[str], None]
    ) -> None:
        """model: as the user calls it. loading: what the user said of how it is loaded. tell: is given lines."""
        self._model, self._attention = model, loading.get("attention")
        self._interpreters, self._tell = interpreters, tell
        self._started: list[ProcessEntrant] = []

    def start(self, spec: EntrantSpec, target: Target, settings: BenchSettings) -> ProcessEntrant:
        """A peer's process, loaded. target: whose tokens it has to emit.

        Raises InputError, with the reason, where it cannot run the same model with the same settings.
        """
        self._tell(f"starting {spec.name} in a process of its own")
        start = self._other if spec.method in OTHERS else self._transformers
        self._started.append(start(spec, target, settings))
        return self._started[-1]

    @property
    def software(self) -> dict[str, PeerSoftware]:
        """What runs in them, by entrant."""
        return {one.name: one.software for one in self._started}

    def close(self) -> None:
        """End them."""
        for one in self._started:
            one.close()

    def _transformers(self, spec: EntrantSpec, target: Target, settings: BenchSettings) -> ProcessEntrant:
        dtype = str(target.dtype).removeprefix("torch.")
        loading = {"dtype": dtype, "device": str(target.device), "attention": self._attention}
        told = {
            "peer": spec.method,
            "options": dict(spec.options),
            "model": self._model,
            "loading": loading,
            "threads": torch.get_num_threads(),
        }
        command = [self._interpreters.of(spec.method), "-m", _HF_CHILD]
        return ProcessEntrant(
            spec, settings, target, PeerProcess(spec.name, command, told), f"the target's own, in {dtype}"
        )

    def _other(self, spec: EntrantSpec, target: Target, settings: BenchSettings) -> ProcessEntrant:
        check_other(spec.method, target, settings)
        if OTHERS[spec.method].files == "openvino":
            python = self._interpreters.of(spec.method)
            file, weights = openvino_folder(self._model, target, python, self._tell), "the target's own, exported"
        else:
            file, weights = self._gguf(spec, target)
        told = {
            "peer": spec.method,
            "model": str(file),
            "dtype": str(target.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "context": target.context_length,
            "vocab_size": target.vocab_size,
        }
        command = [self._interpreters.of(spec.method), str(_CHILD)]
        process = PeerProcess(spec.name, command, told, environment_of_others())
        return ProcessEntrant(spec, settings, target, process, weights)

    def _gguf(self, spec: EntrantSpec, target: Target) -> tuple[Path, str]:
        """Its GGUF file, and what that holds."""
        dtype = str(target.dtype).removeprefix("torch.")
        if (given := spec.options.get("gguf")) is not None:
            if not Path(given).is_file():
                raise InputError(f"{spec.name}: there is no file {given}; give the GGUF file of the target")
            return Path(given), f"{Path(given).name}, as it was given"
        if self._model != SMOLLM2:
            mend = f"give it: --peer {spec.method}:gguf=FILE" if OTHERS[spec.method].options else f"use -m {SMOLLM2}"
            raise InputError(f"{spec.name} has no GGUF file of {self._model}; {mend}")
        if is_another_model(spec):
            return smollm2.source_file(), "4-bit blocks, the file that the target was unpacked from"
        return smollm2_gguf(dtype, self._tell), f"the target's own, a GGUF file in {dtype}"
