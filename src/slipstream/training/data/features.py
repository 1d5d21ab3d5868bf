"""The target's features of training text: computed when they are needed, or kept on disk up to a size limit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from slipstream.drafting.parts import passes
from slipstream.target.target import Target
from slipstream.training.data.dialogues import Dialogue

GIB = 1 << 30


class FeatureSource:
    """Last hidden states of the frozen target for batches of dialogues."""

    def __init__(self, target: Target, dialogues: Sequence[Dialogue], folder: Path | None, limit_bytes: int) -> None:
        """folder: where features are kept, None for nowhere. limit_bytes: of this process's files there."""
        self._target, self._dialogues = target, dialogues
        self._limit = limit_bytes
        self._folder = None
        if folder is not None and limit_bytes > 0:
            self._folder = folder / _key(target, dialogues)
            self._folder.mkdir(parents=True, exist_ok=True)
        self.num_computed = 0
        """Dialogues that went through the target."""

    def __call__(self, indices: Sequence[int], ids: Tensor) -> Tensor:
        """Features [b, n, hidden] of the dialogues `indices`, whose padded ids [b, n] are on the target's device."""
        if all(self._has(index) for index in indices):
            return self._read(indices, ids.shape[1])
        features = self._computed(ids, [len(self._dialogues[index].token_ids) for index in indices])
        self.num_computed += len(indices)
        for row, index in enumerate(indices):
            self._keep(index, features[row, : len(self._dialogues[index].token_ids)])
        return features

    def _computed(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Features [b, n, hidden], 0 in the padding; rows of similar length share a pass, so that little is padding."""
        features: Tensor | None = None
        for rows in passes(lengths):
            with torch.no_grad():  # not inference mode: the head's backward pass keeps these tensors
                found = self._target.base(input_ids=ids[rows, : lengths[rows[0]]], use_cache=False)[0].to(ids.device)
            if features is None:
                features = found.new_zeros(*ids.shape, found.shape[-1])
            features[rows, : found.shape[1]] = found
        assert features is not None
        return features

    def _path(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{index}.safetensors"

    def _has(self, index: int) -> bool:
        return self._folder is not None and self._path(index).is_file()

    def _read(self, indices: Sequence[int], length: int) -> Tensor:
        rows = [load_file(self._path(index))["features"] for index in indices]
        padded = [torch.nn.functional.pad(row, (0, 0, 0, length - row.shape[0])) for row in rows]
        return torch.stack(padded).to(self._target.device)

    def _keep(self, index: int, features: Tensor) -> None:
        size = features.numel() * features.element_size()
        if self._folder is None or size > self._limit or self._has(index):
            return
        path = self._path(index)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"features": features.cpu().contiguous()}, temporary)
        os.replace(temporary, path)  # so that another process never sees a part
        self._limit -= size


def _key(target: Target, dialogues: Sequence[Dialogue]) -> str:
    """Names the features of these dialogues by this target in its dtype."""
    digest = hashlib.sha256(f"{target.hash} {target.dtype}".encode())
    for dialogue in dialogues:
        digest.update(repr(dialogue.token_ids).encode())
    return digest.hexdigest()[:16]
