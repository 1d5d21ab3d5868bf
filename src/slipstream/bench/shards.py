"""One run by several processes: each takes its share of every task into a folder of its own; the last one joins them.

    RUN/0-of-2/ RUN/1-of-2/     what the processes do, each a run by itself
    RUN/run.json, ...           the whole run, once all are done

Each times its answers while the others run, so all should have a GPU, or cores, of their own.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slipstream.bench.hub_tasks import QUESTIONS_FOLDER
from slipstream.bench.record import check_alike
from slipstream.errors import InputError
from slipstream.prompts import Prompt
from slipstream.records.journal import num_finished
from slipstream.records.run_files import JOURNAL_FILE, SETTINGS_FILE, read_run, write_json
from slipstream.share import Share

FINISHER_FILE = ".finisher"
"""Names the process that made the whole run, so that of two that end together, one does."""
_OF_ONE = ("share", "expected_s")
"""What `run.json` says of a share alone."""


def share_of_tasks(tasks: Mapping[str, Sequence[Prompt]], share: Share) -> dict[str, Sequence[Prompt]]:
    """Every `world_size`-th prompt of each task; tasks begin with one process after the other, so short ones spread."""
    size = share.world_size
    return {name: prompts[(share.rank - index) % size :: size] for index, (name, prompts) in enumerate(tasks.items())}


def shard_folder(folder: Path, share: Share) -> Path:
    """Where a process runs; `folder` itself if it is alone. Raises InputError where others were as many."""
    if share.world_size == 1:
        return folder
    for other in folder.glob("*-of-*"):
        if other.name.rpartition("-")[2] != str(share.world_size):
            raise InputError(
                f"{folder} was begun by {other.name.rpartition('-')[2]} processes; go on with as many, or give another "
                "folder with --out"
            )
    return _shard(folder, share.rank, share.world_size)


def join(folder: Path, world_size: int) -> bool:
    """Make the run of the whole if all shares are finished. Returns whether they are.

    Raises ArtifactError where the processes' models, versions or machines differed.
    """
    shards = [_shard(folder, rank, world_size) for rank in range(world_size)]
    if not all(map(_is_finished, shards)):
        return False
    runs = [read_run(shard) for shard in shards]
    check_alike(shards, runs)
    journals = [shard / JOURNAL_FILE for shard in shards if (shard / JOURNAL_FILE).is_file()]
    (folder / JOURNAL_FILE).write_bytes(b"".join(one.read_bytes() for one in journals))
    if (shards[0] / QUESTIONS_FOLDER).is_dir():
        shutil.copytree(shards[0] / QUESTIONS_FOLDER, folder / QUESTIONS_FOLDER, dirs_exist_ok=True)
    write_json(folder / SETTINGS_FILE, _joined(runs))
    return True


def _joined(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole = {name: value for name, value in runs[0].items() if name not in _OF_ONE}
    for name in ("num_prompts", "num_turns"):
        counts = sum((Counter(run[name]) for run in runs), Counter())
        whole[name] = {task: counts[task] for task in runs[0][name]}
    whole["command"] = "\n".join(run["command"] for run in runs)
    if continued := [one for run in runs for one in run.get("continued", [])]:
        whole["continued"] = continued
    if left_out := {name: reason for run in runs for name, reason in run.get("left_out", {}).items()}:
        whole["left_out"] = left_out
    return whole


def _shard(folder: Path, rank: int, world_size: int) -> Path:
    return folder / f"{rank}-of-{world_size}"


def _is_finished(shard: Path) -> bool:
    """Read only: another process may be writing there."""
    if not (shard / SETTINGS_FILE).is_file():
        return False
    num_prompts: int = sum(read_run(shard)["num_prompts"].values())
    return num_finished(shard / JOURNAL_FILE) == num_prompts
