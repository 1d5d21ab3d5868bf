"""What must hold on a CUDA device too. Skipped, with the reason, where there is none."""

from __future__ import annotations

import pytest
import torch

import slipstream
from families import FAMILIES
from slipstream.core.sampling import philox
from slipstream.runtime.clock import CycleClock

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]

PROMPT = list(range(5, 25))


def test_noise_bits_are_those_of_the_cpu() -> None:
    counter = torch.arange(4096)
    on_cpu = philox((counter, counter % 7, counter % 3, counter * 0), (12345, 678))
    on_gpu = philox(tuple(word.cuda() for word in (counter, counter % 7, counter % 3, counter * 0)), (12345, 678))
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "gpt2"])
@pytest.mark.parametrize("method", ["layer-skip", "prompt-lookup"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_equal_plain_decoding_on_cuda(family: str, method: str, temperature: float) -> None:
    model = FAMILIES[family]().cuda()
    answers = [
        slipstream.load(model, name).generate(PROMPT, max_new_tokens=24, temperature=temperature, seed=1).token_ids
        for name in ("plain", method)
    ]
    assert answers[0] == answers[1]


def test_load_places_the_demo_on_cuda_by_default() -> None:
    assert slipstream.load("tiny", "plain").target.device.type == "cuda"


def test_a_part_of_a_cycle_lasts_as_long_as_the_device_takes() -> None:
    device = torch.device("cuda")
    square = torch.randn(4096, 4096, device=device)
    for _ in range(3):  # the first call loads kernels
        clock = CycleClock(device)
        torch.cuda.synchronize()
        clock.begin()
        clock.lap("draft")
        product = square
        for _ in range(20):
            product = product @ square * 1e-4
        clock.lap("verify")
        product[0, 0].item()
        seconds = clock.seconds_by_part()
    assert seconds["verify"] > 10 * seconds["draft"]


CAPTURED = {
    "plain": {},
    "layer-skip": {"width": 3, "depth": 3, "total": 6},
    "eagle2": {"width": 4, "depth": 3, "total": 12},
    "medusa": {"total": 12},
    "hydra": {"total": 12},
    "draft-model": {"width": 3, "depth": 3, "total": 6},
    "prompt-lookup": {"length": 3, "branches": 1},
}


@pytest.mark.parametrize("method", CAPTURED)
def test_captured_passes_give_the_tokens_of_eager_ones(method: str) -> None:
    """In float64; the third text replays what was recorded for the first two."""
    eager, captured = (
        slipstream.load("tiny", method, dtype="fp64", device="cuda", runtime=runtime, **CAPTURED[method])
        for runtime in ("eager", "captured")
    )
    for temperature in (0.0, 1.0):
        for prompt in ("Write a list of ten animals.", "What is the sun?", "Write a list of ten animals."):
            given = {"max_new_tokens": 40, "temperature": temperature, "seed": 3}
            assert captured.generate(prompt, **given).token_ids == eager.generate(prompt, **given).token_ids
    executor = captured.target.executor
    assert executor.num_recorded > 0
    assert executor.num_replayed > 100


def test_a_replayed_cycle_keeps_the_host_out_of_it() -> None:
    """Three launches of graphs a cycle at most, and what is copied in and out."""
    model = slipstream.load("tiny", "eagle2", device="cuda", runtime="captured", width=4, depth=3, total=12)
    for _ in range(4):
        before = model.target.executor.num_replayed
        answer = model.generate("Write a list of ten animals.", max_new_tokens=40, temperature=0)
    assert model.target.executor.num_replayed - before <= 3 * answer.stats.num_cycles + 1
