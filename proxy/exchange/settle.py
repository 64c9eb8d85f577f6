"""Settle: an exchange's one log line and its metrics. Does not wait, so it cannot be cancelled half way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.model import Ending

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.exchange.exchange import Exchange
    from proxy.observability.metrics import Metrics

# A path is the client's text: enough of it to see what was asked, not enough to fill a disk.
MAX_PATH_CHARACTERS = 256
# Refused before a route was found: the label of the metrics.
NO_UPSTREAM = "none"


def settle(exchange: Exchange, *, now_s: float, metrics: Metrics, log: Callable[[dict[str, Any]], None]) -> None:
    """Write the line and count the exchange; called exactly once for each, whatever happened."""
    principal = exchange.principal
    ending = exchange.ending or Ending.CLIENT_CLOSED
    duration_s = now_s - exchange.started_s
    ttfb_s = None if exchange.first_byte_s is None else exchange.first_byte_s - exchange.started_s
    path = exchange.path
    line = {
        "id": exchange.id,
        "user": None if principal is None else principal.user,
        "issuer": None if principal is None else principal.issuer,
        "plan": None if principal is None else principal.plan.name,
        "upstream": exchange.upstream,
        "method": exchange.method,
        "path": path if len(path) <= MAX_PATH_CHARACTERS else path[:MAX_PATH_CHARACTERS],
        "status": exchange.status,
        "ending": ending,
        # To a tenth; `round` costs three times as much.
        "ttfb_ms": None if ttfb_s is None else int(ttfb_s * 10_000 + 0.5) / 10,
        "duration_ms": int(duration_s * 10_000 + 0.5) / 10,
        "bytes": exchange.bytes,
        "events": exchange.events,
        "code": exchange.code,
        "reason": exchange.reason,
        "event": "exchange.settled",
    }
    if exchange.log_fields is not None:
        # The line's own fields win, `limits` included, which most lines do not have.
        line = {name: value for name, value in exchange.log_fields.items() if name != "limits"} | line
    if exchange.limits is not None:
        line["limits"] = exchange.limits
    log(line)
    metrics.exchange_settled(
        upstream=exchange.upstream or NO_UPSTREAM,
        status=exchange.status,
        ending=ending,
        code=exchange.code,
        first_byte_s=ttfb_s,
        duration_s=duration_s,
        bytes_=exchange.bytes,
        events=exchange.events,
    )
