"""The target's features of training text: computed when they are needed, or kept on disk up to a size limit."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from slipstream.drafting.packing import LAST_HIDDEN, packed_features, takes_packed
from slipstream.drafting.parts import passes
from slipstream.target.features import Features
from slipstream.target.target import Target
from slipstream.training.data.batches import laid_out
from slipstream.training.data.dialogues import Dialogue

logger = logging.getLogger(__name__)

GIB = 1 << 30


class FeatureSource:
    """Hidden states of the frozen target for dialogues, in its own dtype.

    What is not on disk goes through the target in one pass without padding (`packing.py`), or in padded passes where
    the target does not take that.
    """

    def __init__(
        self,
        target: Target,
        dialogues: Sequence[Dialogue],
        folder: Path | None,
        limit_bytes: int,
        wanted: Features = LAST_HIDDEN,
    ) -> None:
        """folder: where features are kept, None for nowhere. limit_bytes: of this process's files there. wanted: which
        hidden states.
        """
        self._target, self._dialogues, self._wanted = target, dialogues, wanted
        self._limit = limit_bytes
        self._folder = None
        if folder is not None and limit_bytes > 0:
            self._folder = folder / _key(target, dialogues, wanted)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._limit -= sum(file.stat().st_size for file in self._folder.glob("*.safetensors"))
        self.num_computed = 0
        """Dialogues that went through the target."""

    def __call__(self, indices: Sequence[int]) -> Tensor:
        """Features [n, width] of the dialogues `indices`, one after another, on the target's device."""
        missing = [index for index in indices if not self._has(index)]
        found = dict(zip(missing, self._computed(missing), strict=True))
        for index, features in found.items():
            self._keep(index, features)
        return torch.cat([found[index] if index in found else self._read(index) for index in indices])

    @cached_property
    def packed(self) -> bool:
        """Whether texts go through the target without padding."""
        packed = takes_packed(self._target)
        if not packed:
            logger.warning("%s takes no packed texts: its features are computed in padded passes", self._target.name)
        return packed

    @torch.no_grad()  # not inference mode: the head's backward pass keeps these tensors
    def _computed(self, indices: Sequence[int]) -> Sequence[Tensor]:
        """Features [length, width] of each of the dialogues."""
        if not indices:
            return []
        self.num_computed += len(indices)
        texts = [self._dialogues[index] for index in indices]
        lengths = [len(one.token_ids) for one in texts]
        if self.packed:
            ids = laid_out(texts)[0].to(self._target.device)
            return torch.split(packed_features(self._target, ids, lengths, self._wanted), lengths)
        return self._padded(texts, lengths)

    def _padded(self, texts: Sequence[Dialogue], lengths: Sequence[int]) -> list[Tensor]:
        """The same, where texts of similar length share a pass, so that little is padding."""
        found: dict[int, Tensor] = {}
        for rows in passes(lengths):
            ids = torch.zeros(len(rows), lengths[rows[0]], dtype=torch.int64)
            for place, row in enumerate(rows):
                ids[place, : lengths[row]] = torch.tensor(texts[row].token_ids)
            ids = ids.to(self._target.device)
            hidden = self._target.hidden_pass(self._wanted)(input_ids=ids)
            found.update({row: hidden[place, : lengths[row]] for place, row in enumerate(rows)})
        return [found[row] for row in range(len(lengths))]

    def _path(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{index}.safetensors"

    def _has(self, index: int) -> bool:
        return self._folder is not None and self._path(index).is_file()

    def _read(self, index: int) -> Tensor:
        return load_file(self._path(index))["features"].to(self._target.device)

    def _keep(self, index: int, features: Tensor) -> None:
        size = features.numel() * features.element_size()
        if self._folder is None or size > self._limit or self._has(index):
            return
        path = self._path(index)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"features": features.cpu().contiguous()}, temporary)
        os.replace(temporary, path)  # so that another process never sees a part
        self._limit -= size


def _key(target: Target, dialogues: Sequence[Dialogue], wanted: Features) -> str:
    """Names the features of these dialogues by this target in its dtype."""
    layers = f" {wanted}" if wanted.layers else ""
    digest = hashlib.sha256(f"{target.hash} {target.dtype}{layers}".encode())
    for dialogue in dialogues:
        digest.update(repr(dialogue.token_ids).encode())
    return digest.hexdigest()[:16]
