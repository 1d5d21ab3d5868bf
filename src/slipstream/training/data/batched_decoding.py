"""Many answers at once: plain batched decoding of the target for training text, where nobody waits for one answer.

A batch has a fixed number of rows, each with a prompt of its own. A row whose answer has ended takes the next prompt,
so the rows stay busy while prompts last; after that the batch shrinks. Keys and values lie in one buffer a layer, in
which each row writes at its own length: no padding between prompt and answer, and nothing is moved from step to step.

Only for models whose layers all see the whole text (`can_decode_batches`). Speculative decoding is for one answer at a
time and is not used here: a batch has as many rows a pass as a draft tree has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import sdpa_mask

from slipstream.target.arguments import cache_argument
from slipstream.target.attention import NAME, grouped_attention
from slipstream.target.masks import Reach, layer_reaches
from slipstream.target.target import Target

_BLOCK = 256  # tokens of the vocabulary that are drawn together
_PROMPTS = 8  # prompts run at once, so that their padding is little
_SHRINK = 0.75  # the batch is made smaller when fewer of its rows than this are in use


def answer_together(
    target: Target,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    *,
    num_rows: int,
    max_new_tokens: int,
    seed: int,
) -> list[list[int]]:
    """An answer to each prompt, its end-of-sequence token included.

    temperatures: one a prompt; 0: greedy, else sampled from the whole distribution. num_rows: answers written at once.
    The same seed gives the same answers where prompts and num_rows are the same: rows share their arithmetic. Models
    that `BatchDecoder` cannot run are left to transformers' own batched generation.
    """
    if not can_decode_batches(target):
        return _by_transformers(target, prompts, temperatures, num_rows, max_new_tokens, seed)
    decoder = BatchDecoder(
        target,
        prompts,
        temperatures,
        num_rows=num_rows,
        max_new_tokens=max_new_tokens,
        generator=torch.Generator(target.device).manual_seed(seed),
    )
    found = dict(decoder.answers())
    return [found[number] for number in range(len(prompts))]


@torch.inference_mode()
def _by_transformers(
    target: Target,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    num_rows: int,
    max_new_tokens: int,
    seed: int,
) -> list[list[int]]:
    stops, device = set(target.eos_token_ids), target.device
    pad = target.model.generation_config.pad_token_id
    pad = next(iter(stops), 0) if pad is None else pad
    torch.manual_seed(seed)
    found: dict[int, list[int]] = {}
    for temperature in dict.fromkeys(temperatures):
        numbers = [number for number, heat in enumerate(temperatures) if heat == temperature]
        numbers.sort(key=lambda number: len(prompts[number]))
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        for first in range(0, len(numbers), num_rows):
            part = numbers[first : first + num_rows]
            longest = max(len(prompts[number]) for number in part)
            ids = torch.full((len(part), longest), pad, device=device)
            mask = torch.zeros_like(ids)
            for row, number in enumerate(part):  # padded on the left
                ids[row, longest - len(prompts[number]) :] = torch.tensor(prompts[number], device=device)
                mask[row, longest - len(prompts[number]) :] = 1
            output = target.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                **{"do_sample": False, **how},
            )
            answers = [_until(row, stops) for row in output[:, longest:].tolist()]
            found.update(zip(part, answers, strict=True))
    return [found[number] for number in range(len(prompts))]


def _until(ids: list[int], stops: set[int]) -> list[int]:
    """`ids` up to the first stop, which is kept."""
    return next((ids[: place + 1] for place, token in enumerate(ids) if token in stops), ids)


def can_decode_batches(target: Target) -> bool:
    """Whether every layer sees the whole text through the attention function below, with positions of fixed meaning."""
    config = target.config
    return (
        config._attn_implementation == "sdpa"
        and target.family.may_cut_passes
        and set(layer_reaches(config).values()) == {Reach()}
        and getattr(config, "layer_types", None) in (None, ["full_attention"] * config.num_hidden_layers)
        and target.model._can_set_attn_implementation()
    )


class _Batch(Cache):
    """Keys and values of all rows: [rows, kv heads, capacity, width] a layer."""

    def __init__(self, num_layers: int, num_rows: int, capacity: int) -> None:
        self.capacity, self.num_rows = capacity, num_rows
        self.writing: tuple[Tensor, Tensor | None] = (torch.empty(0), None)
        """Rows to write, and the slot of each; None: a prompt each, from slot 0 on."""
        self.reach = 0
        """Slots that a decoding pass looks at."""
        super().__init__(layers=[_Layer(self) for _ in range(num_layers)])

    def keep(self, rows: Tensor) -> None:
        """Only these rows stay."""
        self.num_rows = rows.shape[0]
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]


class _Layer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, batch: _Batch) -> None:
        super().__init__()
        self._batch = batch

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def buffer(like: Tensor) -> Tensor:
            return like.new_zeros(self._batch.num_rows, like.shape[1], self._batch.capacity, like.shape[3])

        self.keys, self.values = buffer(key_states), buffer(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, slots = self._batch.writing
        if slots is None:  # a prompt sees itself alone
            n = key_states.shape[2]
            self.keys[rows, :, :n], self.values[rows, :, :n] = key_states, value_states
            return key_states, value_states
        self.keys[rows, :, slots], self.values[rows, :, slots] = key_states[:, :, 0], value_states[:, :, 0]
        return self.keys[:, :, : self._batch.reach], self.values[:, :, : self._batch.reach]

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._batch.reach, 0

    def get_max_cache_shape(self) -> int:
        return -1

    get_max_length = get_max_cache_shape


@dataclass(slots=True)
class _Row:
    number: int
    """Of its prompt."""
    temperature: float
    ids: list[int] = field(default_factory=list)


class BatchDecoder:
    """Answers to a list of prompts; made for one list, used once."""

    def __init__(
        self,
        target: Target,
        prompts: Sequence[Sequence[int]],
        temperatures: Sequence[float],
        *,
        num_rows: int,
        max_new_tokens: int,
        generator: torch.Generator,
    ) -> None:
        """temperatures: one a prompt; 0: greedy, else sampled from the whole distribution.

        num_rows: answers written at once. generator: of sampled tokens.
        """
        self._target, self._prompts, self._temperatures = target, prompts, temperatures
        self._max_new_tokens, self._generator = max_new_tokens, generator
        self._stops = set(target.eos_token_ids)
        self._waiting = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))  # the longest goes first
        num_rows = min(num_rows, len(prompts))
        self._batch = _Batch(target.num_layers, num_rows, max(map(len, prompts)) + max_new_tokens)
        self._rows: list[_Row | None] = [None] * num_rows
        self._lengths = torch.zeros(num_rows, dtype=torch.int64, device=target.device)
        """[rows] tokens cached of each."""
        self._tokens = torch.zeros_like(self._lengths)
        """[rows] the last token of each, which is not cached yet."""
        target.head(target.base(input_ids=self._tokens[None, :1])[0])  # both are found by a pass without a mask

    @torch.inference_mode()
    def answers(self) -> Iterator[tuple[int, list[int]]]:
        """Yield (number of a prompt, its answer with the end-of-sequence token) as answers end."""
        enough = max(1, len(self._rows) // 8)  # prompts are run several at once
        with _grouped(self._target):
            while self._waiting or any(self._rows):
                free = [place for place, row in enumerate(self._rows) if row is None]
                if self._waiting and len(free) >= min(len(self._waiting), enough):
                    for first in range(0, len(free), _PROMPTS):
                        yield from self._begin(free[first : first + _PROMPTS])
                elif not self._waiting and len(free) > (1 - _SHRINK) * len(self._rows):
                    self._shrink()
                if any(self._rows):
                    yield from self._advance()

    def _begin(self, free: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Give the free rows prompts, as far as there are any, and choose the first token of their answers."""
        places = free[: len(self._waiting)]
        if not places:
            return
        numbers = [self._waiting.pop() for _ in places]
        logits = self._prefill(places, [self._prompts[number] for number in numbers])
        for place, number in zip(places, numbers, strict=True):
            self._rows[place] = _Row(number, self._temperatures[number])
            self._lengths[place] = len(self._prompts[number])
        self._tokens[places], ended = self._take(places, logits)
        yield from ended

    def _shrink(self) -> None:
        """Go on with the rows in use."""
        used = [place for place, row in enumerate(self._rows) if row is not None]
        self._batch.keep(torch.tensor(used, device=self._tokens.device))
        self._rows = [self._rows[place] for place in used]
        self._lengths, self._tokens = self._lengths[used], self._tokens[used]

    def _advance(self) -> Iterator[tuple[int, list[int]]]:
        """One more token for each row."""
        logits = self._decode()
        last = self._batch.capacity - 1
        self._lengths = (self._lengths + 1).clamp(max=last)  # a free row's runs on; nobody reads it
        self._tokens, ended = self._take(range(len(self._rows)), logits)
        yield from ended

    def _prefill(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Cache prompts in the rows `places`; logits [rows, vocab] after each."""
        device, longest = self._target.device, max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        self._batch.writing = torch.tensor(places, device=device), None
        causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        hidden = self._hidden(ids.to(device), torch.arange(longest, device=device)[None], causal[None, None])
        last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        return self._target.head(hidden[torch.arange(len(prompts), device=device), last][None])[0]

    def _decode(self) -> Tensor:
        """Run the last token of each row; logits [rows, vocab]."""
        batch, lengths = self._batch, self._lengths
        batch.reach = int(lengths.max()) + 1
        batch.writing = torch.arange(lengths.shape[0], device=lengths.device), lengths
        seen = torch.arange(batch.reach, device=lengths.device)[None] <= lengths[:, None]  # [rows, reach]
        hidden = self._hidden(self._tokens[:, None], lengths[:, None], seen[:, None, None])
        return self._target.head(hidden.transpose(0, 1))[0]

    def _hidden(self, ids: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """Last hidden states [rows, n, hidden]. positions: [1 or rows, n]; seen: [1 or rows, 1, n, slots] bool."""
        mask = torch.zeros(seen.shape, dtype=self._target.dtype, device=ids.device)
        mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
        rows = ids.shape[0]
        found = self._target.base(
            input_ids=ids,
            position_ids=positions.expand(rows, -1),
            attention_mask=mask.expand(rows, -1, -1, -1),
            use_cache=True,
            **{cache_argument(type(self._target.base).forward): self._batch},
        )
        hidden: Tensor = found[0]
        return hidden

    def _take(self, places: Sequence[int], logits: Tensor) -> tuple[Tensor, list[tuple[int, list[int]]]]:
        """Choose the next token of the rows `places` [m] from logits [m, vocab].

        Returns the tokens [m], and the answers that ended, whose rows are set free.
        """
        tokens = self._choose([self._rows[place] for place in places], logits)
        ended = []
        for place, token in zip(places, tokens.tolist(), strict=True):
            row = self._rows[place]
            if row is None:
                continue
            row.ids.append(token)
            if token in self._stops or len(row.ids) == self._max_new_tokens:
                ended.append((row.number, row.ids))
                self._rows[place] = None
        return tokens, ended

    def _choose(self, rows: Sequence[_Row | None], logits: Tensor) -> Tensor:
        tokens = logits.argmax(dim=-1)
        warm = [place for place, row in enumerate(rows) if row is not None and row.temperature > 0]
        if warm:
            heat = [row.temperature for row in rows if row is not None and row.temperature > 0]
            scaled = logits[warm].float() / torch.tensor(heat, device=logits.device)[:, None]
            tokens[warm] = sample(scaled, self._generator)
        return tokens


def sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token a row from softmax(logits), exactly. logits: [m, vocab] float32, overwritten. Returns [m].

    First a block of the vocabulary is drawn, then a token of it: drawing among all tokens at once costs ten times the
    softmax.
    """
    m, vocab = logits.shape
    weights = logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_()
    blocks = nn.functional.pad(weights, (0, -vocab % _BLOCK)).view(m, -1, _BLOCK)  # [m, blocks, block]
    block = torch.multinomial(blocks.sum(dim=-1), 1, generator=generator)[:, 0]  # [m]
    inside = torch.multinomial(blocks[torch.arange(m, device=block.device), block], 1, generator=generator)[:, 0]
    return block * _BLOCK + inside


@contextmanager
def _grouped(target: Target) -> Iterator[None]:
    """The target with `grouped_attention`, as before on leaving."""
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = target.config._attn_implementation
    target.model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        target.model.set_attn_implementation(before)
