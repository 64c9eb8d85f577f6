"""One worker's part of the picture: looks at its running exchanges when it is asked, at most about once a second.

Looking at an exchange changes nothing of it and adds nothing to its events: everything is found out here. Many are
looked at in slices, between which the loop serves streams, and never more often than what costs a twentieth of the
worker's time. What was seen is forgotten some seconds after the last who asked.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.console.choice import PHASES, Row
from proxy.console.picture import Part, sums_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proxy.console.choice import Choice
    from proxy.exchange import Exchange, Exchanges

# Looked at without a pause: about 2 ms.
_SLICE: Final = 100
# Who asks within that time after a look is shown the same.
_FRESH_S: Final = 0.9
# What looking may cost of a worker's CPU time.
_MOST_OF_TIME: Final = 0.05
# Whoever asks is told what was seen before, where looking takes longer: another worker waits 0.2 s.
_PATIENCE_S: Final = 0.1
_KEPT_S: Final = 5.0
_RECEIVING, _CONNECTING, _WAITING, _STREAMING, _PAUSED, _ENDING = PHASES
# Clients choose models' names.
_MOST_SHOWN: Final = 256


class _Seen(NamedTuple):
    """What is remembered of an exchange from one look to the next."""

    key: str
    started_ms: int
    events: int


class Collector:
    """What one worker shows. Nothing runs in it while nobody asks."""

    def __init__(self, exchanges: Exchanges, *, now: Callable[[], float], report: Callable[[], Part]) -> None:
        """`now` gives the loop's time; `report` is asked for the part without its streams."""
        self._exchanges = exchanges
        self._now = now
        self._report = report
        self._rows: list[Row] = []
        self._seen: dict[Exchange, _Seen] = {}
        self._looked_s: float | None = None
        self._cost_s = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._forgetting: asyncio.TimerHandle | None = None
        self._keys = 0

    async def part(self, choices: Sequence[Choice]) -> Part:
        """The part of these choices, in their order. Waits for a look, if one is due, but not for long."""
        if self._looking is None and self._is_due():
            self._looking = asyncio.create_task(self._look())
        if (looking := self._looking) is not None:
            # The first who asks waits: there is nothing else to be shown.
            await asyncio.wait((looking,), timeout=None if self._looked_s is None else _PATIENCE_S)
            if looking.done():
                looking.result()
        part = self._report()
        part["streams"] = len(self._rows)
        part["chosen"] = []
        for choice in choices:
            if part["chosen"]:
                await asyncio.sleep(0)
            matched = choice.of(self._rows)
            part["chosen"].append({"rows": choice.first(matched), "sums": sums_of(matched)})
        return part

    async def close(self) -> None:
        """End a look that is under way, and forget everything."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))
        self._forget()

    def _is_due(self) -> bool:
        if self._looked_s is None:
            return True
        return self._now() - self._looked_s >= max(_FRESH_S, self._cost_s / _MOST_OF_TIME)

    async def _look(self) -> None:
        try:
            await self._look_at_all()
        finally:
            self._looking = None

    async def _look_at_all(self) -> None:
        began_s, before_s = self._now(), self._looked_s
        since_s = None if before_s is None else began_s - before_s
        rows: list[Row] = []
        seen: dict[Exchange, _Seen] = {}
        running = self._exchanges.live()
        cost_s = 0.0
        unix_ms = time.time() * 1000
        for start in range(0, len(running), _SLICE):
            if start:
                await asyncio.sleep(0)
            slice_s = time.thread_time()
            for exchange, bytes_, events in running[start : start + _SLICE]:
                # It may have ended between two slices.
                if exchange.task is not None:
                    known = self._seen.get(exchange)
                    if known is None:
                        # Once: the two clocks drift.
                        known = _Seen(self._new_key(), round(unix_ms - (began_s - exchange.started_s) * 1000), events)
                        rate = None
                    else:
                        rate = round(max(0, events - known.events) / since_s, 1) if since_s else None
                    seen[exchange] = known._replace(events=events)
                    rows.append(row_of(exchange, bytes_, events, known.key, known.started_ms, rate))
            cost_s += time.thread_time() - slice_s
        self._rows, self._seen, self._looked_s, self._cost_s = rows, seen, began_s, cost_s
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._forgetting = asyncio.get_running_loop().call_later(_KEPT_S + cost_s / _MOST_OF_TIME, self._forget)

    def _new_key(self) -> str:
        # The clients choose ids, and may choose the same.
        self._keys += 1
        return f"{self._keys:x}"

    def _forget(self) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._forgetting = self._looked_s = None
        self._rows, self._seen = [], {}


def row_of(exchange: Exchange, bytes_: int, events: int, key: str, started_ms: int, rate: float | None) -> Row:
    """What is shown of a running exchange: who, where, how far; nothing of what it says, and no credential."""
    principal, response = exchange.principal, exchange.response
    taken = exchange.reckoning.shown()
    figures = taken.figures
    unsent = 0 if exchange.transport is None else exchange.transport.get_write_buffer_size()
    first_byte_s = None if response is None else response.first_byte_s
    model = figures.model
    return {
        "key": key,
        "id": exchange.id,
        "user": None if principal is None else principal.user,
        "issuer": None if principal is None else principal.issuer,
        "plan": None if principal is None else principal.plan.name,
        "upstream": exchange.upstream,
        "model": None if model is None else model[:_MOST_SHOWN],
        "phase": _phase_of(exchange, unsent),
        "attempts": len(exchange.attempts),
        "first_byte_ms": None if first_byte_s is None else round((first_byte_s - exchange.started_s) * 1000, 1),
        "started_ms": started_ms,
        "events": events,
        "events_per_s": rate,
        "bytes": bytes_,
        "unsent": unsent,
        "tokens_in": figures.input,
        "tokens_out": figures.output,
        "cost_nano": taken.cost_nano,
        "usage": figures.source,
    }


def _phase_of(exchange: Exchange, unsent: int) -> str:
    response = exchange.response
    if response is not None:
        if response.ending is not None:
            return _ENDING
        if unsent:
            return _PAUSED
        return _STREAMING if response.sent else _WAITING
    if not exchange.attempts:
        return _RECEIVING
    last = exchange.attempts[-1]
    # One that has failed waits for the next.
    return _CONNECTING if last.sent_s is None or last.ending is not None else _WAITING
