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
