"""The settings of a search for a skip set."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from slipstream.drafting.shape import Chain, Dynamic
from slipstream.search.options import DraftOptions, SearchOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings(SearchOptions):
    """What to search by. Raises InputError for a value out of range."""

    shape: Dynamic | Chain = field(default_factory=Dynamic)
    """The draft that the set is to be good for."""

    @property
    def tree(self) -> str:
        """The name of the draft's shape, as `layer-skip` takes it."""
        return self.shape.kind

    def defining(self) -> dict[str, Any]:
        """What a study's values hang on: all but how it is searched and how long. JSON values."""
        record = {"tree": self.tree, **asdict(self)}
        return {name: value for name, value in record.items() if name not in ("sampler", "trials", "starting_points")}


def make_shape(draft: DraftOptions) -> Dynamic | Chain:
    """The draft of these sizes; those not given are those of `Dynamic` or `Chain`. Raises InputError as they do."""
    return Dynamic(**draft.sizes) if draft.tree == Dynamic.kind else Chain(**draft.sizes)
