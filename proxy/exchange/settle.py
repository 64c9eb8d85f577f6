"""Settle: an exchange's one log line and its metrics. Does not wait, so it cannot be cancelled half way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.model import Ending
from proxy.usage import Figures, Tokens, usd_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.exchange.exchange import Exchange
    from proxy.observability.metrics import Metrics
    from proxy.usage import Estimates, Meter

# A path is the client's text: enough of it to see what was asked, not enough to fill a disk.
MAX_PATH_CHARACTERS = 256
# Refused before a route was found: the label of the metrics.
NO_UPSTREAM = "none"
# Without a response of the vendor's: no model was run, as far as can be known.
_NOT_REACHED = frozenset({Ending.REFUSED, Ending.UPSTREAM_ERROR, Ending.TIMEOUT_CONNECT})


def settle(
    exchange: Exchange,
    *,
    now_s: float,
    metrics: Metrics,
    estimates: Estimates,
    log: Callable[[dict[str, Any]], None],
) -> None:
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
    if exchange.meter is not None:
        line |= _usage(exchange.meter, exchange, ending, metrics, estimates)
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


def _usage(meter: Meter, exchange: Exchange, ending: Ending, metrics: Metrics, estimates: Estimates) -> dict[str, Any]:
    """The fields of what the vendor's answer took; counted in the metrics, too."""
    upstream = exchange.upstream or NO_UPSTREAM
    if meter.status is None and ending in _NOT_REACHED:
        figures, cost_usd = Figures("none", meter.model), None
    else:
        figures, cost_usd = estimates.figures(meter, upstream, is_whole=ending is Ending.COMPLETE), None
    if figures.source != "none":
        tokens = Tokens(figures.input, figures.output, figures.cached, figures.cache_write, figures.reasoning)
        cost = exchange.rules.prices.cost(figures.model, tokens)
        cost_usd = None if cost is None else usd_text(cost)
        metrics.usage_settled(upstream, figures.input, figures.output, figures.cached, figures.reasoning, cost)
    return {
        "model": figures.model,
        "input_tokens": figures.input,
        "output_tokens": figures.output,
        "cached_tokens": figures.cached,
        "reasoning_tokens": figures.reasoning,
        "cost_usd": cost_usd,
        "usage": figures.source,
    }
