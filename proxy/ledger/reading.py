"""The ledger as the commands use it: opened for one command, without an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.ledger.row import Query, Row, Sums


class Book(Protocol):
    """A ledger that is open for a command. Every call blocks."""

    def sums(self, query: Query) -> Sequence[Sums]:
        """Sum the rows, the groups with the most requests first; at most 10,000 groups.

        Raises:
            OSError: the database does not answer; the text says why.
        """
        ...

    def add(self, rows: Sequence[Row]) -> int:
        """Insert the rows that are not there yet, and return how many were new.

        Raises:
            OSError: none of them was inserted.
        """
        ...

    def close(self) -> None:
        """Close the database; idempotent."""
        ...
