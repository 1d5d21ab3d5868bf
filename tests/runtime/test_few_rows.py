"""Linear layers and attention over few rows: right to bfloat16's last place, and a row alone is a row among others."""

from __future__ import annotations

import logging
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from families import FAMILIES, prompt_ids
from slipstream.core.sampling import gumbel_rows
from slipstream.runtime import few_rows as module
from slipstream.runtime.few_rows import DTYPES, MOST_ROWS, FewRows, FewRowsError, few_rows
from slipstream.runtime.few_rows_attention import attention, with_few_rows_attention


def normal(seed: int, *size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


dtypes = st.sampled_from(DTYPES)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, MOST_ROWS),
    k=st.integers(1, 400),
    n=st.integers(1, 300),
    bias=st.booleans(),
    dtype=dtypes,
    seed=st.integers(0, 99),
)
def test_a_linear_layer_is_right_and_its_rows_know_nothing_of_each_other(
    library: FewRows, rows: int, k: int, n: int, bias: bool, dtype: torch.dtype, seed: int
) -> None:
    sizes = ((MOST_ROWS, k), (n, k), (n,))
    x, weight, offset = (normal(seed + at, *size, dtype=dtype) for at, size in enumerate(sizes))
    offset = offset if bias else None
    packed = library.packed(weight)
    found = library.linear(x[:rows], packed, offset, n)
    exact = x[:rows].double() @ weight.double().T + (0 if offset is None else offset.double())
    scale = x[:rows].double().abs() @ weight.double().abs().T  # what rounding in float32 is measured by
    assert found.dtype == dtype
    assert ((found.double() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + 2**-20 * scale).all()
    assert torch.equal(found, library.linear(x, packed, offset, n)[:rows])
    assert torch.equal(found[-1:], library.linear(x[rows - 1 : rows], packed, offset, n))


def test_sums_in_float32_are_as_close_as_pytorchs(library: FewRows) -> None:
    x, weight = normal(0, 8, 8192, dtype=torch.float32), normal(1, 512, 8192, dtype=torch.float32)
    exact = x.double() @ weight.double().T
    ours, theirs = library.linear(x, library.packed(weight), None, 512), torch.nn.functional.linear(x, weight)
    errors = [float((one.double() - exact).square().mean().sqrt()) for one in (ours, theirs)]
    assert errors[0] <= 1.5 * errors[1], "a single long sum of 8,192 products would be far off"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [MOST_ROWS + 1, 2 * MOST_ROWS, 200])
def test_many_rows_are_what_they_are_in_parts(library: FewRows, rows: int, dtype: torch.dtype) -> None:
    x, weight, offset = (normal(seed, *size, dtype=dtype) for seed, size in enumerate(((rows, 40), (50, 40), (50,))))
    packed = library.packed(weight)
    found = library.linear(x.reshape(rows, 1, 40), packed, offset, 50)
    assert found.shape == (rows, 1, 50)
    assert torch.equal(found[:, 0], torch.cat([library.linear(one[None], packed, offset, 50) for one in x]))


def test_what_is_no_number_stays_so_and_infinite_sums_are_infinite(library: FewRows) -> None:
    weight = torch.ones(20, 8, dtype=torch.bfloat16)
    x = torch.ones(3, 8, dtype=torch.bfloat16)
    x[0, 3], x[1, 2] = float("nan"), float("inf")
    found = library.linear(x, library.packed(weight), None, 20)
    assert found[0].isnan().all()
    assert (found[1] == float("inf")).all()
    assert (found[2] == 8).all()


def test_packed_weights_lie_apart_from_each_other_at_lines_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 5000)
    room = module._Room()
    sizes = [(16, 6), (16, 40), (48, 7), (160, 64), (16, 2)]  # the fourth is larger than a piece
    found = [room.tensor(*size) for size in sizes]
    for number, one in enumerate(found):
        one.fill_(number)
    assert [tuple(one.shape) for one in found] == sizes
    assert all(bool((one == number).all()) for number, one in enumerate(found))
    assert all(one.is_contiguous() and one.data_ptr() % 64 == 0 for one in found)


def test_packed_weights_have_large_pages_where_the_system_gives_them() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[never]" in setting.read_text(encoding="utf-8"):
        pytest.skip("there are no large pages here")
    before = large_kilobytes()
    found = module._Room().tensor(2048, 4096)
    found.fill_(1)
    assert large_kilobytes() >= before + found.numel() * 2 // 1024


