"""Compiled passes: tokens and logits of eager ones, whatever is compiled already, and eager passes where that fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import slipstream
from families import VOCAB_SIZE, build, prompt_ids
from slipstream.core.tree import ancestor_mask
from slipstream.errors import InputError
from slipstream.runtime import compiled
from slipstream.runtime.buckets import Buckets
from slipstream.runtime.compiled import CompiledPasses, has_compiler
from slipstream.runtime.executor import check_runtime, make_executor
from slipstream.runtime.few_rows import with_version
from slipstream.runtime.kept_costs import described
from slipstream.skipping.skip_set import SkipSet
from slipstream.skipping.sublayers import SubLayers
from slipstream.target.features import Features
from slipstream.target.target import Target

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own modules, as they are imported
SMALL = Buckets(rows=(1, 4), context=64)
PROMPT = prompt_ids(9)
NEAR = {"rtol": 1e-6, "atol": 1e-5}  # norms are computed in float32; another layer or mask is 0.1 and more
needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")


class Counted(CompiledPasses):
    """Counts the layers that ran compiled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(SMALL)
        self.ran = 0
        right = compiled._Compiled.__call__

        def run(*args):
            self.ran += 1
            return right(*args)

        monkeypatch.setattr(compiled._Compiled, "__call__", run)

    @property
    def num_graphs(self) -> int:
        return len(self._compiler._graphs)


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing is compiled before this is set."""
    go, right = threading.Event(), compiled._Compiler._compile

    def compile_later(self, job):
        assert go.wait(60)
        return right(self, job)

    monkeypatch.setattr(compiled._Compiler, "_compile", compile_later)
    yield go
    go.set()


def outputs(target: Target, passes: int, **how) -> list[Tensor]:
    """Logits and features of trees of 3 rows, one after the other, each time the first node committed."""
    cache, n = target.new_cache(8), len(PROMPT)
    target.forward(torch.tensor(PROMPT), torch.arange(n), target.causal(n), cache)
    cache.commit(None, n)
    visible, found = ancestor_mask(torch.tensor([-1, -1])), []
    for number in range(passes):
        tokens = torch.tensor([2 + number, 3, 4]) % VOCAB_SIZE
        output = target.forward(tokens, cache.length + torch.tensor([0, 1, 1]), visible, cache, **how)
        found += [output.logits] if output.features is None else [output.logits, output.features]
        cache.commit(None, 2)
    return found


@needs_compiler
@torch.inference_mode()
def test_compiled_passes_say_what_eager_ones_say(executor, caplog):
    """The model, its features, and a skip set, through one graph and those of the layers that miss a part."""
    with torch.inference_mode(False):
        model = build("llama")
    eager, target = Target(model), Target(model, executor)
    skipped = SubLayers.find(model).plan(SkipSet(num_layers=2, attention=(0,), mlp=())).model
    for how, graphs in (({}, 1), ({"features": Features(last_hidden=True, layers=(1,))}, 1), ({"instead": skipped}, 2)):
        expected = outputs(eager, 3, **how)
        for _ in range(2):  # not compiled yet, and compiled
            executor.ran = 0
            found = outputs(target, 3, **how)
            torch.testing.assert_close(found, expected, **NEAR)
            executor.settle([])
            assert executor.num_graphs == graphs, "layers that are alike share a graph"
        assert executor.ran == 3 * 2, "all layers of all passes"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@needs_compiler
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "coupled"])
def test_tokens_are_those_of_eager_passes_before_and_after_compiling(sampling, held, executor):
    model = build("llama")
    expected = slipstream.load(model, "plain").generate(PROMPT, max_new_tokens=12, **sampling).token_ids
    compiling = slipstream.load(model, "prompt-lookup", length=3)
    compiling.target.executor = executor
    compiling.target.forget()
    assert compiling.generate(PROMPT, max_new_tokens=12, **sampling).token_ids == expected
    assert executor.ran == 0, "what is not compiled yet runs eagerly, and nobody waits"
    held.set()
    executor.settle([])
    assert compiling.generate(PROMPT, max_new_tokens=12, **sampling).token_ids == expected
    assert executor.ran > 0


@needs_compiler
@torch.inference_mode()
def test_a_settled_call_is_made_until_all_of_its_passes_ran_compiled(executor):
    with torch.inference_mode(False):
        target = Target(build("llama"), executor)
    ran: list[int] = []

    def call() -> list[Tensor]:
        executor.ran = 0
        found = outputs(target, 3)
        ran.append(executor.ran)
        return found

    torch.testing.assert_close(executor.settled(call), outputs(Target(target.model), 3), **NEAR)
    assert (len(ran), ran[-1]) == (2, 3 * 2)
    executor.settled(call)
    assert len(ran) == 3, "nothing is left to compile"


@torch.inference_mode()
def test_layers_that_read_the_length_on_the_host_run_eagerly(executor, caplog, monkeypatch):
    """Llama 4 scales queries by it. Nothing but the scaling layers is refused, so no compiler is started here."""
    with torch.inference_mode(False):
        model = build(
            "llama4_text",
            num_hidden_layers=1,
            intermediate_size_mlp=48,
            num_local_experts=4,
            layer_types=["full_attention"],
            no_rope_layers=[0],
            floor_scale=32,
        )
    monkeypatch.setattr(compiled, "has_compiler", lambda: True)
    expected = outputs(Target(model), 3)
    for _ in range(2):
        torch.testing.assert_close(outputs(Target(model, executor), 3), expected, **NEAR)
        executor.settle([])
    assert executor.ran == 0
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "a layer cannot be compiled and goes on to run eagerly: it reads the length of the text on the host"
    ]


@torch.inference_mode()
def test_without_a_compiler_passes_run_eagerly_and_one_line_says_so(executor, caplog, monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with torch.inference_mode(False):
        model = build("llama")
    target = Target(model, executor)
    for _ in range(2):
        torch.testing.assert_close(outputs(target, 3), outputs(Target(model), 3), **NEAR)
        executor.settle([])
    assert [record.message for record in caplog.records] == [
        "no C++ compiler is installed (g++ or clang++), so passes run eagerly; set CXX to name one"
    ]


def test_prompts_and_batches_keep_their_exact_sizes(executor):
    assert [executor.rows(count) for count in (1, 2, 4, 5, 300)] == [1, 4, 4, 5, 300]


def test_costs_belong_to_a_runtime():
    model = build("llama")
    eager, compiling = (described(Target(model, make_executor("exact", runtime))) for runtime in ("auto", "compiled"))
    assert eager["runtime"] == "eager"
    assert compiling["runtime"] == with_version("compiled")
    assert compiling["runtime"].startswith("compiled")
    assert {**eager, "runtime": compiling["runtime"]} == compiling


def test_what_cannot_be_is_refused():
    with pytest.raises(
        InputError, match="unknown runtime 'compild'; choose from auto, eager, packed, compiled, captured"
    ):
        slipstream.load(build("llama"), "plain", runtime="compild")
    with pytest.raises(InputError, match=r"for a CPU, and the model is on cuda:1; use 'captured' or 'eager'"):
        check_runtime("compiled", torch.device("cuda", 1))
    check_runtime("compiled", torch.device("cpu"))


@needs_compiler
@torch.inference_mode()
def test_an_executor_says_whether_passes_will_cost_something_else(executor, held):
    """Sizes are learnt from cycles, and none that ran before its layers were compiled is like a later one."""
    with torch.inference_mode(False):
        target = Target(build("llama"), executor)
    cache, rows = target.new_cache(8), torch.arange(1)

    def run():
        target.forward(rows, cache.length + rows, target.causal(1), cache)
        cache.commit(None, 1)

    assert not executor.was_preparing()
    run()
    executor.was_preparing()  # the first pass made the cache
    run()
    assert executor.was_preparing()
    assert not executor.was_preparing(), "asked and told"
    run()
    executor.was_preparing()  # the second pass of a size has it compiled
    assert executor.was_preparing(), "that goes on beside what runs"
    held.set()
    executor.settle([run])
    executor.was_preparing()
    run()
    assert not executor.was_preparing()


def test_a_layer_that_stays_eager_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(compiled, "has_compiler", lambda: False)
    executor = CompiledPasses(SMALL)
    model = slipstream.load(build("llama"), "plain")
    model.target.executor = executor
    model.generate(PROMPT, max_new_tokens=6)
    executor.was_preparing()
    model.generate(PROMPT, max_new_tokens=6)
    assert not executor.was_preparing()
