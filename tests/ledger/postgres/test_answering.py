"""The shipper's answers: what a user has used, by the database and by the rows that still wait in the spool."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from proxy.errors import LedgerUnavailableError
from proxy.ledger import Query
from proxy.ledger.postgres import answering
from proxy.ledger.postgres.answering import Answerer
from proxy.ledger.postgres.asking import ask
from proxy.ledger.postgres.database import Database
from proxy.ledger.row import amounts
from proxy.ledger.sql import DAY_MS
from proxy.model import Amounts
from tests.ledger.postgres.spools import Spooled
from tests.ledger.rows import NOON_MS, row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WITHIN_S = 30.0
# The rest of a day, and whole days.
SINCE_MS = NOON_MS + 1000


@pytest.fixture
def spooled(tmp_path: Path, url: str) -> Iterator[Spooled]:
    """An empty spool of an empty database that has its tables."""
    with closing(Spooled(tmp_path, url)) as spooled:
        spooled.spool.open()
        assert spooled.shipper.step()
        yield spooled


async def used(spooled: Spooled, user: str = "alice") -> Amounts:
    """What a worker is told that a user has used."""
    with closing(Database(spooled.url)) as database:
        async with Answerer(spooled.place, database, spooled.shipper, lambda *_, **__: None):
            return amounts(await ask(spooled.place, "used", Query(SINCE_MS, (), "tests", user), WITHIN_S))


async def test_used_counts_what_waits(spooled: Spooled) -> None:
    """A user's row counts once, whether the database has it, the spool, or, between commit and deletion, both."""
    days = (SINCE_MS, SINCE_MS + DAY_MS)
    shipped, both, waiting = (
        [row(day, input_tokens=tokens, output_tokens=0, cost_nano=tokens) for day in days] for tokens in (1, 10, 100)
    )
    too_old, of_another = row(SINCE_MS - 1), row(SINCE_MS, user="bob", input_tokens=5, output_tokens=2, cost_nano=None)
    with closing(Database(spooled.url)) as database:
        assert database.insert([*shipped, *both]) == 4
    assert await used(spooled) == Amounts(22, 22)
    assert await used(spooled, "bob") == Amounts(0, 0)
    spooled.add([*both, *waiting, too_old, of_another])
    assert await used(spooled) == Amounts(222, 222)
    assert await used(spooled, "bob") == Amounts(7, 0)
    spooled.shipper.step()
    assert spooled.waiting == 0
    assert await used(spooled) == Amounts(222, 222)


async def test_used_while_too_many_wait(spooled: Spooled, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more rows in the spool than an answer may look at there is none, rather than one of too little."""
    monkeypatch.setattr(answering, "_MAX_WAITING", 2)
    spooled.add([row(SINCE_MS) for _ in range(2)])
    assert await used(spooled) == Amounts(240, 5_000_000)
    spooled.add([row(SINCE_MS)])
    with pytest.raises(LedgerUnavailableError):
        await used(spooled)
    assert await used(spooled, "bob") == Amounts(0, 0)
    spooled.shipper.step()
    assert await used(spooled) == Amounts(360, 7_500_000)


async def test_used_without_a_spool(spooled: Spooled) -> None:
    """A spool that cannot be read leaves a question without an answer."""
    spooled.spool.close()
    spooled.shipper.close()
    spooled.spool.path.write_bytes(b"no database, and longer than nothing " * 40)
    with pytest.raises(LedgerUnavailableError):
        await used(spooled)