def large_kilobytes() -> int:
    """Of this process's memory, in large pages."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


def test_rows_that_do_not_lie_together_are_read_right(library: FewRows) -> None:
    x, weight = normal(0, 2, 5, 64), normal(1, 48, 64)
    packed = library.packed(weight)
    expected = library.linear(x.transpose(0, 1).contiguous(), packed, None, 48)
    assert torch.equal(library.linear(x.transpose(0, 1), packed, None, 48), expected)
    assert expected.shape == (5, 2, 48)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**32 - 1),
    positions=st.lists(st.integers(0, 2**40), min_size=1, max_size=3),
    vocab_size=st.integers(1, 5000),
)
def test_noise_is_that_of_pytorch_to_the_last_bit(
    library: FewRows, seed: int, stream: int, positions: list[int], vocab_size: int
) -> None:
    asked = (seed, stream, torch.tensor(positions), vocab_size)
    assert torch.equal(library.gumbel_rows(*asked), gumbel_rows(*asked))


def test_noise_for_a_large_vocabulary_is_the_same(library: FewRows) -> None:
    asked = (1, 0, torch.tensor([11]), 151_937)
    assert torch.equal(library.gumbel_rows(*asked), gumbel_rows(*asked))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, MOST_ROWS),
    key_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    length=st.integers(0, 150),
    spare=st.integers(0, 200),
    width=st.sampled_from([16, 32, 64, 80, 128]),
    value_width=st.sampled_from([16, 64, 96]),
    dtype=dtypes,
    seed=st.integers(0, 99),
)
def test_attention_is_right_and_hangs_on_nothing_that_the_mask_hides(
    library: FewRows,
    rows: int,
    key_heads: int,
    group: int,
    length: int,
    spare: int,
    width: int,
    value_width: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """A tree's mask: all see the text before and themselves, and at random each other."""
    slots = length + rows + spare
    query = normal(seed, 1, rows, key_heads * group, width, dtype=dtype).transpose(1, 2)
    sizes = ((1, key_heads, slots + 7, one) for one in (width, value_width))
    key, value = (normal(seed + 1, *size, dtype=dtype)[:, :, :slots] for size in sizes)
    seen = torch.zeros(rows, slots, dtype=torch.bool)
    seen[:, :length] = True
    among = torch.rand(rows, rows, generator=torch.Generator().manual_seed(seed)) < 0.3
    seen[:, length : length + rows] = among | torch.eye(rows, dtype=torch.bool)
    mask = torch.zeros(1, 1, rows, slots, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    assert library.attends(query, key, value)
    found = library.attention(query, key, value, mask, width**-0.5)
    wide_key, wide_value = (one.double().repeat_interleave(group, dim=1) for one in (key, value))
    exact = scaled_dot_product_attention(
        query.double(), wide_key, wide_value, attn_mask=mask.double(), scale=width**-0.5
    ).transpose(1, 2)
    unit = torch.finfo(dtype).eps / 2
    assert ((found.double() - exact).abs() <= unit * exact.abs() + 2e-5 * value.abs().max()).all()
    first = library.attention(query[:, :, :1], key, value, mask[:, :, :1], width**-0.5)
    assert torch.equal(first, found[:, :1])
    value[:, :, length + rows :] = 1e30  # what nobody sees
    assert torch.equal(library.attention(query, key, value, mask, width**-0.5), found)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 300), share=st.sampled_from([0.03, 0.5, 0.97]), dtype=dtypes, seed=st.integers(0, 99))
