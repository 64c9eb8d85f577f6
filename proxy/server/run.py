"""The process: its loop, its signals, its exit code."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import TYPE_CHECKING

import structlog

from proxy import __version__
from proxy.observability.logging import Redactor, configure
from proxy.server.listen import Server
from proxy.server.signals import Signals, drain, log_egress_proxies, log_options, reload_when_asked
from proxy.server.sockets import format_address, format_addresses

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.settings import Settings

EXIT_OK, EXIT_FAILED = 0, 1


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop of uvloop's where it is installed (Linux), else asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 - absent on macOS
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def run(load: Callable[[], Settings]) -> int:
    """Serve until a signal ends it, and give the exit code.

    SIGTERM and SIGINT drain, a second one ends at once, SIGHUP calls `load` again.

    Raises:
        ConfigurationError: the file is faulty at the start.
    """
    settings = load()
    if settings.workers > 1:
        from proxy.server.workers import arbiter  # noqa: PLC0415 - one process needs none of it

        return arbiter.run(settings, load)
    redactor = Redactor()
    writer = configure(redactor=redactor, **log_options(settings))
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(serve(settings, load, redactor))
    finally:
        writer.close()


async def serve(
    settings: Settings,
    load: Callable[[], Settings],
    redactor: Redactor,
    *,
    announce: Callable[[str, str], None] | None = None,
) -> int:
    """Open the server, obey signals, drain, close; `announce` is told the addresses of clients and of operators."""
    signals = Signals()
    signals.listen()
    server = Server(settings, redactor)
    try:
        await server.open()
    except OSError as exc:
        sys.stderr.write(f"forward-sse: cannot start: {exc.strerror or exc}\n")
        return EXIT_FAILED
    # What was built lives as long as the process: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    structlog.get_logger().info(
        "server.started",
        version=__version__,
        listen=format_addresses(server.listens),
        admin_listen=format_address(server.admin_listen),
        auth="none" if settings.auth is None else "required",
    )
    log_egress_proxies(settings)
    if announce is not None:
        announce(format_address(server.listen) or "", format_address(server.admin_listen) or "")
    reloading = asyncio.create_task(reload_when_asked(signals, server, load))
    await signals.stop.wait()
    reloading.cancel()
    await drain(signals, server)
    await asyncio.gather(reloading, return_exceptions=True)
    await server.close()
    structlog.get_logger().info("server.stopped")
    return EXIT_OK
