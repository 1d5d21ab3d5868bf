"""`bench run --peer`: which peers run in a process of their own, what each must be able to do, and their answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from slipstream.bench.entrants import Reply
from slipstream.bench.memory import peak_memory
from slipstream.bench.peers import PEERS
from slipstream.bench.processes.process import PeerProcess, environment_of_others
from slipstream.bench.processes.weights import smollm2_gguf
from slipstream.bench.settings import BenchSettings, EntrantSpec
from slipstream.core.logits.resolution import resolve
from slipstream.core.logits.settings import ProcessingSettings
from slipstream.errors import InputError, UnsupportedSettingError, UnsupportedTargetError, unknown_choice
from slipstream.files.packaged import SMOLLM2
from slipstream.output import Stats
from slipstream.records.schema import PeerSoftware
from slipstream.target import smollm2
from slipstream.target.target import Target

_CHILD = Path(__file__).with_name("child.py")
_HF_CHILD = "slipstream.bench.processes.hf_child"


@dataclass(frozen=True, slots=True)
class OtherSpec:
    """Software that is not transformers."""

    summary: str
    package: str
    """What pip installs."""
    module: str
    options: Sequence[str] = ()
    is_another_model: bool = False
    """Whether its weights are rounded otherwise than the target's: its answers are not compared."""


OTHERS: Mapping[str, OtherSpec] = {
    "llama-cpp": OtherSpec("llama.cpp on the target's own values", "llama-cpp-python", "llama_cpp", ("gguf",)),
    "llama-cpp-q4": OtherSpec(
        "llama.cpp on SmolLM2's file of 4-bit blocks: another model", "llama-cpp-python", "llama_cpp", (), True
    ),
}
PROCESS_PEERS = (*PEERS, *OTHERS)
"""All that `--peer` takes."""


def parse_peer(text: str) -> EntrantSpec:
    """Read what `--peer` takes: `[NAME=]PEER[:OPTION=VALUE,...]`. Raises InputError for what it does not."""
    name = text.partition(":")[0].rpartition("=")[2]
    if name not in PROCESS_PEERS:
        raise unknown_choice("peer", name, PROCESS_PEERS)
    spec = replace(EntrantSpec.parse(text, PROCESS_PEERS), process=True)
    known = OTHERS[name].options if name in OTHERS else [one for one in (PEERS[name].option,) if one]
    for option in spec.options:
        if option not in known:
            takes = f"; it takes {', '.join(known)}" if known else ", nor any other"
            raise InputError(f"the peer {name} takes no option {option!r}{takes}")
    return spec


@dataclass(frozen=True, slots=True)
class Interpreters:
    """Which Python runs which peer."""

    default: str = sys.executable
    by_peer: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, texts: Sequence[str], specs: Sequence[EntrantSpec]) -> Interpreters:
        """Read what `--peer-python` takes: `[PEER=]PATH`, of `specs`. Raises InputError for anything else."""
        default, by_peer = sys.executable, dict[str, str]()
        for text in texts:
            name, equals, path = text.partition("=")
            if not equals:
                default = text
            elif name in {spec.method for spec in specs}:
                by_peer[name] = path
            else:
                raise InputError(f"--peer-python names {name!r}, which is none of --peer; add it or leave it out")
        return cls(default, by_peer)

    def of(self, peer: str) -> str:
        """The path of a peer's."""
        return self.by_peer.get(peer, self.default)

    def check(self, specs: Sequence[EntrantSpec]) -> None:
        """Raises InputError where one is missing or lacks the software of its peer."""
        for spec in specs:
            if spec.method in OTHERS:
                self._check(spec.method, OTHERS[spec.method])

    def _check(self, name: str, other: OtherSpec) -> None:
        python = self.of(name)
        look = f"from importlib.util import find_spec; import sys; sys.exit(find_spec({other.module!r}) is None)"
        try:
            found = subprocess.run([python, "-c", look], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        except OSError as error:
            raise InputError(f"{name}: cannot run {python}: {error.strerror}; --peer-python names a Python") from error
        if found.returncode != 0:
            pip = "pip" if python == sys.executable else f"{python} -m pip"
            raise InputError(
                f"{name} needs {other.package}: {pip} install {other.package}, here or where --peer-python says"
            )


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


def is_another_model(spec: EntrantSpec) -> bool:
    """Whether an entrant's weights are not the target's."""
    return spec.method in OTHERS and OTHERS[spec.method].is_another_model


def has_float64(spec: EntrantSpec) -> bool:
    """Whether an answer of an entrant can be judged: whether it runs in float64 too."""
    return spec.method not in OTHERS


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
        file, weights = self._file(spec, target)
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

    def _file(self, spec: EntrantSpec, target: Target) -> tuple[Path, str]:
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
            return smollm2.source_file(), "4-bit blocks (Q4_1), from which the target was unpacked"
        return smollm2_gguf(dtype, self._tell), f"the target's own, a GGUF file in {dtype}"


def check_other(name: str, target: Target, settings: BenchSettings) -> None:
    """Raises InputError where software that is not transformers would run another device, dtype or distribution."""
    dtype = str(target.dtype).removeprefix("torch.")
    if target.device.type != "cpu":
        raise UnsupportedTargetError(f"{name} runs on the CPU here, the target on {target.device}; use --device cpu")
    if dtype not in ("bfloat16", "float32"):
        raise UnsupportedTargetError(f"{name} runs bfloat16 or float32, the target is {dtype}; use another --dtype")
    top_p = 1.0 if settings.top_p is None else settings.top_p
    for temperature in settings.temperatures:
        if top_p < 1 and temperature not in (0, 1):
            raise UnsupportedSettingError(
                f"{name} cuts the nucleus before the temperature, we after it: with --top-p use temperatures 0 and 1"
            )
        _check_processing(name, target, temperature, top_p)


def _check_processing(name: str, target: Target, temperature: float, top_p: float) -> None:
    """Raises UnsupportedSettingError for a model that asks for more than a temperature and a nucleus."""
    found = resolve(
        target.model.generation_config,
        {"temperature": temperature, "top_k": 0, "top_p": top_p},
        prompt_length=1,
        max_new_tokens=1,
        eos_token_ids=target.eos_token_ids,
    )
    known = ("prompt_length", "max_length", "eos_token_ids", "temperature", "top_k", "top_p")
    for one in fields(ProcessingSettings):
        if one.name not in known and getattr(found, one.name) != one.default:
            raise UnsupportedSettingError(
                f"the model's generation_config sets {one.name}, which the peer {name} is not given; leave it out"
            )
