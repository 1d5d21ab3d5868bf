"""What is recorded is done again in the same memory, and what hangs on the host is refused or comes out wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from slipstream.core.largest import argmax_of_sum
from slipstream.runtime.recording import CpuTape, RecordingError
from slipstream.runtime.structure import tensors_in, with_tensors


class Pair(NamedTuple):
    first: Tensor
    second: object


@dataclass(frozen=True, slots=True)
class Record:
    tensor: Tensor
    rest: object


def test_new_numbers_in_the_inputs_give_new_numbers_in_the_same_outputs() -> None:
    x, kept = torch.arange(6.0), torch.zeros(6)

    def work() -> tuple[Tensor, Tensor]:
        table = x.reshape(2, 3)
        kept.index_copy_(0, torch.arange(3), table[1])
        best, places = (table @ table.T).softmax(dim=-1).topk(2, dim=-1)
        return best.cumsum(-1), torch.cat((places, places + 1))

    outputs, replay = CpuTape().record(work)
    before = [one.clone() for one in outputs]
    for factor in (0.5, 2.0):
        x.copy_(torch.tensor([3.0, -1.0, 0.5, 2.0, 0.0, 1.0]) * factor)
        replay()
        addresses = [one.data_ptr() for one in outputs]
        again = work()
        for recorded, expected, old in zip(outputs, again, before, strict=True):
            assert torch.equal(recorded, expected)
            assert not torch.equal(recorded, old)
        assert [one.data_ptr() for one in outputs] == addresses
        assert torch.equal(kept[:3], x[3:])


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x[x > 2],
        lambda x: x.nonzero(),
        lambda x: bool((x > 2).any()),
        lambda x: x + torch.tensor([1.0]),
        lambda x: x.masked_select(x > 1),
    ],
)
def test_what_reads_or_writes_on_the_host_is_refused(work) -> None:
    x = torch.arange(4.0)
    with pytest.raises(RecordingError):
        CpuTape().record(lambda: work(x))


def test_what_hangs_on_a_number_of_the_host_comes_out_wrong_as_it_would_on_a_gpu() -> None:
    x, length = torch.arange(4.0), 1
    output, replay = CpuTape().record(lambda: x[:2] + length)
    length = 5
    replay()
    assert torch.equal(output, torch.tensor([1.0, 2.0]))


def test_a_short_cut_that_reads_is_not_taken_while_recording_and_gives_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 5000, generator=generator)
    noise = torch.randn(2, 5000, generator=generator, dtype=torch.float64)
    rows = torch.arange(6) % 2
    expected = argmax_of_sum(values, noise, rows)
    found, replay = CpuTape().record(lambda: argmax_of_sum(values, noise, rows))
    assert torch.equal(found, expected)
    values.mul_(-1)
    replay()
    assert torch.equal(found, argmax_of_sum(values, noise, rows))
    assert not torch.equal(found, expected)


def test_tensors_are_found_and_put_back_wherever_they_are() -> None:
    a, b, c, d = (torch.tensor(float(one)) for one in range(4))
    value = (Pair(a, {"x": b, "n": None}), [Record(c, (d, 5))], "text")
    assert [one.item() for one in tensors_in(value)] == [0, 1, 2, 3]
    other = with_tensors(value, (one + 10 for one in tensors_in(value)))
    assert [one.item() for one in tensors_in(other)] == [10, 11, 12, 13]
    assert isinstance(other[0], Pair)
    assert isinstance(other[1][0], Record)
    assert other[0].second["n"] is None
    assert other[1][0].rest[1] == 5
    assert other[2] == "text"
