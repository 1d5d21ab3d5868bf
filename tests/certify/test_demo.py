"""The shipped model in bf16: the sound engine passes, a planted fault does not."""

from __future__ import annotations

import pytest

import slipstream
from certify.test_planted_faults import position_off_by_one
from slipstream.certify import Certification, CertifySettings
from slipstream.prompts import load_prompts

PROMPT = load_prompts()[2]


@pytest.fixture(scope="module")
def demo():
    model = slipstream.load("tiny", "eagle2", dtype="bfloat16", width=6, depth=4, total=20)
    settings = CertifySettings(max_new_tokens=12, num_seeds=1, num_samples=0)
    return Certification(model=model, prompts=[PROMPT], settings=settings)


def test_a_tree_of_the_demo_passes_in_bf16(demo):
    certificate = demo.run({})
    assert certificate.verdict in ("lossless", "lossless up to rounding")
    assert certificate.floor.is_zero
    assert certificate.yardstick > 0
    assert sum(answer.found.answer.num_accepted for answer in certificate.answers) > 5


def test_a_fault_in_the_demos_trees_is_found_in_bf16(demo, monkeypatch):
    position_off_by_one(monkeypatch)
    certificate = demo.run({})
    assert certificate.verdict == "FAULT"
    assert all(answer.judged["same shape"].ruling == "fault" for answer in certificate.answers)
