"""The process of a peer: it loads a model once and answers requests, in lines of JSON on stdin and stdout.

    -> {"peer": "llama-cpp", "model": "smollm2.gguf", "threads": 2, ...}     what to load
    <- {"software": "llama-cpp-python 0.3.36"}
    -> {"prompt_ids": [1, 2], "max_new_tokens": 3, "temperature": 0, ...}    a request; so on until stdin ends
    <- {"token_ids": [5, 6, 7], "seconds": 0.31, "prefill_s": 0.05, "accept_lengths": [0, 3]}

`{"error": "..."}` says in one line why there is no reply of the other kind.

This file runs in the interpreter of the peer, where Slipstream need not be installed: it imports nothing of it.
Between requests the process waits for the next line, so that no other entrant is measured beside it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Any, Protocol

_ASLEEP_S = 0.05
"""After an answer, until the threads of its software have stopped to spin; GNU OpenMP's do so for some 20 ms."""


_OPENVINO_LOOKUP: Mapping[str, int] = {"num_assistant_tokens": 5, "max_ngram_size": 3}
"""Of prompt lookup; `generate` wants them named, and these are those of its own samples."""


class Answering(Protocol):
    """A loaded peer."""

    software: str
    """Its name and version."""

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request."""


def serve(load: Callable[[Mapping[str, Any]], Answering]) -> None:
    """Load what the first line asks for, then answer the others, until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no reply
    peer: Answering | None = None
    for line in sys.stdin:
        try:
            if peer is None:
                peer = load(json.loads(line))
                reply: dict[str, Any] = {"software": peer.software}
            else:
                reply = peer.answer(json.loads(line))
        except Exception as error:  # whatever it is, whoever asked has to hear of it
            reply = {"error": _in_one_line(error)}
        time.sleep(_ASLEEP_S)
        print(json.dumps(reply), file=replies, flush=True)


def _in_one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def timed(tokens: Iterable[int], request: Mapping[str, Any]) -> dict[str, Any]:
    """The reply of software that yields one token a pass: up to an end-of-sequence token or the budget.

    prefill_s: seconds until the first token is there.
    """
    token_ids: list[int] = []
    prefill_s = 0.0
    began = time.perf_counter()
    for token in tokens:
        prefill_s = prefill_s or time.perf_counter() - began
        token_ids.append(token)
        if token in request["eos_token_ids"] or len(token_ids) == request["max_new_tokens"]:
            break
    seconds = time.perf_counter() - began
    return {
        "token_ids": token_ids,
        "seconds": seconds,
        "prefill_s": prefill_s,
        "accept_lengths": [0, len(token_ids)],
    }


class LlamaCpp:
    """llama.cpp, with the settings of llama-cpp-python for all that is not asked for."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        import llama_cpp

        self.software = f"llama-cpp-python {version('llama-cpp-python')}"
        wide = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # of the KV cache
        self._model = llama_cpp.Llama(
            settings["model"],
            n_ctx=settings["context"],
            n_threads=settings["threads"],
            n_threads_batch=settings["threads"],
            verbose=False,
            **(wide if settings["dtype"] == "float32" else {}),
        )
        if self._model.n_vocab() != settings["vocab_size"]:
            raise ValueError(
                f"the GGUF file has {self._model.n_vocab()} token ids, the target {settings['vocab_size']}; "
                "give one of the same model"
            )

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply; no key of an earlier prompt is used again."""
        self._model.reset()
        self._model.set_seed(request["seed"])
        tokens = self._model.generate(
            request["prompt_ids"],
            temp=request["temperature"],
            top_k=0,
            top_p=request["top_p"],
            min_p=0.0,
        )
        return timed(tokens, request)


class OpenVino:
    """OpenVINO GenAI's LLMPipeline, with its own settings for all that is not asked for."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        import openvino_genai

        self.software = f"openvino-genai {version('openvino-genai')}"
        self._drafting = _OPENVINO_LOOKUP if settings["peer"] == "openvino-prompt-lookup" else {}
        precision = {"bfloat16": "bf16", "float32": "f32"}[settings["dtype"]]
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.max_num_batched_tokens = 2**31  # a prompt is one pass, as without this config
        scheduling.enable_prefix_caching = False  # no key of an earlier prompt is used again
        self._pipeline = openvino_genai.LLMPipeline(
            settings["model"],
            "CPU",
            scheduler_config=scheduling,
            INFERENCE_NUM_THREADS=settings["threads"],
            INFERENCE_PRECISION_HINT=precision,
            KV_CACHE_PRECISION=precision,  # 8 bits otherwise
            **({"prompt_lookup": True} if self._drafting else {}),
        )

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request."""
        import numpy
        import openvino
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        how = {"max_new_tokens": request["max_new_tokens"], "do_sample": request["temperature"] > 0, **self._drafting}
        if how["do_sample"]:
            how |= {"temperature": request["temperature"], "top_p": request["top_p"], "rng_seed": request["seed"]}
        config.update_generation_config(stop_token_ids=set(request["eos_token_ids"]), **how)
        ids = numpy.array([request["prompt_ids"]], dtype=numpy.int64)  # [1, prompt]
        prompt = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
        began = time.perf_counter()
        found = self._pipeline.generate(prompt, config)
        seconds = time.perf_counter() - began
        lengths = list(found.perf_metrics.raw_metrics.m_batch_sizes)  # tokens of each pass
        return {
            "token_ids": list(found.tokens[0]),
            "seconds": seconds,
            "prefill_s": found.perf_metrics.get_ttft().mean / 1000,
            "accept_lengths": [lengths.count(length) for length in range(max(lengths) + 1)],
        }


_PEERS: Mapping[str, Callable[[Mapping[str, Any]], Answering]] = {
    "llama-cpp": LlamaCpp,
    "llama-cpp-q4": LlamaCpp,
    "openvino": OpenVino,
    "openvino-prompt-lookup": OpenVino,
}


if __name__ == "__main__":
    serve(lambda settings: _PEERS[settings["peer"]](settings))
