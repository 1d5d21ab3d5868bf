"""The logits processing of one generation, step by step in the order of `GenerationMixin._get_logits_processor`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from slipstream.core.logits.settings import ProcessingSettings
from slipstream.core.logits.steps import (
    BannedTokens,
    CountPenalties,
    EveryDepth,
    EveryRow,
    ForcedTokens,
    LogitsStep,
    Processor,
    Rows,
)
from slipstream.core.logits.warping import warp
from slipstream.core.verify import NO_TOKEN
from slipstream.errors import InputError


class LogitsPipeline:
    """What the target's logits go through in one generation, at the root and at every node of a draft tree.

    `start` before the first `process`, `commit` after each cycle. Raises InputError for token ids outside the
    vocabulary.
    """

    def __init__(self, settings: ProcessingSettings, *, vocab_size: int, device: torch.device | str) -> None:
        self.settings = settings
        self._vocab_size, self._device = vocab_size, torch.device(device)
        self._check_token_ids()
        self._counts: CountPenalties | None = None
        self._steps = [*self._by_text(), *self._by_row()]
        self._committed = torch.zeros(0, dtype=torch.int64, device=self._device)

    @property
    def is_identity(self) -> bool:
        """Nothing is set: `process` returns its logits."""
        return not self._steps

    @property
    def needs_path(self) -> bool:
        """Whether anything depends on the text or its length; if not, `process` needs no tree."""
        return any(step.needs_path for step in self._steps)

    @property
    def key(self) -> Hashable:
        """Pipelines of one key do the same to the same logits; None: it hangs on the text, too."""
        return None if self.needs_path else replace(self.settings, prompt_length=0, max_length=0)

    def start(self, prompt_ids: Sequence[int]) -> None:
        """Begin a generation; whatever was committed before is forgotten."""
        if not self.needs_path:
            return
        self._committed = torch.tensor(prompt_ids, dtype=torch.int64, device=self._device)
        if self._counts is not None:
            self._counts.start(prompt_ids)

    def commit(self, token_ids: Sequence[int]) -> None:
        """Tokens that the text now ends with (the accepted path and the next token, in order).

        Raises InputError for NO_TOKEN: plain decoding, too, would stand there without any token.
        """
        if NO_TOKEN in token_ids:
            raise InputError(
                "the settings rule out every token of the vocabulary at this point of the answer; allow some: see "
                "no_repeat_ngram_size, bad_words_ids, suppress_tokens and sequence_bias"
            )
        if not self.needs_path or not token_ids:
            return
        self._committed = torch.cat((self._committed, self._committed.new_tensor(token_ids)))
        if self._counts is not None:
            self._counts.commit(token_ids)

    def process(self, logits: Tensor, tree_tokens: Tensor | None = None, ancestors: Tensor | None = None) -> Tensor:
        """Logits as plain decoding would see them; greedy: take the argmax, sampling: these are warped log-weights.

        logits: [n + 1, vocab], row 0 the root; half precision is processed in float32, as `generate` does.
        tree_tokens: [n] int64, parents before children. ancestors: [n + 1, n + 1] bool of `tree.ancestor_mask`.
        Without a tree every row continues the committed text. Returns [n + 1, vocab]; `logits` is not changed.
        """
        if self.is_identity:
            return logits
        scores = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if tree_tokens is None or ancestors is None:
            tree_tokens = torch.zeros(0, dtype=torch.int64, device=logits.device)
            ancestors = torch.ones(logits.shape[0], 1, dtype=torch.bool, device=logits.device)
        rows = Rows(self._committed, tree_tokens, ancestors)
        for step in self._steps:
            scores = step(scores, rows)
        return scores

    def _check_token_ids(self) -> None:
        s = self.settings
        forced = () if s.forced_bos_token_id is None else (s.forced_bos_token_id,)
        named = {
            "bad_words_ids": [token for sequence in s.bad_words_ids for token in sequence],
            "sequence_bias": [token for sequence, _ in s.sequence_bias for token in sequence],
            "forced_bos_token_id": forced,
            "forced_eos_token_id": s.forced_eos_token_id,
            "exponential_decay_length_penalty": s.eos_token_ids if s.exponential_decay_length_penalty else (),
        }
        for name, ids in named.items():
            for token in ids:
                if not 0 <= token < self._vocab_size:
                    raise InputError(f"{name} holds token {token}, but the vocabulary is 0-{self._vocab_size - 1}")

    def _token_mask(self, token_ids: Iterable[int]) -> Tensor:
        """[vocab] bool, true for these tokens; ids outside the vocabulary are no tokens."""
        mask = torch.zeros(self._vocab_size, dtype=torch.bool)
        mask[[token for token in token_ids if 0 <= token < self._vocab_size]] = True
        return mask.to(self._device)

    def _by_text(self) -> list[LogitsStep]:
        """The steps that depend on the text or its length, in transformers' order."""
        from transformers.generation import logits_process as hf

        s, steps = self.settings, list[LogitsStep]()
        eos = torch.tensor(s.eos_token_ids, dtype=torch.int64, device=self._device)
        if s.sequence_bias:
            steps.append(EveryDepth(hf.SequenceBiasLogitsProcessor(dict(s.sequence_bias))))
        if s.repetition_penalty != 1.0 or s.presence_penalty or s.frequency_penalty:
            self._counts = CountPenalties(s, self._vocab_size, self._device)
            steps.append(self._counts)
        if s.no_repeat_ngram_size:
            steps.append(EveryDepth(hf.NoRepeatNGramLogitsProcessor(s.no_repeat_ngram_size)))
        if s.bad_words_ids:
            words = [list(sequence) for sequence in s.bad_words_ids]
            steps.append(EveryDepth(hf.NoBadWordsLogitsProcessor(words, eos)))
        if s.min_length > s.prompt_length and s.eos_token_ids:
            steps.append(BannedTokens(self._token_mask(s.eos_token_ids), 0, s.min_length))
        if s.forced_bos_token_id is not None:
            steps.append(ForcedTokens(self._token_mask([s.forced_bos_token_id]), 1))
        if s.forced_eos_token_id:
            steps.append(ForcedTokens(self._token_mask(s.forced_eos_token_id), s.max_length - 1))
        if s.remove_invalid_values:
            remove = hf.InfNanRemoveLogitsProcessor()
            steps.append(EveryRow(lambda scores: remove(scores, scores)))
        if s.exponential_decay_length_penalty is not None:
            decay = hf.ExponentialDecayLengthPenalty(s.exponential_decay_length_penalty, eos, s.prompt_length)
            steps.append(EveryDepth(_sparing_removed_tokens(decay)))
        if s.suppress_tokens:
            steps.append(BannedTokens(self._token_mask(s.suppress_tokens), 0, float("inf")))
        if s.begin_suppress_tokens:
            forced_first = s.prompt_length == 1 and s.forced_bos_token_id is not None
            begin = s.prompt_length + forced_first
            steps.append(BannedTokens(self._token_mask(s.begin_suppress_tokens), begin, begin + 1))
        return steps

    def _by_row(self) -> list[LogitsStep]:
        """Warpers (when sampling) and the final normalisation."""
        from transformers.generation import logits_process as hf

        s, changes = self.settings, list[Callable[[Tensor], Tensor]]()
        if not s.is_greedy:
            if s.top_h is not None:  # stands between temperature and top-k
                changes += [partial(warp, temperature=s.temperature), _on_scores(hf.TopHLogitsWarper(s.top_h))]
            temperature = 1.0 if s.top_h is not None else s.temperature
            if temperature != 1.0 or s.top_k or s.top_p < 1.0 or s.min_p:
                changes.append(partial(warp, temperature=temperature, top_k=s.top_k, top_p=s.top_p, min_p=s.min_p))
            if s.typical_p < 1.0:
                changes.append(_on_scores(hf.TypicalLogitsWarper(s.typical_p)))
            if 0.0 < s.epsilon_cutoff < 1.0:
                changes.append(_on_scores(hf.EpsilonLogitsWarper(s.epsilon_cutoff)))
            if 0.0 < s.eta_cutoff < 1.0:
                changes.append(_on_scores(hf.EtaLogitsWarper(s.eta_cutoff, device=str(self._device))))
        if s.renormalize_logits:
            changes.append(partial(torch.log_softmax, dim=-1))
        return [EveryRow(change) for change in changes]


def _on_scores(processor: Processor) -> Callable[[Tensor], Tensor]:
    """A processor of transformers that does not look at the text.

    Rows that it may refuse, those without any token and those of numbers that are none, are left as they are: whether
    plain decoding comes by them is not known yet.
    """

    def change(scores: Tensor) -> Tensor:
        sound = scores.amax(dim=-1, keepdim=True).isfinite()  # [rows, 1]
        harmless = scores.masked_fill(~sound, 0.0)
        return torch.where(sound, processor(harmless, harmless), scores)

    return change


def _sparing_removed_tokens(processor: Processor) -> Processor:
    """Keeps -inf as it is, where exponential decay of transformers 5.17 makes a nan of it (later versions keep it)."""

    def process(input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.where(scores.isfinite(), processor(input_ids, scores), scores)

    return process
