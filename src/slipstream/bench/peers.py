"""The peers of a benchmark: transformers' own decoding on the very model that our methods run on.

A peer gets the same weights, prompt ids, distribution (see `peer_settings.py`) and cuts as our methods, and
transformers' own defaults for all that concerns drafting; nothing is tuned up or down. What is worth knowing when
reading its figures (transformers 5.17 to 5.23):

- `hf-assisted` and `hf-early-exit` warp the assistant's logits twice (`generate` adds its warpers to those handed to
  it): at a temperature other than 1, drafts are drawn from a distribution that is too sharp or too flat. The output
  stays exact, since the probabilities compared are the ones drawn from.
- `hf-prompt-lookup` samples a token at every row and compares it with the draft.
- Logits are processed in float32, also those of a float64 model.
- `hf-compiled` compiles on a CPU only because its config says so for all devices; "static" alone does not. `generate`
  compiles for one length of the cache and, where a second comes, for all: both happen before the first answer.
- `hf-early-exit` calls `generate` anew for each draft. On a model that was not trained to leave early hardly a draft is
  right, and it is slower than `hf-plain`: 0.3 to 0.6 of its speed in processor time on the demo's shipped prompts.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import CompileConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from slipstream.bench.peer_settings import eos_token_ids, generation_config_of, peer_settings
from slipstream.errors import InputError, SlipstreamError, UnsupportedTargetError, first_line, unknown_choice
from slipstream.methods.draft_model.checkpoint import load_draft
from slipstream.runtime.timing import synchronize
from slipstream.target.shadow import forget_longer_passes
from slipstream.target.target import Target


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """What a peer is."""

    summary: str
    option: Literal["draft", "exit_layer"] | None = None
    """The one option of `peer` that it takes."""
    needs: str = ""
    """What the target must have for it, in words; empty: nothing."""
    only_if_named: bool = False
    """Whether a benchmark of all that can run leaves it out."""


PEERS: Mapping[str, PeerSpec] = {
    "hf-plain": PeerSpec("transformers' generate, one token a pass"),
    "hf-assisted": PeerSpec(
        "transformers' assisted generation with a draft model", "draft", "a draft model with the target's vocabulary"
    ),
    "hf-prompt-lookup": PeerSpec("transformers' prompt lookup, up to 10 tokens a draft"),
    "hf-early-exit": PeerSpec(
        "transformers' self-speculation: the target's first layers draft",
        "exit_layer",
        "a model that transformers can leave early",
        only_if_named=True,
    ),
    "hf-compiled": PeerSpec(
        "transformers' generate with a static cache and compiled passes, one token a pass",
        needs="a C++ compiler, on a CPU",
        only_if_named=True,
    ),
}
_LOOKUP_TOKENS = 10  # what transformers' PromptLookupCandidateGenerator takes by default; `generate` wants it named


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAnswer:
    """One answer of a peer, counted as ours are (`slipstream.output.Stats`)."""

    token_ids: list[int]
    """Without the prompt; up to the end-of-sequence token (included), the budget or the context limit."""
    seconds: float
    """Wall time of `generate`, prefill included, the device idle before and after."""
    prefill_s: float
    """Of that, until the first pass had emitted its tokens."""
    accept_lengths: list[int]
    """Histogram: entry k counts the target's passes that emitted k tokens."""

    @property
    def num_passes(self) -> int:
        """Passes of the target that emitted tokens; transformers' prefill is the first of them.

        It compares with `Stats.num_cycles`: our prefill ends before the prompt's last token and emits nothing.
        """
        return sum(self.accept_lengths)

    @property
    def tau(self) -> float:
        """Tokens emitted per pass of the target."""
        return len(self.token_ids) / self.num_passes


