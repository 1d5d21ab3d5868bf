"""A study of skip sets in a sqlite file: resumed after a kill, and shared by any number of processes.

Optuna's own storage, with one departure: sqlite does not wait for the disk after every write. A trial writes each of
its bits in a transaction of its own, which takes longer than a modelled trial itself; what is given up is safety
against a loss of power, not against a kill.
"""

from __future__ import annotations

import logging
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slipstream.errors import ArtifactError, InputError
from slipstream.search.space import Bits, Space

if TYPE_CHECKING:
    import optuna

_NAME = "skip-set"
_WAIT_S = 60.0  # for a file that another process is writing
INSTALL = "pip install optuna scipy"


class Study:
    """The trials of a search, those of other processes included."""

    def __init__(self, path: Path, space: Space, sampler: str, seed: int, *, exact: bool) -> None:
        """exact: values carry no noise.

        Raises InputError where Optuna is missing, ArtifactError for a file that is no study.
        """
        optuna = import_optuna()
        self.path, self.space = path, space
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            storage = _storage(path)
            self._study = optuna.create_study(
                storage=storage, study_name=_NAME, direction="maximize", load_if_exists=True
            )
        except Exception as error:
            raise _no_study(path, error) from error
        num_before = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = _sampler(sampler, seed + num_before, exact=exact)

    def recall(self, key: str) -> Any:
        """What `remember` put into the study under `key`; None: nothing."""
        return self._study.user_attrs.get(key)

    def remember(self, key: str, value: Any) -> Any:
        """Put a JSON value into the study unless another process has done so; returns the value that is there."""
        present = self.recall(key)
        if present is not None:
            return present
        self._study.set_user_attr(key, value)
        return value

    def done(self) -> list[optuna.trial.FrozenTrial]:
        """Complete trials, in their order."""
        trials: list[optuna.trial.FrozenTrial] = self._study.get_trials(deepcopy=False, states=(_state("COMPLETE"),))
        return trials

    def values(self) -> dict[Bits, float]:
        """The value of every set that was tried."""
        return {trial_bits(trial): trial.value for trial in self.done() if trial.value is not None}

    def enqueue(self, bits: Bits, origin: str) -> None:
        """Try this set soon, unless it has been tried or is waiting already."""
        states = (_state("COMPLETE"), _state("WAITING"))
        params = dict(zip(self.space.names, bits, strict=True))
        for trial in self._study.get_trials(deepcopy=False, states=states):
            if trial.system_attrs.get("fixed_params", trial.params) == params:
                return
        self._study.enqueue_trial(params, user_attrs={"origin": origin})

    def ask(self) -> tuple[optuna.Trial, Bits]:
        """The next trial, and the set that it is to try."""
        gone = import_optuna().exceptions.UpdateFinishedTrialError
        with _quietly():
            while True:
                trial = self._study.ask()
                with suppress(
                    gone
                ):  # a process that is starved for long is taken for dead by another, and its trial over
                    return trial, tuple(trial.suggest_categorical(name, (False, True)) for name in self.space.names)

    def tell(self, trial: optuna.Trial, bits: Bits, value: float, figures: Mapping[str, Any]) -> None:
        """The trial's value. bits: the set that was tried in the end."""
        skipped = [name for name, goes in zip(self.space.names, bits, strict=True) if goes]
        trial.set_user_attr("result", {"bits": "".join("01"[goes] for goes in bits), "skipped": skipped, **figures})
        self._study.tell(trial, value)

    def drop(self, trial: optuna.Trial) -> None:
        """The trial came to nothing; samplers will not look at it."""
        self._study.tell(trial, state=_state("FAIL"))


def trial_bits(trial: optuna.trial.FrozenTrial) -> Bits:
    """The set that a complete trial tried."""
    return tuple(bit == "1" for bit in trial.user_attrs["result"]["bits"])


def best_sets(path: Path, space: Space, count: int) -> list[Bits]:
    """The best sets of an earlier study, best first; sub-layers that it did not search are kept.

    Raises ArtifactError for a file that is no study.
    """
    if not path.is_file():
        raise ArtifactError(f"there is no study {str(path)!r} to start from")
    optuna = import_optuna()
    try:
        study = optuna.load_study(storage=_storage(path), study_name=_NAME)
    except Exception as error:
        raise _no_study(path, error) from error
    trials = study.get_trials(deepcopy=False, states=(_state("COMPLETE"),))
    trials.sort(key=lambda trial: trial.value or 0.0, reverse=True)
    sets = [tuple(name in trial.user_attrs["result"]["skipped"] for name in space.names) for trial in trials]
    return list(dict.fromkeys(sets))[:count]


def import_optuna() -> Any:
    """Optuna, or an InputError with the command that installs it."""
    try:
        import optuna
    except ImportError as error:
        raise InputError(f"searching a skip set needs optuna, which is not installed; run: {INSTALL}") from error
    logging.getLogger("optuna").setLevel(logging.WARNING)  # it logs every trial to stderr otherwise
    return optuna


def _storage(path: Path) -> Any:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=_WAIT_S, check_same_thread=False)
        connection.execute("pragma synchronous=off")
        connection.execute("pragma journal_mode=wal")
        return connection

    optuna = import_optuna()
    return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"creator": connect})


def _sampler(name: str, seed: int, *, exact: bool) -> Any:
    samplers = import_optuna().samplers
    with _quietly():
        if name == "random":
            return samplers.RandomSampler(seed=seed)
        if name == "tpe":
            return samplers.TPESampler(seed=seed)
        if find_spec("scipy") is None:  # Optuna would say so only when it is asked for the first set
            raise InputError(f"sampler 'gp' needs scipy, which is not installed; run: {INSTALL}")
        return samplers.GPSampler(seed=seed, deterministic_objective=exact)


def _state(name: str) -> Any:
    return import_optuna().trial.TrialState[name]


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Optuna's notices that something is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", import_optuna().exceptions.ExperimentalWarning)
        yield


def _no_study(path: Path, error: Exception) -> ArtifactError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ArtifactError(f"{path} is not a study of skip sets ({reason}); give another file")
