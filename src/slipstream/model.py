"""The user's entry: `load` a target with a drafter, then `generate` or `stream`."""

from __future__ import annotations

import copy
import logging
import operator
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from slipstream.arguments import (
    TEMPLATE_NAMES,
    check_names,
    check_streamer,
    check_tokenizer,
    drop_harmless,
    stop_strings,
    template_arguments,
    with_inputs,
)
from slipstream.chat_template import TemplateArguments, encode_chat
from slipstream.core.logits import resolve
from slipstream.core.sampling import VERIFICATIONS, SamplingSettings, draw_seed
from slipstream.drafting.base import Drafter
from slipstream.engine.engine import Engine
from slipstream.engine.sequence import Request, Step
from slipstream.errors import InputError, unknown_choice
from slipstream.methods.registry import build_drafter, find_method
from slipstream.output import Output, Stats
from slipstream.plain_speed import PlainSpeed
from slipstream.prompt_ids import given_ids
from slipstream.runtime.decisions import agree
from slipstream.runtime.executor import check_runtime, make_executor, suited_executor
from slipstream.runtime.heartbeat import for_life, one_line
from slipstream.runtime.threads import check_threads, check_waiting, settle_threads
from slipstream.skipping.library import is_name
from slipstream.skipping.skip_set import SkipSet
from slipstream.target.adapters import unwrapped
from slipstream.target.dtypes import resolve_dtype, rounding_note
from slipstream.target.loading import find_tokenizer, load_model, load_tokenizer, resolve_device
from slipstream.target.probe import probe
from slipstream.target.sharding import is_sharded, share
from slipstream.target.target import Target
from slipstream.text import AnswerText, decode

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]] | Mapping[str, Any] | torch.Tensor
"""Text (one user turn where the tokenizer has a chat template), chat messages, or token ids taken as they are: a list,
an array or tensor of one row, or what a tokenizer returns for one text."""

logger = logging.getLogger(__name__)

DEFAULT_MAX_NEW_TOKENS = 256

_NO_TOKENIZER = "text prompts need a tokenizer, and none is at hand; pass tokenizer=... to load, or token ids"
_ENCODING = threading.Lock()
"""Several models may share a tokenizer, and the first to encode switches off truncation and padding in it."""

__all__ = ["DEFAULT_MAX_NEW_TOKENS", "Model", "Output", "Prompt", "Stats", "load"]


def load(
    model: str | Path | PreTrainedModel | nn.Module = "tiny",
    drafter: str = "auto",
    *,
    tokenizer: Any = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    attention: str | None = None,
    verification: str = "coupled",
    prefill_chunk: int = 512,
    sizes: str = "exact",
    runtime: str = "auto",
    keep: int = 1,
    threads: int | Literal["auto"] | None = None,
    tp_size: int | None = None,
    **options: Any,
) -> Model:
    """Load a target and a drafter for it.

    model: a hub id, a folder, "tiny" (shipped with the package), "smollm2" (SmolLM2-135M-Instruct from a wheel,
    converted into the user's cache the first time), or a loaded causal language model, also one that PEFT or
    `torch.compile` has wrapped. A folder may hold a PEFT adapter. Of image-text models the text alone is used.
    drafter: a method name; `slipstream methods` lists them. "auto" takes the head given as `draft` or one that ships
    for the model, and prompt lookup beside it or alone, and decodes plainly where drafts do not pay.
    options: the method's own, such as `draft`, `skip_set`, `tree`.
    tokenizer: by default the model's own; a folder without one is for token ids.
    dtype: float32, float64, bfloat16, float16 or fp32, fp64, bf16, fp16; by default as saved. On a CPU tiny is
    float32, and smollm2 bfloat16 where the processor has instructions for it, else float32; a model of one's own that
    would be faster in another dtype is named in the log (INFO).
    device: "cpu", "cuda", "cuda:1", "auto"; by default CUDA where there is one. attention: "sdpa" or "eager".
    verification: "coupled" (sampled output is plain sampling's, token for token) or "rejection" (the published rules).
    prefill_chunk: prompt tokens run at once. sizes: "exact", or "fixed" for passes padded to a few sizes, which costs
    time and is what compiled passes have. runtime: how passes are run: "eager"; on a CPU "packed", which packs
    weights in bfloat16 or float32 for few rows (as much memory again), or "compiled", which compiles layers beside the
    first passes, too; on CUDA "captured", which records whole drafts and verifications as CUDA graphs. "auto" is packed
    where that is faster and takes a quarter of the available memory at most, else eager.
    keep: texts whose keys and values are kept in memory, so that of a prompt that begins with the same tokens the rest
    alone is run; 0: none. `Model.forget` lets go of them.
    threads: of PyTorch on a CPU, in the whole process; "auto": what suits the model, as the commands choose; None: as
    many as PyTorch has.
    tp_size: processes that share the target's weights (tensor parallelism), started by torchrun; each runs the same
    program and gets the same answers (docs/tensor-parallel.md).

    Raises InputError, ArtifactError for what cannot be loaded, UnsupportedTargetError for a model whose draft trees
    would not be verified exactly.
    """
    if verification not in VERIFICATIONS:
        raise unknown_choice("verification", verification, VERIFICATIONS)
    if threads != "auto":
        check_threads(threads, "threads")
    given = {name: value for name, value in options.items() if value is not None}
    make_executor(sizes, runtime)
    find_method(drafter, given)  # before minutes may go into loading the target
    _read_skip_set(given)
    if tp_size is not None:
        if runtime not in ("auto", "eager"):
            raise InputError(f"runtime={runtime!r} runs no sharded target; use runtime='eager' with tp_size")
        runtime = "eager"
    if isinstance(model, str | Path):
        loaded = load_model(model, dtype=dtype, device=device, attention=attention, tp_size=tp_size)
        tokenizer = find_tokenizer(model) if tokenizer is None else tokenizer
    else:
        loaded = unwrapped(model)
        _refuse_moving(loaded, dtype, device, attention)
        if tp_size is not None:
            raise InputError("tp_size was asked for a loaded model; give its name or folder, or load it sharded")
    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(tokenizer)
    if is_sharded(loaded):
        share()
        for_life()
    target = Target(loaded, suited_executor(sizes, runtime, loaded))
    with one_line():
        return _ready(target, drafter, given, tokenizer, verification, prefill_chunk, keep, runtime, threads)