def peer(
    name: str,
    target: Target,
    tokenizer: Any = None,
    *,
    draft: str | Path | PreTrainedModel | None = None,
    exit_layer: int | None = None,
) -> Peer:
    """A peer for a target, after a trial of a few tokens.

    name: one of `PEERS`. tokenizer: the target's, to compare with the draft model's.
    draft: for `hf-assisted`, whatever `load_draft` takes. exit_layer: for `hf-early-exit`, how many layers draft; by
    default half of them.

    Raises InputError, with the reason, where the peer does not apply to the target.
    """
    spec = PEERS.get(name)
    if spec is None:
        raise unknown_choice("peer", name, PEERS)
    for option, value in (("draft", draft), ("exit_layer", exit_layer)):
        if value is not None and option != spec.option:
            raise InputError(f"{name} takes no {option}; leave it out")
    made = Peer(name, target)
    if name == "hf-assisted":
        made = Peer(name, target, assistant=_assistant(target, draft, tokenizer))
    elif name == "hf-prompt-lookup":
        made = Peer(name, target, {"prompt_lookup_num_tokens": _LOOKUP_TOKENS})
    elif name == "hf-early-exit":
        made = Peer(name, target, {"assistant_early_exit": _exit_layer(target, exit_layer)})
    elif name == "hf-compiled":
        made = Peer(name, target, {"cache_implementation": "static", "compile_config": _compile_config()})
        _compile(made)
    _try(made)
    return made


@dataclass(frozen=True, slots=True)
class Peer:
    """One way of transformers to decode on a target. `peer` makes it."""

    name: str
    target: Target
    drafting: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `generate` that choose how it drafts."""
    assistant: PreTrainedModel | None = None

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        top_p: float | None = None,
        top_k: int | None = None,
    ) -> PeerAnswer:
        """Answer a prompt. temperature: 0 decodes greedily. top_p, top_k (0: off): by default the model's own.

        The model, its configs and the caller's random state are left as they were, and no answer depends on an
        earlier one. Raises ContextLengthError for a prompt without room, UnsupportedSettingError for a model whose
        generation_config our methods refuse too, and whatever transformers raises.
        """
        model = self.target.model
        settings = peer_settings(
            self.target,
            len(prompt_ids),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
        )
        drafting = copy.deepcopy(settings)
        drafting.update(**self.drafting)
        extra = {} if self.assistant is None else {"assistant_model": self.assistant}
        passes = _Passes()
        with ExitStack() as stack:
            stack.enter_context(_seeded(seed))
            stack.enter_context(generation_config_of(model, settings))  # what a pass that drafts falls back to
            if self.assistant is not None:
                own = copy.deepcopy(self.assistant.generation_config)
                stack.enter_context(generation_config_of(self.assistant, own))
            if drafting.assistant_early_exit is not None:
                stack.enter_context(_layers_put_back(model))
            stack.enter_context(_without_own_deprecations())
            if self.target.family.remembers_passes:
                forget_longer_passes(model)
            synchronize(self.target.device)
            began = time.perf_counter()
            ids = torch.tensor([list(prompt_ids)], device=self.target.device)  # [1, prompt]
            mask = torch.ones_like(ids)
            model.generate(ids, attention_mask=mask, generation_config=drafting, streamer=passes, **extra)
            synchronize(self.target.device)
            seconds = time.perf_counter() - began
        assert settings.max_new_tokens is not None
        return _answer(
            passes.emitted, settings.max_new_tokens, eos_token_ids(settings), seconds, passes.first_at - began
        )


class _Passes(BaseStreamer):  # type: ignore[misc]  # transformers does not type it
    """Keeps what every pass of the target emits, by transformers' own account; the model needs no hook for it.

    `generate` streams the prompt first, then the tokens of each pass of the target as one tensor. Passes that draft are
    not streamed, whether an assistant's or the target's own early exits.
    """

    def __init__(self) -> None:
        self._streamed: list[Tensor] = []
        self.first_at = 0.0
        """When the first pass had emitted its tokens, by `time.perf_counter`."""

    def put(self, value: Tensor) -> None:
        self._streamed.append(value)
        if len(self._streamed) == 2:
            self.first_at = time.perf_counter()

    def end(self) -> None:
        pass

    @property
    def emitted(self) -> list[list[int]]:
        """The tokens of each pass."""
        return [tokens.flatten().tolist() for tokens in self._streamed[1:]]


def _answer(
    emitted: Iterable[list[int]], budget: int, eos: Sequence[int], seconds: float, prefill_s: float
) -> PeerAnswer:
    """The answer up to its end, whatever transformers emits behind it in the same pass."""
    token_ids: list[int] = []
    lengths: list[int] = []  # tokens of each pass
    for tokens in emitted:
        end = next((place + 1 for place, token in enumerate(tokens) if token in eos), len(tokens))
        kept = tokens[: min(end, budget - len(token_ids))]
        token_ids += kept
        lengths.append(len(kept))
        if len(token_ids) == budget or kept[-1] in eos:
            break
    accept_lengths = [lengths.count(length) for length in range(max(lengths) + 1)]
    return PeerAnswer(token_ids=token_ids, seconds=seconds, prefill_s=prefill_s, accept_lengths=accept_lengths)


def _assistant(target: Target, draft: str | Path | PreTrainedModel | None, tokenizer: Any) -> PreTrainedModel:
    if draft is None:
        raise InputError("hf-assisted needs a draft model; give draft=...")
    assistant = load_draft(draft, target, tokenizer).model
    own, other = (model.config.get_text_config().vocab_size for model in (target.model, assistant))
    if own != other:  # transformers would re-encode text, and when sampling replace the assistant's head for good
        raise InputError(
            f"hf-assisted does not apply: the draft model has {other} token ids, the target {own}; transformers "
            "compares token ids only where the numbers are equal"
        )
    return assistant


def _exit_layer(target: Target, asked: int | None) -> int:
    """The number of layers that draft, checked by a pass that leaves early.

    It drafts with `config.num_hidden_layers` lowered. Models that read it on every pass stop there; for others nothing
    changes, and a draft would cost as much as the target's own tokens.
    """
    exit_layer = target.num_layers // 2 if asked is None else asked
    if not 1 <= exit_layer < target.num_layers:
        raise InputError(
            f"hf-early-exit does not apply: exit_layer is {exit_layer}, but of {target.num_layers} layers "
            f"1 to {target.num_layers - 1} can draft"
        )
    num_run = _num_layers_run(target, exit_layer)
    if num_run != exit_layer:
        raise UnsupportedTargetError(
            f"hf-early-exit does not apply to {target.name}: {type(target.model).__name__} runs {num_run} layers when "
            f"transformers asks it to leave after {exit_layer}"
        )
    return exit_layer


@torch.inference_mode()
def _num_layers_run(target: Target, exit_layer: int) -> int:
    run: list[None] = []
    token = torch.zeros(1, 1, dtype=torch.int64, device=target.device)
    handles = [layer.register_forward_pre_hook(lambda *_: run.append(None)) for layer in target.layers]
    try:
        with _layers_put_back(target.model):
            _base(target.model).config.num_hidden_layers = exit_layer
            target.model(input_ids=token, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return len(run)


@contextmanager
def _layers_put_back(model: PreTrainedModel) -> Iterator[None]:
    """Early exit lowers the number of layers while it drafts, and leaves it so where drafting fails."""
    config = _base(model).config
    num_layers = config.num_hidden_layers
    try:
        yield
    finally:
        config.num_hidden_layers = num_layers


def _base(model: PreTrainedModel) -> Any:
    """The inner model whose config transformers' early exit changes."""
    return getattr(model, model.base_model_prefix)


