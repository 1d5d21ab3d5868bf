"""A draft vocabulary: the tokens that a draft chooses from, the most frequent ones of a target's answers.

A level of a draft reads the target's whole LM head, which is most of its work where the vocabulary is large and the
head small. Scoring only the rows of frequent tokens makes it cheaper and misses a token now and then, which ends the
draft there (FR-Spec, arXiv 2502.14856, section 3). No output changes: verification is over the whole vocabulary, and
under the coupled rule the noise is read at the tokens that are scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from slipstream.drafting.artefact_files import save_tensors
from slipstream.drafting.own_lm_heads import lm_head_to_copy
from slipstream.errors import ArtifactError, InputError
from slipstream.target.target import Target

VOCABULARY_FILE = "draft_vocabulary.safetensors"
"""Its name beside a head."""
WHOLE = "all"
"""What is asked for to draft from the target's whole vocabulary."""


@dataclass(frozen=True, slots=True)
class DraftVocabulary:
    """Tokens to draft from, the most frequent first."""

    ids: Tensor  # [columns] int64, each once

    def __len__(self) -> int:
        return self.ids.shape[0]

    def first(self, size: int) -> DraftVocabulary:
        """The `size` most frequent. Raises InputError where there are not so many."""
        if not 1 <= size <= len(self):
            raise InputError(
                f"draft_vocabulary is {size}, but {len(self)} tokens were counted; set it from 1 to {len(self)}, or "
                "count more: slipstream heads vocabulary --size"
            )
        return DraftVocabulary(self.ids[:size])

    def save(self, path: Path) -> None:
        """Write the ids to a safetensors file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors({"ids": self.ids.to(torch.int32)}, path)


def count_vocabulary(answers: Iterable[Sequence[int]], size: int, target: Target) -> DraftVocabulary:
    """The `size` most frequent tokens of answers, those that end an answer always among them; ties by id.

    Fewer where the answers have fewer. Raises InputError for a size that no vocabulary of this target can have.
    """
    if not 1 <= size <= target.vocab_size:
        raise InputError(f"the size is {size}; it must be from 1 to {target.vocab_size}, the target's vocabulary")
    counts = Counter(token for answer in answers for token in answer)
    ends = [token for token in target.eos_token_ids if token < target.vocab_size][:size]
    others = sorted(counts.keys() - set(ends), key=lambda token: (-counts[token], token))[: size - len(ends)]
    ids = sorted((*ends, *others), key=lambda token: (-counts[token], token))
    if not ids:
        raise InputError("there are no answers to count tokens of; give text with assistant turns")
    return DraftVocabulary(torch.tensor(ids))


def load_vocabulary(path: Path, target: Target) -> DraftVocabulary:
    """Read a file that `save` wrote. Raises ArtifactError where it is damaged or names tokens the target has not."""
    from safetensors.torch import load_file

    try:
        ids = load_file(path)["ids"].to(target.device, torch.int64)
    except (OSError, SafetensorError, KeyError) as error:
        raise ArtifactError(f"{path} is not a readable draft vocabulary ({error}); count one again") from error
    if ids.dim() != 1 or len(ids) == 0 or len(set(ids.tolist())) != len(ids):
        raise ArtifactError(f"{path} does not name each token once; count a draft vocabulary again")
    if int(ids.min()) < 0 or int(ids.max()) >= target.vocab_size:
        raise ArtifactError(
            f"{path} names token {int(ids.max())}, but {target.name} has {target.vocab_size}; count a draft vocabulary "
            "for this target"
        )
    return DraftVocabulary(ids)


def asked_vocabulary(
    asked: int | str | Path | None, beside_head: DraftVocabulary | None, target: Target
) -> DraftVocabulary | None:
    """The vocabulary to draft with; None: the whole.

    asked: a file, a number of the most frequent tokens of the file beside the head, "all", or None for the file beside
    the head if there is one. Raises InputError for a number where no file lies beside the head.
    """
    if asked is None or asked == WHOLE:
        return None if asked == WHOLE else beside_head
    if isinstance(asked, int) and not isinstance(asked, bool):
        if beside_head is None:
            raise InputError(
                f"draft_vocabulary is {asked}, but no {VOCABULARY_FILE} lies beside the head, so which tokens are "
                "frequent is not known; make one (slipstream heads vocabulary) and give that file"
            )
        return beside_head.first(asked)
    if isinstance(asked, str | Path) and Path(asked).is_file():
        return load_vocabulary(Path(asked), target)
    raise InputError(f"draft_vocabulary is {asked!r}; give a number of tokens, a file, or {WHOLE!r}")


class PartialHead:
    """The target's LM head for some tokens alone."""

    def __init__(self, target: Target, ids: Tensor) -> None:
        """ids: [columns] int64. Copies their rows. Raises InputError where rows cannot be taken out of the LM head."""
        weight, bias = _weight_and_bias(target)
        rows = nn.Linear(weight.shape[1], ids.shape[0], bias=bias is not None, device=target.device, dtype=weight.dtype)
        with torch.no_grad():
            rows.weight.copy_(weight[ids.to(weight.device)])
            if bias is not None:
                rows.bias.copy_(bias[ids.to(bias.device)])
        self.score = target.head_with(rows.requires_grad_(False))
        """As a call, and differentiable."""
        self._check(target, ids, weight)

    @torch.inference_mode()
    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits of the tokens for last hidden states [batch, n, hidden]: [batch, n, columns]."""
        return self.score(hidden)

    @torch.inference_mode()
    def _check(self, target: Target, ids: Tensor, weight: Tensor) -> None:
        """What comes after the LM head, if anything does, must treat every token alike."""
        some = torch.linspace(-1, 1, 2 * weight.shape[1], device=target.device).reshape(1, 2, -1)
        hidden = torch.cat((some, 100 * some), dim=1).to(target.dtype)
        whole = target.head(hidden)[..., ids].float()
        if not torch.allclose(self(hidden).float(), whole, rtol=0.02, atol=0.02 * float(whole.abs().max())):
            raise InputError(f"{target.name} scores a token by all others; draft_vocabulary={WHOLE!r} drafts with all")


def _weight_and_bias(target: Target) -> tuple[Tensor, Tensor | None]:
    try:
        return lm_head_to_copy(target)
    except InputError as error:
        raise InputError(
            f"the LM head of {target.name} is quantised, so no rows of it can be taken out; draft_vocabulary={WHOLE!r} "
            "drafts with all"
        ) from error
