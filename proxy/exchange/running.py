"""Keeps, every few seconds, what each running exchange has taken so far, for the case that the worker is killed."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from proxy.exchange.settle import NO_UPSTREAM, Taken, line_of, row_of
from proxy.model import Amounts, Ending, Principal
from proxy.observability.logging import exchange_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.exchange.exchange import Exchange
    from proxy.exchange.registry import Exchanges
    from proxy.limits import Store
    from proxy.model import Plan
    from proxy.observability.metrics import Metrics
    from proxy.usage import Prices

# What is younger when it is killed leaves nothing. Whoever waits for a model is older, and owes all of its input; what
# is refused, or ends at once, costs nothing here.
FIRST_S: Final = 0.1
# Each is written again every 5 s; a look writes a part of them, some 12 µs each.
_LOOK_S: Final = 0.25
_TURNS: Final = 20
# The ending is ours, as if somebody had stopped it; the reason tells it from that.
REASON: Final = "worker_died"


class Slots(Protocol):
    """Where lines are kept; see `proxy.ledger.running`."""

    def take(self) -> int | None:
        """A slot that nobody uses; None where there is none."""
        ...

    def put(self, slot: int, line: bytes) -> None:
        """Write the line of a slot."""
        ...

    def clear(self, slot: int) -> None:
        """Give a slot back."""
        ...

    def close(self) -> None:
        """Remove them all."""
        ...


class RunningExchanges:
    """Writes the lines that running exchanges would have if they ended now. Costs nothing per event."""

    def __init__(self, exchanges: Exchanges, file: Slots) -> None:
        self._exchanges = exchanges
        self._file = file
        self._turn = 0
        self._timer: asyncio.TimerHandle | None = None
        exchanges.on_end = file.clear

    def start(self) -> None:
        """Begin to look."""
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def close(self) -> None:
        """Look no more, and remove the file: everything is settled."""
        if self._timer is not None:
            self._timer.cancel()
        self._file.close()

    def _look(self) -> None:
        self._turn += 1
        old_s = self._exchanges.now() - FIRST_S
        try:
            for exchange, sent, events in self._exchanges.live():
                if exchange.principal is None or exchange.meter is None or not exchange.meter.is_sent:
                    continue
                if exchange.slot is None:
                    if exchange.started_s > old_s:
                        continue
                    exchange.slot = self._file.take()
                elif (exchange.slot + self._turn) % _TURNS:
                    continue
                if exchange.slot is not None:
                    self._file.put(exchange.slot, self._line(exchange, sent, events))
        finally:
            self.start()

    def _line(self, exchange: Exchange, sent: int, events: int) -> bytes:
        assert exchange.principal is not None  # looked at before
        assert exchange.meter is not None
        figures = exchange.registry.estimates.so_far(exchange.meter, exchange.upstream or "")
        cost = None if figures.source == "none" else exchange.rules.prices.cost(figures.model, figures)
        taken = Taken(figures, cost)
        line = line_of(exchange, taken, Ending.STOPPED, self._exchanges.now())
        # A path is the client's text, and no logger has looked through it for secrets yet.
        line |= {"bytes": sent, "events": events, "reason": REASON, "path": None}
        row = row_of(exchange, exchange.principal, taken, line, self._exchanges.new_id())
        line |= {"row_id": row.row_id, "dialect": row.dialect, "price_version": row.price_version}
        return orjson.dumps(line)


def settle_dead(
    lines: Sequence[bytes], *, plans: Mapping[str, Plan], prices: Prices, store: Store, metrics: Metrics
) -> None:
    """Log, charge and count what workers that were killed have left of their exchanges; the rows are in the ledger.

    A plan that there is no more is that of `default`.
    """
    log = exchange_logger()
    for told in lines:
        line: dict[str, Any] = orjson.loads(told)
        upstream = line["upstream"] or NO_UPSTREAM
        if line["usage"] != "none":
            cost = line["cost_usd"]
            cost_nano = None if cost is None else int(Decimal(cost) * 10**9)
            principal = Principal(line["issuer"], line["user"], plans.get(line["plan"], plans["default"]))
            took = Amounts(line["input_tokens"] + line["output_tokens"], cost_nano or 0)
            store.charge_dead(principal, took, line["row_id"])
            metrics.usage_settled(
                upstream,
                principal.plan.name,
                prices.label(line["model"]),
                line["input_tokens"],
                line["output_tokens"],
                line["cached_tokens"],
                line["reasoning_tokens"],
                cost_nano,
            )
        metrics.exchange_settled(
            upstream=upstream,
            status=line["status"],
            ending=Ending(line["ending"]),
            code=line["code"],
            first_byte_s=None if line["ttfb_ms"] is None else line["ttfb_ms"] / 1000,
            duration_s=line["duration_ms"] / 1000,
            bytes_=line["bytes"],
            events=line["events"],
        )
        log(line)
