"""Answers by a target that processes share: what each of them gets, for tests/test_tensor_parallel.py.

    python tests/sharded.py JOB OUT

JOB: a JSON file, see `answers`; OUT: a folder, in which rank N writes its answers to N.json. RANK, LOCAL_RANK,
WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set as launchers set them; without WORLD_SIZE one process answers alone.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import slipstream
from slipstream.certify import Certification, CertifySettings
from slipstream.cli.app import run
from slipstream.prompts import Prompt


def answers(job: dict[str, Any], tp_size: int | None, stop_at: int | None = None) -> dict[str, Any]:
    """By case, the token ids of every answer and how many drafted tokens were verified and kept.

    job: `folder` of the model, `cases` as (name, method, options of `load`), the case that is `certified` too,
    `asked` as (prompt ids, settings of `generate`), `spoken`, the folder of a model with a tokenizer, and a file with a
    `question` for it. stop_at: answers after which this process ends.
    """
    found: dict[str, Any] = {}
    number = itertools.count()
    for name, method, options in job["cases"]:
        model = slipstream.load(job["folder"], method, dtype="float64", tp_size=tp_size, **options)
        given = []
        for prompt, settings in job["asked"]:
            if next(number) == stop_at:
                os._exit(9)
            output = model.generate(prompt, **settings)
            given.append((list(output.token_ids), output.stats.num_drafted, output.stats.num_accepted))
        found[name] = given
        found["hash"] = model.target.hash
        if name == job["certified"]:
            found["verdict"] = verdict(model, job["asked"][0][0])
    found["printed"] = printed(tp_size)
    found["certified"] = certified(job["spoken"], job["question"], tp_size)
    return found


def printed(tp_size: int | None) -> str:
    """What the command writes to stdout; tiny's LM head is its embedding."""
    how = ["--dtype", "fp64", "--device", "cpu", "--max-new-tokens", "12", "-t", "0"]
    shared = [] if tp_size is None else ["--tp-size", str(tp_size)]
    with redirect_stdout(io.StringIO()) as out:
        assert run(["generate", "-m", "tiny", "-p", "Give three tips.", *how, *shared]) == 0
    return out.getvalue()


def certified(folder: str, question: str, tp_size: int | None) -> tuple[str, str]:
    """What `slipstream certify` writes to stdout and stderr."""
    how = ["--dtype", "fp64", "--device", "cpu", "-n", "6", "--seeds", "1", "--prompts", "1"]
    law = ["--samples", "100", "--verification", "coupled"]
    method = ["-d", "layer-skip", "--width", "3", "--depth", "3", "--total", "6"]
    shared = [] if tp_size is None else ["--tp-size", str(tp_size)]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = run(["certify", "-m", folder, "--data", question, "--json", *method, *how, *law, *shared])
    assert code == 0, err.getvalue()
    return out.getvalue(), err.getvalue()


def verdict(model: slipstream.Model, prompt_ids: list[int]) -> str:
    """Of a short certificate."""
    settings = CertifySettings(max_new_tokens=8, num_samples=0)
    prompts = [Prompt(id="one", kind="test", turns=(prompt_ids,))]  # type: ignore[arg-type]
    return Certification(model=model, prompts=prompts, settings=settings).run({}).verdict


def skew_clock() -> None:
    """Let this process's clock run fast, and now faster than then."""
    real, counted = time.perf_counter, itertools.count()
    time.perf_counter = lambda: 7 * real() + 0.01 * (next(counted) % 5)


if __name__ == "__main__":
    job, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE")
    if rank != "0":
        skew_clock()
    stop_at = job.get("stop_at") if rank != "0" else None
    (out / f"{rank}.json").write_text(json.dumps(answers(job, None if size is None else int(size), stop_at)))
