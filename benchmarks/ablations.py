"""The ablations of EAGLE-2's dynamic tree (arXiv 2406.16858, section 5.3): without its values, or not reranked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import slipstream
from slipstream.core.tree import DraftTree, select_nodes
from slipstream.drafting.shape import Dynamic
from slipstream.model import Model

OPTIONS = ("by_value", "rerank")


@dataclass(frozen=True, kw_only=True)
class Ablated(Dynamic):
    """A dynamic tree of which something is left out."""

    by_value: bool = True
    """Run the nodes of highest value; False: of highest confidence under their own parent."""
    rerank: bool = True
    """Keep the best `total` of all nodes; False: keep the `width` nodes that each level chose, whatever `total`."""

    @property
    def most_nodes(self) -> int:
        return super().most_nodes if self.rerank else self.width * self.depth

    def choose(self, level: DraftTree, confidence: Tensor) -> Tensor:
        score = level.log_value if self.by_value else confidence
        return score.sort(descending=True, stable=True).indices[: self._useful(level.max_depth)]

    def _useful(self, depth: int) -> int:
        return super()._useful(depth) if self.by_value and self.rerank else self.width

    def keep(self, tree: DraftTree, chosen: Tensor) -> DraftTree:
        return super().keep(tree, chosen) if self.rerank else select_nodes(tree, chosen.sort().values)


def load(target: torch.nn.Module, method: str, options: Mapping[str, Any], tokenizer: Any) -> Model:
    """`slipstream.load`, with the ablations among the options: they need the tree's width, depth and total."""
    ablated = {name: options[name] for name in OPTIONS if name in options}
    rest = {name: value for name, value in options.items() if name not in ablated}
    model = slipstream.load(target, method, tokenizer=tokenizer, **rest)
    if ablated:
        sizes = {name: rest[name] for name in ("width", "depth", "total")}
        model.drafter.shape = Ablated(**sizes, **ablated)  # type: ignore[attr-defined]
    return model