def _compile_config() -> CompileConfig:
    """Compile on every device; kernels as inductor chooses them."""
    config = CompileConfig()
    config._compile_all_devices = True
    return config


def _compile(made: Peer) -> None:
    """Let it compile what serves all lengths. Raises UnsupportedTargetError where transformers runs eagerly instead."""
    from torch._dynamo.utils import counters  # a second and a half

    before = counters["stats"]["unique_graphs"]
    for length in (3, 5):
        _try(made, [0, 1, 0, 1, 0][:length])
    if counters["stats"]["unique_graphs"] == before:
        raise UnsupportedTargetError(
            f"{made.name} does not apply to {made.target.name}: transformers {transformers.__version__} does not "
            "compile it"
        )


def _try(made: Peer, prompt_ids: Sequence[int] = (0, 1, 0)) -> None:
    """Let a peer answer once greedily and once by sampling. Raises UnsupportedTargetError if transformers fails."""
    for temperature in (0.0, 1.0):
        try:
            made.generate(prompt_ids, max_new_tokens=4, temperature=temperature, seed=0)
        except SlipstreamError:
            raise
        except Exception as error:  # whatever it is, it comes from transformers and would come up in every answer
            raise UnsupportedTargetError(
                f"{made.name} does not apply to {made.target.name}: transformers {transformers.__version__} fails with "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error


@contextmanager
def _without_own_deprecations() -> Iterator[None]:
    """Without transformers' advice against how its own assisted generation calls `generate` for a draft."""
    adviser = logging.getLogger("transformers.generation.utils")

    def is_for_the_user(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Passing `generation_config` together with generation-related")

    adviser.addFilter(is_for_the_user)
    try:
        yield
    finally:
        adviser.removeFilter(is_for_the_user)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators, which `generate` draws from, seeded for a while."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
