"""What the OpenAI API answers: whole, or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import slipstream
from slipstream.core.logprobs import TokenLogprobs
from slipstream.engine.sequence import DraftTrace, FinishReason
from slipstream.model import Model
from slipstream.server.asking import Asked
from slipstream.server.worker import Piece

_REASONS: dict[FinishReason, str] = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}
_LEAST_LOGPROB = -9999.0
"""Stands for log-probabilities that JSON has no number for."""


class Form:
    """The answers to one request in the form of its kind."""

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, model: Model, name: str, asked: Sequence[Asked]) -> None:
        self._tokenizer, self._num_answers = model.tokenizer, len(asked)
        self._head = {"id": self.prefix + uuid.uuid4().hex, "created": int(time.time()), "model": name}
        self._head["system_fingerprint"] = f"slipstream-{slipstream.__version__}-{model.method}"
        self._prompts = {one.prompt: len(one.request.prompt_ids) for one in asked}
        self._wants_logprobs = asked[0].request.logprobs is not None

    def whole(self, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """pieces: all of each answer."""
        choices = [self._choice(index, answer) for index, answer in enumerate(pieces)]
        return {**self._head, "object": self.whole_object, "choices": choices, "usage": self.usage(pieces)}

    def chunk(self, index: int, piece: Piece, *, is_first: bool) -> dict[str, Any]:
        """One piece of one answer."""
        choices = [self._chunk_choice(index, piece, is_first)]
        chunk = {**self._head, "object": self.chunk_object, "choices": choices}
        return chunk if piece.draft is None else {**chunk, "slipstream": self._trace(piece, piece.draft)}

    def _trace(self, piece: Piece, draft: DraftTrace) -> dict[str, Any]:
        """One cycle, for those who ask for traces."""
        tree = {"tokens": list(map(self._token, draft.tokens)), "parents": draft.parents, "path": draft.path}
        return {
            "parts": piece.parts,
            "num_tokens": len(piece.token_ids),
            "num_drafted": piece.num_drafted,
            "num_accepted": piece.num_accepted,
            "draft": tree,
        }

    def usage_chunk(self, pieces: Iterable[Iterable[Piece]]) -> dict[str, Any]:
        """The last chunk, for those who ask for usage."""
        return {**self._head, "object": self.chunk_object, "choices": [], "usage": self.usage(pieces)}

    def usage(self, pieces: Iterable[Iterable[Piece]]) -> dict[str, int]:
        """Tokens of the prompts, each counted once, and of all answers."""
        prompt, answer = sum(self._prompts.values()), sum(len(one.token_ids) for many in pieces for one in many)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        logprobs = self._logprobs([one for piece in pieces for one in piece.logprobs])
        return {"index": index, **self._content(text), "logprobs": logprobs, "finish_reason": _reason(pieces[-1])}

    def _chunk_choice(self, index: int, piece: Piece, is_first: bool) -> dict[str, Any]:
        logprobs = self._logprobs(piece.logprobs)
        return {
            "index": index,
            **self._delta(piece.text, is_first),
            "logprobs": logprobs,
            "finish_reason": _reason(piece),
        }

    def _token(self, token: int) -> str:
        text: str = self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _content(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, text: str, is_first: bool) -> dict[str, Any]:
        raise NotImplementedError

    def _logprobs(self, tokens: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        raise NotImplementedError


class ChatForm(Form):
    """Of `/v1/chat/completions`."""

    prefix, whole_object, chunk_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def _delta(self, text: str, is_first: bool) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": text} if is_first else {"content": text}}

    def _logprobs(self, tokens: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        content = [
            {**self._entry(one.token_id, one.logprob), "top_logprobs": [self._entry(*pair) for pair in one.top]}
            for one in tokens
        ]
        return {"content": content}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._token(token)
        return {"token": text, "logprob": max(logprob, _LEAST_LOGPROB), "bytes": list(text.encode())}


class CompletionForm(Form):
    """Of `/v1/completions`."""

    prefix, whole_object, chunk_object = "cmpl-", "text_completion", "text_completion"

    def __init__(self, model: Model, name: str, asked: Sequence[Asked]) -> None:
        super().__init__(model, name, asked)
        self._offsets = [0] * len(asked)

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        self._offset = 0
        return super()._choice(index, pieces)

    def _chunk_choice(self, index: int, piece: Piece, is_first: bool) -> dict[str, Any]:
        self._offset = self._offsets[index]
        choice = super()._chunk_choice(index, piece, is_first)
        self._offsets[index] = self._offset
        return choice

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _delta(self, text: str, is_first: bool) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, tokens: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        texts, offsets = [self._token(one.token_id) for one in tokens], []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [max(one.logprob, _LEAST_LOGPROB) for one in tokens],
            "top_logprobs": [
                {self._token(token): max(logprob, _LEAST_LOGPROB) for token, logprob in one.top} for one in tokens
            ],
            "text_offset": offsets,
        }


def _reason(piece: Piece) -> str | None:
    return None if piece.finish_reason is None else _REASONS[piece.finish_reason]