def _ready(
    target: Target,
    drafter: str,
    options: dict[str, Any],
    tokenizer: Any,
    verification: str,
    prefill_chunk: int,
    keep: int,
    runtime: str,
    threads: int | Literal["auto"] | None,
) -> Model:
    """A target that is loaded, checked and with its drafter."""
    if is_sharded(target.model):
        _ = target.hash  # which all processes make together, whoever asks for it later
    check_runtime(runtime, target.device)
    if threads is not None:
        settle_threads(target, None if threads == "auto" else threads)
    check_waiting(target)
    probe(target)
    built = _build(drafter, target, options, tokenizer)
    if (rounds := rounding_note(target.dtype)) and built.name != "plain":
        logger.info("%s", rounds)
    return Model(target, built, tokenizer, verification, prefill_chunk, keep)


def _read_skip_set(options: dict[str, Any]) -> None:
    """Put the skip set in the place of its file."""
    if isinstance(options.get("skip_set"), str | Path) and not is_name(options["skip_set"]):
        options["skip_set"] = SkipSet.load(options["skip_set"])


def _build(drafter: str, target: Target, options: dict[str, Any], tokenizer: Any) -> Drafter:
    built = build_drafter(drafter, target, options, tokenizer)
    target.check_features(built.features)
    return built


def _refuse_moving(
    model: PreTrainedModel, dtype: str | torch.dtype | None, device: str | torch.device | None, attention: str | None
) -> None:
    """A model that the caller has loaded is used as it is; asking for another type or place is an error."""
    if dtype is not None and resolve_dtype(dtype) != model.dtype:
        raise InputError(f"dtype={dtype} was asked for a loaded model of {model.dtype}; convert it before loading")
    if device is not None and not _is_on(model.device, device):
        raise InputError(f"device={device} was asked for a loaded model on {model.device}; move it before loading")
    if attention is not None and attention != model.config.get_text_config()._attn_implementation:
        raise InputError(f"attention={attention!r} was asked for a loaded model; set it when loading the model")


def _is_on(place: torch.device, asked: str | torch.device) -> bool:
    """Whether a model at `place` is where it was asked to be; "cuda" means any CUDA device, "auto" any at all."""
    if asked == "auto":
        return True
    wanted = resolve_device(asked)
    return wanted.type == place.type and wanted.index in (None, place.index)


