"""`GET /forward-sse/usage`: what a user has used, by the ledger, and how they stand in the limits of their plan.

And what it shares with the operator's `GET /admin/usage`: the query's `since` and `by`, and the rows of the answer.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

from proxy.errors import InvalidRequestError
from proxy.handlers.own_reads import begin_own_read
from proxy.handlers.service import SERVICE
from proxy.ledger import COLUMNS, Query
from proxy.model import Ending
from proxy.protocol.paths import query_members
from proxy.usage import usd_text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from proxy.handlers.service import Service
    from proxy.ledger import Sums
    from proxy.limits import LimitState
    from proxy.protocol.json_text import Steps

# By which a user groups unasked.
_OWN_DEFAULT: Final = "day,model"
_DEFAULT_SINCE: Final = "7d"
# About 2 ms.
_ROWS_AT_ONCE: Final = 256
# The columns that tell users apart.
_WHOSE: Final = frozenset({"user", "issuer"})
_DURATION: Final = re.compile(r"(\d{1,9})([smhd])", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
# Where `query_token` is on it carries the credential; elsewhere it was refused before.
_CREDENTIAL: Final = "access_token"


async def own(request: web.Request) -> web.StreamResponse:
    """Tell a user what they have used, and what is left. Charges nothing.

    Raises:
        MethodNotAllowedError: it is neither GET nor HEAD.
        InvalidRequestError: the query asks for what is not there, or for somebody else's.
        RateLimitExceededError: the user is asking several times at once.
        LedgerUnavailableError, LimitsUnavailableError: one of the two cannot be asked.
    """
    service = request.app[SERVICE]
    with service.exchanges.begin(request, service.rules) as exchange:
        head, principal = await begin_own_read(request, exchange, service)
        asked = read_query(head.query, default=_OWN_DEFAULT)
        with service.usage_askers.one_more(principal):
            own_only = asked._replace(issuer=principal.issuer, user=principal.user)
            since, rows = await find_rows(service, own_only)
            limits = await exchange.rules.store.limits(principal)
        told = {
            "user": principal.user,
            "plan": principal.plan.name,
            "since": since,
            "rows": orjson.Fragment(rows),
            "limits": [_limit(state) for state in limits],
        }
        exchange.status, exchange.ending = 200, Ending.COMPLETE
        return web.Response(body=orjson.dumps(told), content_type="application/json")


def read_query(query: bytes | None, *, default: str, whose: Collection[str] = ()) -> Query:
    """Read what is asked of the ledger: `since`, `by` (else `default`), and the members of `whose`, each at most once.

    `whose` are the columns that tell users apart; where it is empty there is one user only.

    Raises:
        InvalidRequestError: another member, one twice, or a value that is not understood: a typing error must not
            look like an answer to what was meant.
    """
    members = read_members(query, ("since", "by", *whose))
    by = members.get("by", default)
    names = by.split(",") if by else []
    columns = [column for column in COLUMNS if column not in _WHOSE or column in whose]
    chosen = tuple(column for name in names for column in columns if column == name)
    if len(chosen) != len(names) or len(set(names)) != len(names):
        raise InvalidRequestError(f"by must be a list of {_listed(columns)}, each once.")
    since_s = int(time.time()) - _seconds(members.get("since", _DEFAULT_SINCE))
    return Query(since_s * 1000, chosen, members.get("issuer"), members.get("user"))


def read_members(query: bytes | None, known: Sequence[str]) -> dict[str, str]:
    """Read a query's members, each at most once.

    Raises:
        InvalidRequestError: one is not known, or comes twice.
    """
    members: dict[str, str] = {}
    for raw_name, raw_value in query_members(query):
        name, value = raw_name.decode("utf-8", "replace"), raw_value.decode("utf-8", "replace")
        if name == _CREDENTIAL or not name:
            continue
        if name not in known:
            raise InvalidRequestError(f"The query may have the members {_listed(known)}.")
        if name in members:
            raise InvalidRequestError(f"The query has the member {name} twice.")
        members[name] = value
    return members


async def find_rows(service: Service, asked: Query) -> tuple[str, bytes]:
    """The moment from which on is summed up, and the sums as a JSON list; an empty one without a ledger.

    It is at most as far back as rows are kept.

    Raises:
        LedgerUnavailableError: the ledger cannot be read right now.
    """
    since_s = max(asked.since_ms // 1000, int(time.time() - service.rules.usage_retention_s))
    sums: Sequence[Sums] = ()
    if service.ledger is not None:
        sums = await service.ledger.sums(asked._replace(since_ms=since_s * 1000))
    return _utc(since_s), await service.turns.run(_encode(sums))


def _encode(sums: Sequence[Sums]) -> Steps[bytes]:
    """Write a JSON list, in pieces: whoever chooses models' names can fill it with as many groups as a ledger gives."""
    pieces = []
    for start in range(0, len(sums), _ROWS_AT_ONCE):
        if start:
            yield
        rows = [row.as_json() for row in sums[start : start + _ROWS_AT_ONCE]]
        pieces.append(orjson.dumps(rows)[1:-1])
    return b"[%b]" % b",".join(pieces)


def _limit(state: LimitState) -> dict[str, Any]:
    """A limit as it is told; amounts of dollars are decimals as text."""
    amounts: Sequence[int | str] = (state.limit, state.used, state.reserved)
    if state.kind == "usd":
        amounts = [usd_text(nano) for nano in (state.limit, state.used, state.reserved)]
    limit, used, reserved = amounts
    return {
        "kind": state.kind,
        "name": state.name,
        "limit": limit,
        "used": used,
        "reserved": reserved,
        # Rounded up: at that moment it is true.
        "resets_at": _utc(-int(-state.resets_s // 1)),
    }


def _seconds(since: str) -> int:
    match = _DURATION.fullmatch(since)
    seconds = 0 if match is None else int(match[1]) * _SECONDS[match[2]]
    if not seconds:
        raise InvalidRequestError("since must be a duration, such as 90m, 24h or 7d.")
    return seconds


def _utc(unix_s: int) -> str:
    """A moment by RFC 3339."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _listed(names: Collection[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}"
