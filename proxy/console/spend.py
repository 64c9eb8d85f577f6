"""Who has spent most today, by the ledger."""

from __future__ import annotations

import heapq
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from proxy.ledger import Query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.ledger import Ledger, Sums

_TOP: Final = 10
_DAY_S: Final = 86_400


async def spend_of(ledger: Ledger) -> dict[str, Any]:
    """The users and the models that cost most since midnight UTC, as of each day the ledger keeps the sums.

    Raises:
        LedgerUnavailableError: the ledger cannot be read right now.
    """
    since_s = int(time.time()) // _DAY_S * _DAY_S
    users = await ledger.sums(Query(since_s * 1000, ("user", "issuer")))
    models = await ledger.sums(Query(since_s * 1000, ("model",)))
    since = datetime.fromtimestamp(since_s, UTC).isoformat().replace("+00:00", "Z")
    return {"since": since, "users": _top(users), "models": _top(models), "problem": None}


def _top(sums: Sequence[Sums]) -> list[dict[str, Any]]:
    """Those that cost most; where nothing has a price, those that took most tokens."""
    first = heapq.nlargest(_TOP, sums, key=lambda one: (one.cost_nano, one.input_tokens + one.output_tokens))
    return [one.as_json() for one in first]
