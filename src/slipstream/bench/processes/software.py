"""Which software runs in processes of its own, in whose Python, and what it has to be able to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from slipstream.bench.peers import PEERS
from slipstream.bench.settings import BenchSettings, EntrantSpec
from slipstream.core.logits.resolution import resolve
from slipstream.core.logits.settings import ProcessingSettings
from slipstream.errors import InputError, UnsupportedSettingError, UnsupportedTargetError, unknown_choice
from slipstream.target.target import Target


@dataclass(frozen=True, slots=True)
class OtherSpec:
    """Software that is not transformers."""

    files: Literal["gguf", "openvino"]
    """What it reads."""
    packages: str
    """What pip installs."""
    modules: Sequence[str]
    """What must be found of them."""
    options: Sequence[str] = ()
    is_another_model: bool = False
    """Whether its weights are rounded otherwise than the target's: its answers are not compared."""


_LLAMA_CPP = OtherSpec("gguf", "llama-cpp-python", ("llama_cpp",))
_OPENVINO = OtherSpec("openvino", "openvino-genai optimum-intel", ("openvino_genai", "optimum.intel"))
OTHERS: Mapping[str, OtherSpec] = {
    "llama-cpp": replace(_LLAMA_CPP, options=("gguf",)),
    "llama-cpp-q4": replace(_LLAMA_CPP, is_another_model=True),
    "openvino": _OPENVINO,
    "openvino-prompt-lookup": _OPENVINO,
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

    others: str = sys.executable
    """Of software that is not transformers."""
    by_peer: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, texts: Sequence[str], specs: Sequence[EntrantSpec]) -> Interpreters:
        """Read what `--peer-python` takes: `[PEER=]PATH`, of `specs`. Raises InputError for anything else."""
        peers, by_peer = {spec.method for spec in specs}, dict[str, str]()
        for text in texts:
            name, path = ("", text) if "=" not in text else text.split("=", 1)
            if name in by_peer:
                raise InputError(f"--peer-python is given twice for {name or 'all peers'}; leave one out")
            if name and name not in peers:
                raise InputError(f"--peer-python names {name!r}, which is none of --peer; add it or leave it out")
            if not name and not peers & set(OTHERS):
                raise InputError(f"--peer-python {text} is for {', '.join(OTHERS)}; add one, or leave it out")
            by_peer[name] = path
        return cls(by_peer.pop("", sys.executable), by_peer)

    def of(self, peer: str) -> str:
        """The path of a peer's."""
        return self.by_peer.get(peer, self.others if peer in OTHERS else sys.executable)

    def check(self, specs: Sequence[EntrantSpec]) -> None:
        """Raises InputError where one is missing or lacks the software of its peer."""
        for spec in specs:
            if spec.method in OTHERS:
                self._check(spec.method, OTHERS[spec.method])

    def _check(self, name: str, other: OtherSpec) -> None:
        python = self.of(name)
        look = f"from importlib.util import find_spec; assert all(map(find_spec, {list(other.modules)!r}))"
        try:
            found = subprocess.run([python, "-c", look], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        except OSError as error:
            raise InputError(f"{name}: cannot run {python}: {error.strerror}; --peer-python names a Python") from error
        if found.returncode != 0:
            pip = "pip" if python == sys.executable else f"{python} -m pip"
            raise InputError(
                f"{name} needs {other.packages}: {pip} install {other.packages}, here or where --peer-python says"
            )


def is_another_model(spec: EntrantSpec) -> bool:
    """Whether an entrant's weights are not the target's."""
    return spec.method in OTHERS and OTHERS[spec.method].is_another_model


def has_float64(spec: EntrantSpec) -> bool:
    """Whether an answer of an entrant can be judged: whether it runs in float64 too."""
    return spec.method not in OTHERS


def check_other(name: str, target: Target, settings: BenchSettings) -> None:
    """Raises InputError where software that is not transformers would run another device, dtype or distribution."""
    dtype = str(target.dtype).removeprefix("torch.")
    if target.device.type != "cpu":
        raise UnsupportedTargetError(f"{name} runs on the CPU here, the target on {target.device}; use --device cpu")
    if dtype not in ("bfloat16", "float32"):
        raise UnsupportedTargetError(f"{name} runs bfloat16 or float32, the target is {dtype}; use another --dtype")
    top_p = 1.0 if settings.top_p is None else settings.top_p
    for temperature in settings.temperatures:
        if OTHERS[name].files == "gguf" and top_p < 1 and temperature not in (0, 1):
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
