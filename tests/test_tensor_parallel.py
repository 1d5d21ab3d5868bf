"""A target that two processes share decodes as one process does: token for token in float64, whatever is drafted.

Two Python processes with gloo on the CPU are started once and answer all that is compared. The second one's clock runs
wild, and it has a cache folder of its own, so that sizes of drafts would differ if they were not agreed on.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import slipstream
from families import build
from sharded import answers
from slipstream.errors import InputError, UnsupportedTargetError
from slipstream.methods.eagle.checkpoint import save_head
from slipstream.methods.eagle.head import EagleHead, HeadSizes
from slipstream.records.certificate import LOSSLESS
from slipstream.target.sharding import check_heads
from slipstream.target.target import Target
from slipstream.training.data.tokenizer import save_tokenizer, train_tokenizer

ALWAYS = 14
"""Tokens of an answer."""
TEXT = [5, 9, 13, 22] * 4
SAMPLED = {"max_new_tokens": ALWAYS, "temperature": 0.8, "seed": 3}
CASES = ("plain", "prompt-lookup", "layer-skip", "eagle2", "eagle2 of one size", "auto")
ASKED = [
    (TEXT, {"max_new_tokens": ALWAYS, "temperature": 0}),
    (TEXT, SAMPLED),
    (TEXT[1:], {**SAMPLED, "top_k": 8, "repetition_penalty": 1.2}),
]


def start_two(script: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """Two processes as a launcher would start them, but without one that would end them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    everywhere = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                **everywhere,
                **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
                "SLIPSTREAM_CACHE": str(folder / f"cache-{rank}"),
            },
        )
        for rank in range(2)
    ]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small target with 4 query and 2 key heads, a head for it, and what is asked of which method."""
    folder = tmp_path_factory.mktemp("sharded")
    model = build("llama", num_hidden_layers=3, weight_std=0.3)
    model.save_pretrained(folder / "model")
    build("llama", vocab_size=300, weight_std=0.3).save_pretrained(folder / "spoken")
    save_tokenizer(train_tokenizer(["the bird sings over the river"], 300), folder / "spoken", 128)
    question = {"question_id": 1, "turns": ["the bird sings the bird sings the"]}
    (folder / "question.jsonl").write_text(json.dumps(question) + "\n")
    torch.manual_seed(0)
    target = Target(model)
    save_head(EagleHead(HeadSizes.like(target)), folder / "head", target, {})
    head = {"draft": str(folder / "head")}
    fixed = {**head, "total": 6, "depth": 3}
    options = [{}, {"length": 4}, {}, head, fixed, head]
    cases = [(case, case.split()[0], own) for case, own in zip(CASES, options, strict=True)]
    asked = {"cases": cases, "certified": CASES[4], "asked": ASKED}
    spoken = {"spoken": str(folder / "spoken"), "question": str(folder / "question.jsonl")}
    return {"folder": str(folder / "model"), **asked, **spoken, "out": str(folder)}


@pytest.fixture(scope="module")
def found(job: dict[str, Any]) -> list[dict[str, Any]]:
    """What each of two processes found, then what one finds alone."""
    out = Path(job["out"])
    (out / "job.json").write_text(json.dumps(job))
    alone = answers(job, None)
    processes = start_two([str(Path(__file__).with_name("sharded.py")), str(out / "job.json"), str(out)], out)
    said = [one.communicate(timeout=600)[1] for one in processes]
    assert [one.returncode for one in processes] == [0, 0], said
    return [*(json.loads((out / f"{rank}.json").read_text()) for rank in range(2)), alone]


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_one_process(found, case):
    first, second, alone = ([ids for ids, *_ in one[case]] for one in found)
    assert first == second == alone
    assert all(len(ids) == ALWAYS for ids in alone)


def test_processes_draft_the_same_and_drafts_are_kept(found):
    first, second, _ = found
    for case in CASES:
        assert first[case] == second[case]  # counts of drafted tokens too
    drafted = {case: sum(count for _, count, _ in first[case]) for case in CASES}
    assert drafted["plain"] == 0
    assert drafted["prompt-lookup"] > 0
    assert drafted["eagle2 of one size"] > 0
    assert sum(kept for _, _, kept in first["prompt-lookup"]) > 0


def test_the_hash_is_that_of_the_whole_model(found):
    assert found[0]["hash"] == found[1]["hash"] == found[2]["hash"]


def test_the_command_prints_once(found):
    first, second, alone = (one["printed"] for one in found)
    assert (first, second) == (alone, "")
    assert len(alone) > 20


def test_a_shared_target_is_certified(found):
    assert [one["verdict"] for one in found] == [LOSSLESS] * 3


def test_certify_of_two_processes_is_that_of_one_and_printed_once(found):
    first, second, alone = (one["certified"] for one in found)
    assert second == ["", ""]
    assert "loading" in first[1]
    shared, single = (json.loads(one[0]) for one in (first, alone))
    assert (shared["num_processes"], single["num_processes"]) == (2, 1)
    assert shared["verdict"] == single["verdict"] == LOSSLESS
    assert [one["tests"][0]["num_samples"] for one in (shared["distribution"], single["distribution"])] == [100, 100]
    for kind in ("greedy", "seeded"):
        assert shared[kind] == single[kind]
        assert shared[kind][0]["num_tokens"] == 6


def test_a_process_that_dies_ends_the_other_with_one_line(job, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({**job, "cases": job["cases"][:1], "stop_at": 1}))
    script = [str(Path(__file__).with_name("sharded.py")), str(tmp_path / "job.json"), str(tmp_path)]
    first, second = start_two(script, tmp_path)
    second.communicate(timeout=120)
    began = time.monotonic()
    _, said = first.communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert second.returncode == 9
    assert first.returncode not in (0, None)
    assert said.splitlines()[-1].endswith("another process of this run has ended; start all processes again")


def test_heads_that_do_not_share_out_are_refused_by_name():
    config = build("llama", num_attention_heads=9, num_key_value_heads=3, hidden_size=36, head_dim=4).config
    with pytest.raises(UnsupportedTargetError, match=r"m has 9 query and 3 key heads, which 2 .* use tp_size 3$"):
        check_heads(config, 2, "m")
    check_heads(config, 3, "m")
    config.num_key_value_heads = 1
    with pytest.raises(UnsupportedTargetError, match="load it without tp_size"):
        check_heads(config, 3, "m")


@pytest.mark.parametrize("wrong", [1, 0, True, "2"])
def test_a_number_of_processes_that_cannot_be_is_refused(wrong):
    with pytest.raises(InputError, match=r"tp_size is .* at least 2"):
        slipstream.load("tiny", tp_size=wrong)


def test_what_cannot_be_shared_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="started alone; start as many: torchrun --nproc_per_node 2"):
        slipstream.load("tiny", tp_size=2)
    with pytest.raises(InputError, match="device='auto' was asked for"):
        slipstream.load("tiny", tp_size=2, device="auto")
    with pytest.raises(InputError, match="runs no sharded target"):
        slipstream.load("tiny", tp_size=2, runtime="compiled")
    with pytest.raises(InputError, match="give its name or folder"):
        slipstream.load(build("llama"), tp_size=2)