class Model:
    """A target with a drafter, ready to generate."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        tokenizer: Any = None,
        verification: str = "coupled",
        prefill_chunk: int = 512,
        keep: int = 1,
    ) -> None:
        self.target, self.drafter, self.tokenizer, self.verification = target, drafter, tokenizer, verification
        self.engine = Engine(target, drafter, prefill_chunk=prefill_chunk, keep=keep)
        self._plain_speed = PlainSpeed(target)

    @property
    def method(self) -> str:
        """Name of the drafting method."""
        return self.drafter.name

    def with_method(self, drafter: str, **options: Any) -> Model:
        """Another method over the same target, which is not loaded again; this model stays usable.

        drafter: a method name. options: the method's own, as for `load`; None is left out. Raises InputError for a
        method that is unknown or does not fit, ArtifactError for what cannot be loaded.
        """
        given = {name: value for name, value in options.items() if value is not None}
        find_method(drafter, given)
        _read_skip_set(given)
        built = _build(drafter, self.target, given, self.tokenizer)
        chunk, keep = self.engine.prefill_chunk, self.engine.kept.most
        return Model(self.target, built, self.tokenizer, self.verification, chunk, keep)

    def forget(self) -> None:
        """Let go of the texts that are kept, and their memory.

        Needed after the target was changed through `.data` of its weights or by switching adapters. Changes by an
        optimiser or `load_state_dict` are noticed.
        """
        self.engine.forget()
        self.target.forget()

    def generate(
        self, prompt: Prompt | None = None, generation_config: GenerationConfig | None = None, **settings: Any
    ) -> Output:
        """Answer a prompt, and return the whole answer with its token ids and statistics.

        prompt: text (one user turn where the tokenizer has a chat template), a list of messages of the form
        {"role": ..., "content": ...}, token ids as a list, array or tensor of one row, or what a tokenizer returned,
        also spread over arguments as `generate(**tokenizer(text, return_tensors="pt"))`.
        generation_config: a `transformers.GenerationConfig` instead of the model's own, which fills its gaps.

        Settings, all of them optional, by the names of `transformers`:

        max_new_tokens: tokens of the answer at most; by default the model's own setting, else 256.
        max_length: the same, the prompt counted too.
        temperature, top_k, top_p, min_p: by default the model's `generation_config`; temperature 0 is greedy.
        do_sample: False is greedy, True samples at the model's temperature; where a temperature is given, that decides.
        seed: same seed, same text (with verification="rejection" only where the drafts are the same too); drawn and
        reported if not given. stream_id: separates samples of one seed.
        stop, stop_strings: one or several strings before which the text ends.
        eos_token_id: one or several tokens that end the answer, instead of the model's.
        repetition_penalty, presence_penalty, frequency_penalty, min_new_tokens, no_repeat_ngram_size, bad_words_ids
        and the others that `slipstream.core.logits.SETTING_NAMES` lists.
        verification: "coupled" or "rejection", instead of the one that was loaded with.
        logprobs: report each token's log-probability and those of so many of the likeliest tokens, all under the
        model's own distribution, before temperature, truncation and penalties.
        streamer: a streamer of transformers', whose `put` is given the prompt and then the tokens of every cycle.

        For chat templates, with a prompt of text or messages:

        continue_final_message: True lets the answer continue the last message, False makes it one of its own; by
        default a last message of the assistant's is continued.
        tools: a list of functions or JSON schemas that the model may call.
        enable_thinking, and others as chat_template_kwargs={...}: arguments of the model's template.

        What transformers' `generate` takes beside these is accepted where it asks for nothing (pad_token_id,
        use_cache=True, an empty logits_processor), and else refused with the name to use.

        Raises InputError for a bad prompt or setting, UnsupportedSettingError for one without a lossless form.
        """
        steps = self._steps(prompt, generation_config, settings, streaming=False)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                output: Output = end.value
                return output

    def stream(
        self, prompt: Prompt | None = None, generation_config: GenerationConfig | None = None, **settings: Any
    ) -> Generator[Step, None, Output]:
        """Yield a `Step` per draft-verify cycle, with the text that became final in it; the generator returns `Output`.

        Closing it early leaves the model usable. Takes the arguments of `generate`, and raises the same errors when the
        first step is asked for.
        """
        return self._steps(prompt, generation_config, settings, streaming=True)

    def _steps(
        self, prompt: Any, generation_config: Any, settings: dict[str, Any], *, streaming: bool
    ) -> Generator[Step, None, Output]:
        began = time.perf_counter()
        check_streamer(streamer := settings.pop("streamer", None))
        request, text = self.prepare(prompt, generation_config, **settings)
        prompt_ids, counted = list(request.prompt_ids), request.stopper is not None
        steps: list[Step] = []
        waited_s = 0.0  # for the consumer of the stream
        for step in _told(streamer, prompt_ids, _lost_in_one_line(self.engine.generate(request))):
            if streaming and text is not None:
                step = self._with_text(step, text, counted=counted)
            steps.append(step)
            yielded = time.perf_counter()
            yield step
            waited_s += time.perf_counter() - yielded
        total_s = time.perf_counter() - began - waited_s
        token_ids = [token for step in steps for token in step.token_ids]
        assert steps[-1].finish_reason is not None
        return Output(
            text=self._whole_text(text, token_ids, counted=streaming or counted),
            token_ids=token_ids,
            prompt_ids=prompt_ids,
            finish_reason=steps[-1].finish_reason,
            seed=None if request.processing.is_greedy else request.sampling.seed,
            stats=Stats.of(steps, total_s, self._plain_speed.seconds(steps, len(prompt_ids))),
            logprobs=None if request.logprobs is None else [one for step in steps for one in step.logprobs],
        )

    def prepare(
        self, prompt: Prompt | None = None, generation_config: GenerationConfig | None = None, **settings: Any
    ) -> tuple[Request, AnswerText | None]:
        """What `generate` asks of the engine, and what turns the answer's tokens into text; None without a tokenizer.

        For callers that drive the engine themselves. Where there are stop strings the text is the request's stopper and
        sees its tokens in the engine. Takes the arguments of `generate` but the streamer, and raises the same errors.
        """
        prompt = with_inputs(prompt, settings)
        check_names(settings)
        settings = {name: _own_number(value) for name, value in settings.items() if value is not None}
        drop_harmless(settings)
        check_tokenizer(settings.pop("tokenizer", None), self.tokenizer)
        config = self._generation_config(generation_config)
        prompt_ids = self._encode(prompt, template_arguments(settings))
        stop, logprobs = stop_strings(settings, config.stop_strings), settings.pop("logprobs", None)
        text = self.answer_text(stop)
        request = self.build_request(prompt_ids, config, settings, stopper=text if stop else None, logprobs=logprobs)
        return request, text

    def encode_raw(self, text: str) -> list[int]:
        """Token ids of text as it is, without a chat template. Raises InputError for an empty one."""
        if self.tokenizer is None:
            raise InputError(_NO_TOKENIZER)
        given_ids(text)  # refuses what is no text
        with _ENCODING:
            ids: list[int] = self.tokenizer.encode(text)
        if not ids:
            raise InputError("the prompt is empty; give some text")
        return ids

    def encode(self, prompt: Prompt, **template: Any) -> list[int]:
        """Token ids of a prompt, the chat template applied to text and messages.

        template: `continue_final_message`, `tools`, `enable_thinking`, `chat_template_kwargs` as for `generate`. Raises
        InputError for an empty prompt, and for what the template refuses or does not read.
        """
        arguments = template_arguments(template)
        if template:
            raise unknown_choice("argument", next(iter(template)), TEMPLATE_NAMES)
        return self._encode(prompt, arguments)

    def _encode(self, prompt: Any, template: TemplateArguments) -> list[int]:
        given = given_ids(prompt)
        if not (prompt if given is None else given):
            raise InputError("the prompt is empty; give some text, a message or at least one token id")
        has_template = getattr(self.tokenizer, "chat_template", None) is not None
        is_chat = given is None and (has_template or not isinstance(prompt, str))
        if template.given and not is_chat:
            raise InputError(f"{template.given[0]} is for a chat template, which this prompt does not go through")
        if given is not None:
            return given
        if self.tokenizer is None:
            raise InputError(_NO_TOKENIZER)
        if not is_chat:
            return self.encode_raw(prompt)
        if isinstance(prompt, str) and template.continue_final_message:
            raise InputError("continue_final_message continues a message; give the prompt as a list of messages")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        with _ENCODING:
            return encode_chat(self.tokenizer, messages, template)

    def answer_text(self, stop: str | Sequence[str] | None, tokenizer: Any = None) -> AnswerText | None:
        """What turns an answer's tokens into text, up to a stop string; None without a tokenizer.

        tokenizer: instead of the model's. Raises InputError for stop strings that are none or find no tokenizer.
        """
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        strings = [stop] if isinstance(stop, str) else list(stop or ())
        if any(not isinstance(one, str) or not one for one in strings):
            raise InputError(f"stop is {stop!r}; give one or several strings that are not empty")
        if tokenizer is None:
            if strings:
                raise InputError("stop strings need a tokenizer; pass tokenizer=... to load")
            return None
        return AnswerText(tokenizer, strings)

    def _generation_config(self, given: GenerationConfig | None) -> GenerationConfig:
        """The model's own, or the caller's with its gaps filled from the model's, as `generate` does."""
        own: GenerationConfig = self.target.model.generation_config
        if given is None:
            return own
        if not isinstance(given, GenerationConfig):
            raise InputError(f"generation_config is a {type(given).__name__}; give a transformers GenerationConfig")
        merged = copy.deepcopy(given)
        for name, value in own.to_dict().items():
            if getattr(merged, name, None) is None:
                setattr(merged, name, value)
        return merged

    def build_request(
        self,
        prompt_ids: list[int],
        generation_config: GenerationConfig,
        settings: Mapping[str, Any],
        *,
        stopper: AnswerText | None = None,
        logprobs: int | None = None,
    ) -> Request:
        """What the engine is asked: `settings` by the names of `generate` over a configuration without gaps.

        stopper: watches for stop strings. Raises as `generate` does.
        """
        settings = dict(settings)
        seed = settings.pop("seed", None)
        sampling = SamplingSettings(
            seed=agree(draw_seed()) if seed is None else seed,
            stream=settings.pop("stream_id", 0),
            verification=settings.pop("verification", self.verification),
        )
        eos = settings.pop("eos_token_id", generation_config.eos_token_id)
        budget = _budget(settings, generation_config, len(prompt_ids))
        processing = resolve(
            generation_config,
            settings,
            prompt_length=len(prompt_ids),
            max_new_tokens=budget,
            eos_token_ids=_token_ids(eos, self.target.vocab_size),
        )
        return Request(
            prompt_ids=prompt_ids, processing=processing, sampling=sampling, stopper=stopper, logprobs=logprobs
        )

    def _with_text(self, step: Step, text: AnswerText, *, counted: bool) -> Step:
        """counted: the engine has already shown the tokens to `text`, looking for stop strings."""
        if not counted:
            for token in step.token_ids:
                text.append_token(token)
        return replace(step, text=text.release(final=step.finish_reason is not None))

    def _whole_text(self, text: AnswerText | None, token_ids: list[int], *, counted: bool) -> str:
        """counted: `text` has seen the tokens, so that it says where a stop string begins and what was streamed."""
        if text is None:
            return ""
        if not counted:
            return decode(self.tokenizer, token_ids)
        text.release(final=True)  # takes in what was held back
        return text.text


