"""The process: its loop, its signals, its exit code."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from typing import TYPE_CHECKING

import structlog

from proxy import __version__
from proxy.app import App
from proxy.config_file import ConfigurationError
from proxy.logs import Redactor, configure

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
    redactor = Redactor()
    writer = configure(format_=settings.log.format, level=settings.log.level, redactor=redactor)
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
    announce: Callable[[str], None] | None = None,
) -> int:
    """Open the app, obey signals, drain, close; `announce` is told the address once it is open."""
    signals = Signals()
    signals.listen()
    app = App(settings, redactor)
    try:
        await app.open()
    except OSError as exc:
        sys.stderr.write(f"forward-sse: cannot start: {exc.strerror or exc}\n")
        return EXIT_FAILED
    # What was built lives as long as the process: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    structlog.get_logger().info(
        "server.started",
        version=__version__,
        listen=_show(app.listen),
        admin_listen=_show(app.admin_listen),
        auth="none" if settings.auth is None else "required",
    )
    if announce is not None:
        announce(_show(app.listen) or "")
    await _obey(signals, app, load)
    await app.close()
    structlog.get_logger().info("server.stopped")
    return EXIT_OK


class Signals:
    """The process's signals as things to wait for."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.reload = asyncio.Event()

    def listen(self) -> None:
        """Take over SIGTERM, SIGINT and SIGHUP."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload.set)

    def _stop(self) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()


async def _obey(signals: Signals, app: App, load: Callable[[], Settings]) -> None:
    reloading = asyncio.create_task(_reload_forever(signals, app, load))
    await signals.stop.wait()
    reloading.cancel()
    draining = asyncio.create_task(app.drain())
    hurrying = asyncio.create_task(signals.hurry.wait())
    await asyncio.wait((draining, hurrying), return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        draining.cancel()
        await app.drain(timeout_s=0)
    hurrying.cancel()
    await asyncio.gather(reloading, draining, hurrying, return_exceptions=True)


async def _reload_forever(signals: Signals, app: App, load: Callable[[], Settings]) -> None:
    while True:
        await signals.reload.wait()
        signals.reload.clear()
        try:
            await app.reload(load())
        except ConfigurationError as exc:
            structlog.get_logger().error("configuration.refused", faults=[str(fault) for fault in exc.faults])
        except OSError as exc:
            structlog.get_logger().error("configuration.refused", faults=[str(exc)])


def _show(address: tuple[str, int] | None) -> str | None:
    if address is None:
        return None
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
