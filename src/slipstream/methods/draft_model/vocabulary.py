"""Whether a draft model speaks the target's vocabulary, and its logits in terms of that vocabulary.

Token ids must mean the same in both. Sizes of embeddings say little: inside one family they are padded differently.
What decides is the tokenizers: every ordinary token id that both know must stand for the same token. Special and added
tokens may differ (chat variants rename reserved ones); a draft that uses one wrongly is merely rejected.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from slipstream.errors import ArtifactWarning, InputError
from slipstream.target.target import Target

_SPECIAL = ("bos_token_id", "eos_token_id")


def check_same_vocabulary(target: Target, draft: Target, tokenizer: Any, draft_tokenizer: Any) -> None:
    """Refuse a draft model whose token ids mean something else (InputError).

    Where a tokenizer is None, sizes and special ids of the configs are compared instead: differing ones are refused,
    equal ones give an ArtifactWarning that says what was compared.
    """
    if tokenizer is not None and draft_tokenizer is not None:
        _compare_tokenizers(target, draft, tokenizer, draft_tokenizer)
        return
    whose = " and ".join(
        name for name, one in (("the target's", tokenizer), ("the draft model's", draft_tokenizer)) if one is None
    )
    known = f"{whose} tokenizer is not at hand, so only sizes and special ids were compared"
    mend = "Give tokenizer= and draft_tokenizer= to compare token by token"
    for name, own, other in _config_values(target, draft):
        if own != other:
            raise InputError(
                f"draft model {draft.name} may have another vocabulary than {target.name}: {name} is {other}, not "
                f"{own} ({known}). {mend}, or choose a draft model of the target's family."
            )
    warnings.warn(
        f"vocabularies of {draft.name} and {target.name}: {known}, and these are equal. Should the tokens differ, the "
        f"output stays exact, but hardly a draft would be accepted. {mend}.",
        ArtifactWarning,
        stacklevel=3,
    )


def fit_logits(logits: Tensor, vocab_size: int) -> Tensor:
    """A draft model's logits [..., own size] as logits over the target's ids, [..., vocab_size].

    Ids that the target lacks are cut off; ids that the draft model lacks get -inf.
    """
    missing = vocab_size - logits.shape[-1]
    if missing <= 0:
        return logits[..., :vocab_size]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)


def _compare_tokenizers(target: Target, draft: Target, tokenizer: Any, draft_tokenizer: Any) -> None:
    own, other = _tokens_by_id(tokenizer), _tokens_by_id(draft_tokenizer)
    added = set(tokenizer.get_added_vocab().values()) | set(draft_tokenizer.get_added_vocab().values())
    common = sorted((own.keys() & other.keys()) - added)
    differing = [index for index in common if own[index] != other[index]]
    if differing:
        first = differing[0]
        reason = (
            f"{len(differing)} of {len(common)} common token ids stand for another token; the first is {first}: "
            f"{own[first]!r} there, {other[first]!r} here"
        )
    elif not common:
        reason = "they have no token id in common"
    else:
        return
    raise InputError(
        f"draft model {draft.name} has another vocabulary than {target.name}: {reason}. Choose a draft model of the "
        "target's family, or make one with `slipstream train draft`."
    )


def _tokens_by_id(tokenizer: Any) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def _config_values(target: Target, draft: Target) -> list[tuple[str, Any, Any]]:
    """(what, the target's, the draft model's) of all that both configs tell."""
    found = [("vocabulary size", target.vocab_size, draft.vocab_size)]
    for name in _SPECIAL:
        own, other = getattr(target.config, name, None), getattr(draft.config, name, None)
        if own is not None and other is not None:
            found.append((name, _as_set(own), _as_set(other)))
    return found


def _as_set(ids: Any) -> Any:
    """One id for a list that holds it alone; of several, their order means nothing."""
    several = sorted(set(ids)) if isinstance(ids, list | tuple) else [ids]
    return several[0] if len(several) == 1 else several
