"""Signals of a running server: drain, end at once, reload."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import structlog

from proxy.server.configuration import faults_of
from proxy.settings.build_ways import ways
from proxy.settings.loading import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.server.listen import Server
    from proxy.settings import Settings


class Signals:
    """The process's signals as things to wait for."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.reload = asyncio.Event()

    def listen(self) -> None:
        """Take over SIGTERM, SIGINT and SIGHUP; and SIGUSR2, which would kill a process that has no arbiter."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload.set)
        loop.add_signal_handler(signal.SIGUSR2, _refuse_upgrade)

    def _stop(self) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()


def _refuse_upgrade() -> None:
    structlog.get_logger().error("upgrade.refused", reason="one worker has no arbiter that could hand over")


async def drain(signals: Signals, server: Server) -> None:
    """Drain the server; a signal to hurry ends what still runs."""
    draining = asyncio.create_task(server.drain())
    hurrying = asyncio.create_task(signals.hurry.wait())
    await asyncio.wait((draining, hurrying), return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        draining.cancel()
        await server.drain(timeout_s=0)
    hurrying.cancel()
    await asyncio.gather(draining, hurrying, return_exceptions=True)


async def reload_when_asked(signals: Signals, server: Server, load: Callable[[], Settings]) -> None:
    """Read the file anew at each signal, until cancelled; a faulty one changes nothing and is logged in one line."""
    while True:
        await signals.reload.wait()
        signals.reload.clear()
        try:
            await server.reload(load())
        except (ConfigurationError, OSError) as exc:
            server.configuration.refused(exc)
            log_refused(exc)


def log_refused(exc: ConfigurationError | OSError) -> None:
    """Log in one line why a configuration was refused."""
    structlog.get_logger().error("configuration.refused", faults=faults_of(exc))


def log_options(settings: Settings) -> dict[str, Any]:
    """The options of `configure` that the configuration has."""
    log = settings.log
    return {
        "format_": log.format,
        "level": log.level,
        "fields": log.fields,
        "is_access_logged": log.access == "on",
    }


def log_egress_proxies(settings: Settings) -> None:
    """Say in one line each which upstreams are reached through a proxy, and what names it."""
    for name, proxy, source in ways(settings):
        structlog.get_logger().info("egress_proxy.used", upstream=name, proxy=str(proxy), source=source)