def _own_number(value: Any) -> Any:
    """Python's own in place of a number of NumPy's or a tensor that holds one."""
    return value.item() if getattr(value, "shape", None) == () else value


def _lost_in_one_line(steps: Iterator[Step]) -> Iterator[Step]:
    """The steps; where another process that shares the target has ended, a line says so."""
    with one_line():
        yield from steps


def _told(streamer: Any, prompt_ids: list[int], steps: Iterable[Step]) -> Iterator[Step]:
    """The steps, of which a streamer of transformers' is told as `generate` tells it: the prompt, tokens, the end."""
    if streamer is None:
        yield from steps
        return
    try:
        streamer.put(torch.tensor([prompt_ids]))
        for step in steps:
            streamer.put(torch.tensor(step.token_ids))
            yield step
    finally:
        streamer.end()


def _budget(settings: dict[str, Any], generation_config: GenerationConfig, prompt_length: int) -> int:
    """Tokens of the answer at most. Takes max_new_tokens and max_length out of the settings."""
    given = {name: settings.pop(name) for name in ("max_new_tokens", "max_length") if name in settings}
    if len(given) > 1:
        raise InputError("max_new_tokens and max_length both limit the answer; give one of them")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; it must be a whole number of at least 1")
    if "max_new_tokens" in given:
        return int(given["max_new_tokens"])
    if "max_length" in given:
        return _after_prompt(given["max_length"], prompt_length, "max_length")
    if generation_config.max_new_tokens is not None:
        return int(generation_config.max_new_tokens)
    if generation_config.max_length is None:
        return DEFAULT_MAX_NEW_TOKENS
    return _after_prompt(generation_config.max_length, prompt_length, "the generation_config's max_length")


def _after_prompt(max_length: int, prompt_length: int, what: str) -> int:
    if max_length <= prompt_length:
        raise InputError(
            f"the prompt has {prompt_length} tokens, but {what} of prompt and answer is {max_length}; give "
            "max_new_tokens"
        )
    return int(max_length) - prompt_length


def _token_ids(value: Any, vocab_size: int) -> tuple[int, ...]:
    """The end tokens in any form. Raises InputError for what is no token of the vocabulary."""
    if value is None:
        return ()
    several = value.reshape(-1).tolist() if hasattr(value, "tolist") else value
    if not isinstance(several, Iterable) or isinstance(several, str | bytes):
        several = (several,)
    ids = tuple(several)
    for token in ids:
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise InputError(f"eos_token_id is {value!r}; it must be a token id or a list of them")
        if not 0 <= token < vocab_size:
            raise InputError(
                f"the end token {token} is not in the target's vocabulary of {vocab_size}; give another eos_token_id"
            )
    return tuple(map(operator.index, ids))
