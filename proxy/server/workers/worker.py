"""A worker: one process with one app, on the arbiter's sockets.

SIGTERM drains (any number of times: a service manager may send it to every process), SIGQUIT ends what runs. SIGINT
and SIGHUP are ignored, the arbiter handles them: for SIGHUP it sends one byte on the worker's control socket, and the
worker reads the configuration file again. When the arbiter is gone the socket is at its end, and the worker drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import socket
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import GunicornUVLoopWebWorker, GunicornWebWorker
from gunicorn.arbiter import Arbiter

from proxy.observability.logging import LineWriter, configure
from proxy.server.listen import Place, Server
from proxy.server.signals import Signals, drain, log_options, log_refused
from proxy.settings.loading import ConfigurationError

if TYPE_CHECKING:
    from proxy.server.workers.arbiter import WorkerApplication

# uvloop is not installed on macOS.
_Base: Any = GunicornWebWorker if find_spec("uvloop") is None else GunicornUVLoopWebWorker

NOTIFY_EVERY_S = 1.0
# Sent to the worker.
_RELOAD = b"R"
# Sent to the arbiter; anything else is the reason why the worker cannot start.
_IS_UP = b"up"
_IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


class Worker(_Base):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's worker with our server in it.

    Created before the fork; `send_reload`, `read_status` and `close` are for the arbiter's process.
    """

    app: WorkerApplication

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.number = self.app.next_number
        self.name = f"{self.ppid}-{self.number}"
        self.is_up = False
        self._is_orphan = False
        self.failure: str | None = None
        self._control, self._arbiter = socket.socketpair()
        self._control.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self.app.controls.add(self._control)
        # The first notification, so that a worker that hangs at its start is noticed too.
        self.notify()
        self._signals: Signals

    def send_reload(self) -> None:
        """Have the worker read the configuration file again.

        Raises:
            OSError: the worker is gone, or does not read its control socket.
        """
        self._control.send(_RELOAD)

    def read_status(self) -> None:
        """Read what the worker sent: that it is up, or why it cannot start."""
        try:
            status = self._control.recv(4096)
        except OSError:
            return
        if status == _IS_UP:
            self.is_up = True
        elif status:
            self.failure = status.decode(errors="replace")

    def close(self) -> None:
        """Close the arbiter's descriptors of a worker that has ended."""
        self.app.controls.discard(self._control)
        self._control.close()
        self._arbiter.close()
        self.tmp.close()

    def init_process(self) -> None:
        """Become the worker's process."""
        for control in self.app.controls:
            # Only the arbiter keeps these open, so that they end with it.
            control.close()
        self._signals = Signals()
        faulthandler.enable()
        super().init_process()

    def load_wsgi(self) -> None:
        """Load nothing: there is no WSGI application."""

    def init_signals(self) -> None:
        """Handle the arbiter's signals only."""
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        # A stuck worker gets SIGABRT, for which `faulthandler` writes its stack.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Not the loop's handlers: closing the loop would restore the default, which kills the process.
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGQUIT, self._stop)

    def run(self) -> None:
        """Serve, and exit with the exit code; a failure to start is sent to the arbiter."""
        writer = LineWriter(sys.stdout.fileno(), is_shared=True)
        options = log_options(self.app.settings)
        configure(redactor=self.app.redactor, writer=writer, worker=self.name, **options)
        try:
            super().run()
        except OSError as exc:
            if self.booted:
                raise
            self._send(self.app.redactor.redact((exc.strerror or str(exc)).encode())[:1000])
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        finally:
            for number in (signal.SIGTERM, signal.SIGQUIT):
                signal.signal(number, signal.SIG_IGN)
            writer.close()

    async def _run(self) -> None:
        shared = self.app.shared
        self._arbiter.setblocking(False)  # noqa: FBT003 - the standard library's signature
        server = Server(
            self.app.settings,
            self.app.redactor,
            Place(self.name, shared.directory, shared.listen, shared.admin_listen, shared.secret),
        )
        notifying = asyncio.create_task(self._notify_regularly())
        reloading: asyncio.Task[None] | None = None
        try:
            await server.open()
            gc.collect()
            gc.freeze()
            self.booted = True
            structlog.get_logger().info("worker.started", pid=os.getpid())
            self._send(_IS_UP)
            reloading = asyncio.create_task(self._reload_when_told(server))
            await self._signals.stop.wait()
            reloading.cancel()
            await drain(self._signals, server)
            await server.close()
            if self._is_orphan and not any(shared.directory.glob("*.sock")):
                # The last worker without an arbiter removes the directory.
                shared.remove()
        finally:
            for task in (notifying, reloading):
                if task is not None:
                    task.cancel()

    def _stop(self, number: int, _frame: object) -> None:
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self._signals.stop.set)
        if number == signal.SIGQUIT:
            self.loop.call_soon_threadsafe(self._signals.hurry.set)

    def _send(self, status: bytes) -> None:
        try:
            self._arbiter.send(status)
            # Wakes the arbiter, which then reads the workers' status.
            os.kill(self.ppid, signal.SIGCHLD)
        except OSError:
            # The arbiter is gone; the end of the control socket shows it too.
            return

    async def _notify_regularly(self) -> None:
        while True:
            self.notify()
            await asyncio.sleep(NOTIFY_EVERY_S)

    async def _reload_when_told(self, server: Server) -> None:
        reader, writer = await asyncio.open_connection(sock=self._arbiter)
        try:
            # Bytes that come together are one reload. A reset is an end, too.
            with contextlib.suppress(ConnectionError):
                while await reader.read(4096):
                    try:
                        await server.reload(self.app.load_settings())
                    except (ConfigurationError, OSError) as exc:
                        server.configuration.refused(exc)
                        log_refused(exc)
            structlog.get_logger().warning("arbiter.lost")
            self._is_orphan = True
            self._signals.stop.set()
        finally:
            writer.transport.abort()
