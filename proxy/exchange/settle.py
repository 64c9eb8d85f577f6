"""Settle: what an exchange took, its one log line, its metrics, its row. Does not wait: nobody cancels it half way."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from proxy.exchange.attempt import logged
from proxy.ledger import Row
from proxy.model import COMPLETE, Amounts, Ending
from proxy.protocol.typed_events import Usage
from proxy.usage import Figures, usd_text
from proxy.usage.prices import USD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.exchange.exchange import Exchange
    from proxy.ledger import Ledger
    from proxy.model import Principal
    from proxy.observability.metrics import Metrics
    from proxy.usage import Estimates, Meter, Prices

# Of a row's id.
_CHANCE_DIGITS: Final = 20
_TIME_BYTES: Final = 6
# A path is the client's text: enough of it to see what was asked, not enough to fill a disk.
MAX_PATH_CHARACTERS: Final = 256
# Refused before a route was found: the label of the metrics.
NO_UPSTREAM = "none"
# Of nobody's, or refused before it was known whose it is.
NO_PLAN = "none"
# Without a response of the vendor's: no model was run, as far as can be known.
_NOT_REACHED = frozenset({Ending.REFUSED, Ending.UPSTREAM_ERROR, Ending.TIMEOUT_CONNECT})


@dataclass(slots=True)
class Taken:
    """What an exchange took: `cost_nano` is None where the price is unknown, or no model was run. See `Figures`."""

    figures: Figures
    cost_nano: int | None = None

    @property
    def amounts(self) -> Amounts:
        """What the token limits are charged."""
        return Amounts(self.figures.input + self.figures.output, self.cost_nano or 0)


NOTHING_TAKEN: Final = Taken(Figures("none"))
NO_AMOUNTS: Final = Amounts()


class Reckoning(NamedTuple):
    """Finds out what an exchange took: for its client in the last event, then for the log, with the same figures.

    Has no reference to the exchange, so that a response may keep it without a cycle.
    """

    meter: Meter | None
    upstream: str
    prices: Prices
    estimates: Estimates

    def taken(self, ending: Ending) -> Taken:
        """What it took, if it ended so; asking again, with another ending even, changes no figure."""
        if self.meter is None:
            return NOTHING_TAKEN
        return self._priced(_figures(self.meter, self.upstream, self.estimates, ending))

    def shown(self) -> Taken:
        """What it has taken so far, for an onlooker: changes no figure of what it will be charged."""
        meter = self.meter
        if meter is None:
            return NOTHING_TAKEN
        if not meter.is_sent:
            return Taken(Figures("none", meter.model))
        return self._priced(self.estimates.shown(meter, self.upstream))

    def told_at_end(self) -> Usage | None:
        """What the vendor has told of a stream that is whole, for the typed event `End`; None where it told nothing."""
        taken = self.taken(COMPLETE)
        figures, cost_nano = taken.figures, taken.cost_nano
        if self.meter is None or figures.source == "none":
            return None
        counts = self.meter.counts
        told_in = None if counts.input is None else figures.input
        told_out = None if counts.output is None else figures.output
        if told_in is None and told_out is None:
            return None
        is_priced = figures.source == "reported" and cost_nano is not None
        return Usage(
            told_in, told_out, (told_in or 0) + (told_out or 0), usd_text(cost_nano or 0) if is_priced else None
        )

    def told(self, ending: Ending) -> dict[str, int | str] | None:
        """What it took, for the event `end` of a ticket's stream; None where no model was run."""
        taken = self.taken(ending)
        figures, cost_nano = taken.figures, taken.cost_nano
        if figures.source == "none":
            return None
        told: dict[str, int | str] = {
            "input": figures.input,
            "output": figures.output,
            "total": figures.input + figures.output,
        }
        if cost_nano is not None:
            told["cost_usd"] = usd_text(cost_nano)
        return told | {"source": figures.source}

    def _priced(self, figures: Figures) -> Taken:
        return Taken(figures, None if figures.source == "none" else self.prices.cost(figures.model, figures))


def take(exchange: Exchange, metrics: Metrics) -> Taken:
    """Find out what an exchange that has ended took, and count it in the metrics; once for each."""
    if exchange.meter is None:
        return NOTHING_TAKEN
    upstream, ending = exchange.upstream or NO_UPSTREAM, exchange.ending or Ending.CLIENT_CLOSED
    figures = _figures(exchange.meter, upstream, exchange.registry.estimates, ending)
    if figures.source == "none":
        return Taken(figures)
    model = exchange.rules.prices.of(figures.model)
    cost_nano = model.cost(figures)
    metrics.usage_settled(
        upstream,
        _plan_of(exchange.principal),
        model.label,
        figures.input,
        figures.output,
        figures.cached,
        figures.reasoning,
        cost_nano,
    )
    return Taken(figures, cost_nano)


def _figures(meter: Meter, upstream: str, estimates: Estimates, ending: Ending) -> Figures:
    """The tokens of an exchange with a meter, if it ended so."""
    if not meter.is_sent or (meter.status is None and ending in _NOT_REACHED):
        return Figures("none", meter.model)
    return estimates.figures(meter, upstream, is_whole=ending is COMPLETE)


