"""A few sizes of passes, to which others are rounded up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """Sizes by rows and by context."""

    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Rows of a pass, ascending; beyond the last, its multiples."""
    context: int = 256
    """Slots of the cache; beyond them, this number doubled until it is enough."""

    def fit_rows(self, count: int) -> int:
        """The least rows that hold `count` of them."""
        largest = self.rows[-1]
        return next((size for size in self.rows if size >= count), -(-count // largest) * largest)

    def fit_context(self, slots: int) -> int:
        """The least context that holds so many slots."""
        size = self.context
        while size < slots:
            size *= 2
        return size
