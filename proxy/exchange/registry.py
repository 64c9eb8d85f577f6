"""The registry of a worker's exchanges: begins them, knows those that run, settles each once."""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Final

from multidict import istr

from proxy.exchange.exchange import EXCHANGE, LOG_FIELDS, PRINCIPAL, Exchange
from proxy.exchange.settle import NO_AMOUNTS, NOTHING_TAKEN, settle, take
from proxy.exchange.telemetry import begin_trace
from proxy.model import Ending, FieldIndex
from proxy.observability.logging import exchange_logger
from proxy.usage import Estimates

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from proxy.errors import ProxyError
    from proxy.exchange.telemetry import Telemetry
    from proxy.ledger import Ledger
    from proxy.observability.metrics import Metrics
    from proxy.routing import Rules

_REQUEST_ID: Final = istr("X-Request-Id")
_ID_BYTES: Final = 12
_IDS_AT_ONCE: Final = 64
_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Exchanges:
    """The exchanges of one worker: begins them, knows those that run, settles them.

    Attributes:
        now: Gives the loop's time, in seconds.
        new_id: Draws a random id of 24 hexadecimal digits.
        estimates: What was learned from those that have ended.
        on_end: Told the slot of each that has one, when it is settled.
        telemetry: Told of each, where traces or its metrics are on.
        redact: Takes configured secrets out of a text that is cut for the log.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float],
        metrics: Metrics,
        ledger: Ledger | None = None,
        telemetry: Telemetry | None = None,
        redact: Callable[[bytes], bytes] = bytes,
    ) -> None:
        self.now = now
        self.on_end: Callable[[int], None] | None = None
        self.telemetry = telemetry
        self.redact = redact
        self._metrics = metrics
        self._ledger = ledger
        self._running: set[Exchange] = set()
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._log = exchange_logger()
        self._ids = _Ids()
        self.new_id = self._ids.new
        self.estimates = Estimates()

    def begin(self, request: web.BaseRequest, rules: Rules) -> Exchange:
        """A running exchange for the request, in the handler's own task; leaving its context ends it."""
        exchange = Exchange(self._ids.of(request.headers.get(_REQUEST_ID)), self.now(), rules, self, request.method)
        exchange.task = asyncio.current_task()
        exchange.transport = request.transport
        if len(request):
            # Middlewares have left something there.
            exchange.known, exchange.log_fields = request.get(PRINCIPAL), request.get(LOG_FIELDS)
        request[EXCHANGE] = exchange
        self._running.add(exchange)
        return exchange

    def refuse(self, rules: Rules, error: ProxyError, request: web.BaseRequest | None = None) -> Exchange:
        """Settle what never became an exchange: a head that could not be parsed, or came too late."""
        exchange = Exchange(self.new_id(), self.now(), rules, self)
        if self.telemetry is not None:
            begin_trace(exchange, None if request is None else FieldIndex(request.raw_headers), request)
        exchange.record_refusal(error)
        if request is not None:
            exchange.log_fields = request.get(LOG_FIELDS)
            request[EXCHANGE] = exchange
        self.end(exchange)
        return exchange

    def end(self, exchange: Exchange) -> None:
        """Settle the limits, write the log line, count; exactly once for each exchange, and without waiting."""
        taken = NOTHING_TAKEN
        try:
            taken = take(exchange, self._metrics)
        finally:
            if exchange.lease is not None:
                exchange.lease.release(exchange.ending)
            if exchange.admission is not None:
                # Other plans' users are charged by the request only.
                exchange.admission.settle(taken.amounts if exchange.has_token_limits else NO_AMOUNTS)
        # The response has the request, and that the exchange: thousands of streams that end at once would wait for the
        # garbage collector, which then holds the loop for half a second.
        exchange.task = exchange.response = None
        self._running.discard(exchange)
        if self._idle_waiters and not self._running:
            for waiter in self._idle_waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._idle_waiters.clear()
        if exchange.limits is None and exchange.principal is not None:
            exchange.limits = exchange.rules.store.fallback(exchange.principal)
        # Before there is a row: it would be there twice, were the worker killed in between.
        if exchange.slot is not None and self.on_end is not None:
            self.on_end(exchange.slot)
        now_s = self.now()
        settle(
            exchange,
            taken,
            now_s=now_s,
            metrics=self._metrics,
            ledger=self._ledger,
            new_id=self.new_id,
            log=self._log,
        )
        if self.telemetry is not None:
            self.telemetry.settled(exchange, taken, now_s)

    def live(self) -> list[tuple[Exchange, int, int]]:
        """The exchanges that are running, with the bytes and events that have passed so far."""
        return [
            (exchange, 0, 0)
            if exchange.response is None
            else (exchange, exchange.response.sent, exchange.response.events)
            for exchange in self._running
        ]

    async def idle(self) -> None:
        """Wait until nothing is running."""
        while self._running:
            waiter = asyncio.get_running_loop().create_future()
            self._idle_waiters.append(waiter)
            await waiter

    def interrupt(self, ending: Ending, id_: str | None = None) -> int:
        """End every running exchange, or those with the id, and return how many there were."""
        exchanges = [exchange for exchange in self._running if id_ is None or exchange.id == id_]
        for exchange in exchanges:
            exchange.interrupt(ending)
        return len(exchanges)

    def stop_own(self, id_: str, issuer: str, user: str, *, asking: Exchange | None = None) -> int:
        """End a user's running exchanges of that id, except the one that asks, and return how many there were."""
        own = [
            exchange
            for exchange in self._running
            if exchange is not asking
            and exchange.id == id_
            and exchange.principal is not None
            and (exchange.principal.issuer, exchange.principal.user) == (issuer, user)
        ]
        for exchange in own:
            exchange.interrupt(Ending.STOPPED)
        return len(own)

    def stop_all(self, *, user: str | None = None, issuer: str | None = None, upstream: str | None = None) -> int:
        """End every running exchange of a user or an upstream, and return how many there were."""
        found = [exchange for exchange in self._running if _is_of(exchange, user, issuer, upstream)]
        for exchange in found:
            exchange.interrupt(Ending.STOPPED)
        return len(found)


def _is_of(exchange: Exchange, user: str | None, issuer: str | None, upstream: str | None) -> bool:
    if upstream is not None:
        return exchange.upstream == upstream
    principal = exchange.principal
    return principal is not None and principal.user == user and issuer in {None, principal.issuer}


class _Ids:
    """Makes the ids of exchanges. One a worker, made in its own process: what it has drawn must not be drawn twice."""

    def __init__(self) -> None:
        self._drawn = ""
        self._position = 0

    def of(self, given: str | None) -> str:
        """The client's `X-Request-Id` where it has at most 64 safe characters, else a new random id."""
        if given is not None and given.isascii() and _ID.fullmatch(given.encode()):
            return given
        return self.new()

    def new(self) -> str:
        """A new random id: 96 bits, drawn from the system for many ids at once."""
        if self._position == len(self._drawn):
            self._drawn = os.urandom(_ID_BYTES * _IDS_AT_ONCE).hex()
            self._position = 0
        begin = self._position
        self._position = end = begin + 2 * _ID_BYTES
        return self._drawn[begin:end]