def settle(
    exchange: Exchange,
    taken: Taken,
    *,
    now_s: float,
    metrics: Metrics,
    ledger: Ledger | None,
    new_id: Callable[[], str],
    log: Callable[[dict[str, Any]], None],
) -> None:
    """Write the line and the ledger's row, and count the exchange; called exactly once for each, whatever happened.

    `new_id` draws random hexadecimal digits, at least 20.
    """
    principal = exchange.principal
    line = line_of(exchange, taken, exchange.ending or Ending.CLIENT_CLOSED, now_s)
    if exchange.trace_ids is not None:
        line["trace_id"], line["span_id"] = exchange.trace_ids
    if exchange.log_fields is not None:
        # The line's own fields win, `limits` included, which most lines do not have.
        line = {name: value for name, value in exchange.log_fields.items() if name != "limits"} | line
    if exchange.limits is not None:
        line["limits"] = exchange.limits
    if ledger is not None and principal is not None:
        # Before the line, which names the row.
        row = row_of(exchange, principal, taken, line, new_id())
        line["row_id"] = row.row_id
        line["dialect"] = row.dialect
        line["price_version"] = row.price_version
        ledger.append(row)
    log(line)
    metrics.exchange_settled(
        upstream=exchange.upstream or NO_UPSTREAM,
        status=exchange.status,
        ending=line["ending"],
        code=exchange.code,
        first_byte_s=None if exchange.first_byte_s is None else exchange.first_byte_s - exchange.started_s,
        duration_s=now_s - exchange.started_s,
        bytes_=exchange.bytes,
        events=exchange.events,
    )
    if exchange.limit is not None:
        metrics.limit_reached(_plan_of(principal), exchange.limit)


def line_of(exchange: Exchange, taken: Taken, ending: Ending, now_s: float) -> dict[str, Any]:
    """The line of an exchange that ends, or would end so now; without an embedder's fields."""
    principal = exchange.principal
    duration_s = now_s - exchange.started_s
    ttfb_s = None if exchange.first_byte_s is None else exchange.first_byte_s - exchange.started_s
    path = exchange.path
    line: dict[str, Any] = {
        "id": exchange.id,
        "user": None if principal is None else principal.user,
        "issuer": None if principal is None else principal.issuer,
        "plan": None if principal is None else principal.plan.name,
        "upstream": exchange.upstream,
        "method": exchange.method,
        "path": path if len(path) <= MAX_PATH_CHARACTERS else exchange.cut_path(),
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
    if exchange.attempts:
        line["attempts"] = logged(exchange.attempts, ending, now_s)
    if exchange.rules.logs_client:
        line["client"] = None if exchange.client is None else str(exchange.client)
    if exchange.meter is not None:
        _add_usage(line, taken)
    return line


def _plan_of(principal: Principal | None) -> str:
    """The label of the user's plan."""
    return NO_PLAN if principal is None else principal.plan.name


def _add_usage(line: dict[str, Any], taken: Taken) -> None:
    """Add what the vendor's answer took."""
    figures = taken.figures
    line["model"] = figures.model
    line["input_tokens"] = figures.input
    line["output_tokens"] = figures.output
    line["cached_tokens"] = figures.cached
    line["reasoning_tokens"] = figures.reasoning
    line["cost_usd"] = None if taken.cost_nano is None else usd_text(taken.cost_nano)
    line["usage"] = figures.source


def row_of(exchange: Exchange, principal: Principal, taken: Taken, line: Mapping[str, Any], id_: str) -> Row:
    """The row of an exchange that ends now; `id_` is of random hexadecimal digits, at least 20."""
    figures = taken.figures
    ended_ms = time.time_ns() // 1_000_000
    # In the order of the columns, and past the constructor of a named tuple, which is a Python function of 25 arguments
    # and takes twice as long; with the columns by name it takes six times as long.
    return tuple.__new__(
        Row,
        (
            # As many digits as `sql.first_id` has.
            ended_ms.to_bytes(_TIME_BYTES, "big").hex() + id_[:_CHANCE_DIGITS],
            exchange.id,
            ended_ms,
            principal.issuer,
            principal.user,
            principal.plan.name,
            exchange.upstream,
            figures.model,
            # The dialect.
            None if exchange.upstream is None else exchange.dialect,
            exchange.status,
            # A text as such: of a kind of text the driver asks whether somebody adapts it, at ten times the cost. Not
            # the member's `value`, which is a Python function.
            str(line["ending"]),
            exchange.code,
            line["ttfb_ms"],
            line["duration_ms"],
            exchange.bytes,
            exchange.events,
            figures.input,
            figures.output,
            figures.cached,
            figures.reasoning,
            taken.cost_nano,
            USD,
            figures.source,
            # The version of the prices.
            None if figures.source == "none" else exchange.rules.prices.version,
            len(exchange.attempts),
        ),
    )
