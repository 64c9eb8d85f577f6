"""The admin listener's view of one worker; of several, `workers.all_workers` has the view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.console import Collector, Parts
from proxy.console.spend import spend_of
from proxy.handlers.admin import Stopped
from proxy.handlers.usage import find_rows
from proxy.model import Ending

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from proxy.console import Choice, Part
    from proxy.handlers.admin import Stream, UpstreamReport
    from proxy.handlers.service import Problems, Service
    from proxy.ledger import Query


# What a worker that is alone is called.
_ALONE = "worker"


class WorkerStatus:
    """The view of a worker on itself. Only `usage`, `spend`, `part` and `console` wait for anything."""

    def __init__(self, service: Service, configuration: Callable[[], dict[str, Any]]) -> None:
        """`configuration` tells what is in force, without secrets."""
        self._service = service
        self._configuration = configuration
        self._collector = Collector(service.exchanges, now=service.timers.now, report=self._report)

    async def close(self) -> None:
        """End what is being looked at."""
        await self._collector.close()

    async def metrics(self, *, is_openmetrics: bool = False) -> bytes:
        """The text of a scrape."""
        return self._service.metrics.render(is_openmetrics=is_openmetrics)

    async def streams(self) -> list[Stream]:
        """The live streams."""
        now_s = self._service.timers.now()
        return [
            {
                "id": exchange.id,
                "issuer": None if exchange.principal is None else exchange.principal.issuer,
                "user": None if exchange.principal is None else exchange.principal.user,
                "plan": None if exchange.principal is None else exchange.principal.plan.name,
                "upstream": exchange.upstream,
                "method": exchange.method,
                "path": exchange.path,
                "status": exchange.status,
                "age_s": round(now_s - exchange.started_s, 3),
                "bytes": bytes_,
                "events": events,
            }
            for exchange, bytes_, events in self._service.exchanges.live()
        ]

    async def stop(self, id_: str) -> bool:
        """End the streams of that id."""
        return self._service.exchanges.interrupt(Ending.STOPPED, id_) > 0

    async def stop_all(self, whose: Mapping[str, str]) -> Stopped:
        """End every stream of a user or of an upstream."""
        return Stopped(self._service.exchanges.stop_all(**whose))

    async def configuration(self) -> dict[str, Any]:
        """The configuration in force, and the last reload's result."""
        return self._configuration()

    async def problems(self) -> Problems:
        """What stands against being ready."""
        return self._service.problems()

    async def usage(self, asked: Query) -> tuple[str, bytes]:
        """What has been used: the ledger is the whole node's."""
        return await find_rows(self._service, asked)

    async def upstreams(self) -> list[UpstreamReport]:
        """The upstreams and what is known of them."""
        return self._service.upstreams.reports()

    async def switch(self, name: str, *, is_off: bool) -> bool:
        """Turn an upstream off or on."""
        return self._service.upstreams.switch(name, is_off=is_off)

    async def console(self, choices: Sequence[Choice]) -> Parts:
        """What a console shows."""
        return Parts({_ALONE: await self.part(choices)}, frozenset(), await self.upstreams())

    async def part(self, choices: Sequence[Choice]) -> Part:
        """This worker's part of what a console shows; waits 0.1 s at most."""
        return await self._collector.part(choices)

    async def spend(self) -> dict[str, Any] | None:
        """Who has spent most today: the ledger is the whole node's."""
        ledger = self._service.ledger
        return None if ledger is None else await spend_of(ledger)

    def _report(self) -> Part:
        store = self._service.store
        problem = store.problem()
        state = "ok" if problem is None else "limping" if store.is_serving else "down"
        return {
            "counters": self._service.metrics.totals(),
            "limits": {"state": state, "problem": problem},
            "is_draining": self._service.is_draining,
            **self._service.problems(),
        }
