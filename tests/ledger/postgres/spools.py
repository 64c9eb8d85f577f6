"""A spool with rows, and a shipper whose events are kept, for tests without a process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.ledger.postgres.database import Database
from proxy.ledger.postgres.place import SpoolPlace
from proxy.ledger.postgres.shipper import Shipper
from tests.postgres import ask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from proxy.ledger import Row
    from proxy.ledger.file import LedgerFile


class Spooled:
    """A spool, and the shipper of it."""

    def __init__(self, room: Path, url: str, *, retention_s: float = 1e9) -> None:
        self.place = SpoolPlace(room / "spool")
        self.place.create()
        self.events: list[dict[str, Any]] = []
        self.url = url
        self.spool = self.place.file()
        self.shipper = self.new_shipper(retention_s=retention_s)

    def new_shipper(self, spool: LedgerFile | None = None, *, retention_s: float = 1e9) -> Shipper:
        """Another one, as after the first one's death."""
        return Shipper(spool or self.place.file(), Database(self.url), self._tell, retention_s=retention_s)

    def add(self, rows: Sequence[Row]) -> None:
        """Have rows wait in the spool, as a worker does."""
        self.spool.add(rows)

    @property
    def waiting(self) -> int:
        """How many wait there."""
        return self.spool.count()

    def shipped(self) -> tuple[int, int]:
        """How many rows the database has, and how many its totals count."""
        ((rows, counted),) = ask(
            self.url, "SELECT (SELECT count(*) FROM exchanges), (SELECT coalesce(sum(requests), 0) FROM days)"
        )
        return rows, int(counted)

    def names(self) -> list[str]:
        """The events so far."""
        return [event["event"] for event in self.events]

    def close(self) -> None:
        """Close what is open."""
        self.shipper.close()
        self.spool.close()

    def _tell(self, event: str, level: str, **fields: Any) -> None:
        self.events.append({"event": event, "level": level, **fields})