def test_where_the_keys_lie_that_a_row_sees_changes_nothing_to_the_last_bit(
    library: FewRows, count: int, share: float, dtype: torch.dtype, seed: int
) -> None:
    """An accepted path lies scattered among the nodes of its tree; in plain decoding its tokens lie together."""
    seen = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share
    seen[count // 2] = True
    sizes = ((1, 4, 1, 64), (1, 2, count, 64), (1, 2, count, 48))
    query, key, value = (normal(seed + at, *size, dtype=dtype) for at, size in enumerate(sizes))
    mask = torch.zeros(1, 1, 1, count, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    together = [one[:, :, seen].contiguous() for one in (key, value)]
    bare = torch.zeros(1, 1, 1, int(seen.sum()), dtype=dtype)
    found = library.attention(query * 3, key, value, mask, 0.125)
    assert torch.equal(found, library.attention(query * 3, *together, bare, 0.125))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt2"])
@torch.inference_mode()
def test_a_model_that_attends_so_says_what_it_says(
    name: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch, library: FewRows
) -> None:
    with torch.inference_mode(False):
        model = FAMILIES[name]().to(dtype)
    monkeypatch.setattr("slipstream.runtime.few_rows_attention.few_rows", lambda dtype: library)
    twin = with_few_rows_attention(model)
    ids = torch.tensor([prompt_ids(12)])
    hidden = ~torch.ones(12, 12).tril().bool()
    mask = torch.zeros(1, 1, 12, 12, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    found, expected = (one(input_ids=ids, attention_mask=mask).logits for one in (twin, model))
    assert torch.allclose(found.float(), expected.float(), atol=tolerance)


def test_what_asks_for_more_than_attention_goes_elsewhere(monkeypatch: pytest.MonkeyPatch, library: FewRows) -> None:
    monkeypatch.setattr("slipstream.runtime.few_rows_attention.few_rows", lambda dtype: library)
    asked: list[str] = []
    monkeypatch.setattr(
        "slipstream.runtime.few_rows_attention.grouped_attention", lambda *args, **kwargs: asked.append("elsewhere")
    )
    query, key = normal(0, 1, 4, 3, 64), normal(1, 1, 2, 9, 64)
    mask = torch.zeros(1, 1, 3, 9, dtype=torch.bfloat16)
    attention(torch.nn.Module(), query, key, key, mask)
    assert asked == []
    attention(torch.nn.Module(), query, key, key, None)
    attention(torch.nn.Module(), query, key, key, mask, s_aux=torch.zeros(4))
    attention(torch.nn.Module(), query, key, key, mask.expand(1, 4, 3, 9))
    attention(torch.nn.Module(), query.double(), key.double(), key.double(), mask.double())
    attention(torch.nn.Module(), query.float(), key, key, mask)
    attention(torch.nn.Module(), normal(0, 1, 4, 65, 64), key, key, torch.zeros(1, 1, 65, 9, dtype=torch.bfloat16))
    attention(torch.nn.Module(), query[..., :24], key[..., :24], key, mask)
    assert asked == ["elsewhere"] * 7


def test_threads_have_scratch_of_their_own(library: FewRows) -> None:
    weight = normal(0, 640, 320)
    packed = library.packed(weight)
    inputs = [normal(seed, 1 + 9 * seed, 320) for seed in range(6)]
    expected = [library.linear(one, packed, None, 640) for one in inputs]
    found: dict[int, bool] = {}

    def ask(number: int) -> None:
        found[number] = all(
            torch.equal(library.linear(inputs[number], packed, None, 640), expected[number]) for _ in range(40)
        )

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(6), True)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "no C compiler is installed (gcc); set CC to name one"),
        ("false", "false cannot compile it"),
    ],
)
def test_without_a_compiler_one_line_says_so_and_onednn_goes_on(
    compiler: str, reason: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.INFO):
        assert module._tried.__wrapped__() == (None, ())
    said = [one.message for one in caplog.records if "few rows" in one.message]
    assert len(said) == 1
    assert said[0].startswith(f"linear layers over few rows are left to PyTorch: {reason}")
    assert not list(empty_cache.glob("few_rows/*/few_rows.so"))


def test_costs_of_another_version_are_others(library: FewRows, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of a machine's costs is not taken for those of an older product, or of oneDNN's."""
    names = []
    for version, worth in ((library, DTYPES), (library, DTYPES[1:]), (library, ()), (None, ())):
        monkeypatch.setattr(module, "_tried", lambda found=(version, worth): found)
        names.append(module.with_version("packed"))
    assert names == [f"packed, few rows {library.version}"] * 2 + ["packed"] * 2


def test_it_is_used_in_the_dtypes_in_which_it_is_faster(library: FewRows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_tried", lambda: (library, (torch.float32,)))
    assert (few_rows(), few_rows(torch.float32), few_rows(torch.float64)) == (None, library, None)


def test_it_is_built_once(library: FewRows, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    right = subprocess.run
    monkeypatch.setattr(module.subprocess, "run", lambda call, **more: calls.append(call) or right(call, **more))
    first, second = module._built(), module._built()
    assert first == second
    assert len(calls) == 2, "compiled and linked, once"


def test_a_library_that_computes_something_else_is_not_used(library: FewRows) -> None:
    class Wrong:
        packed, attention, gumbel_rows = library.packed, library.attention, library.gumbel_rows

        def linear(self, rows: Tensor, packed: Tensor, bias: Tensor | None, n: int) -> Tensor:
            return library.linear(rows, packed, bias, n) * 1.1

    with pytest.raises(FewRowsError, match="its linear layers are wrong here"):
        module._check(Wrong(), torch.bfloat16)
