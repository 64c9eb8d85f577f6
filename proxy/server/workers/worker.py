"""A worker: one process with one app, on the arbiter's sockets.

It obeys its arbiter: SIGTERM drains (any number of times: a service manager may send it to every process), SIGQUIT
hurries, and new settings come as orders on a socket. SIGINT and SIGHUP are the arbiter's to judge. When the arbiter is
gone the orders end, and the worker drains.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import pickle
import signal
import socket
import struct
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import GunicornUVLoopWebWorker, GunicornWebWorker
from gunicorn.arbiter import Arbiter

from proxy.observability.logging import LineWriter, configure
from proxy.server.listen import Place, Server
from proxy.server.signals import Signals, drain, log_refused

if TYPE_CHECKING:
    from proxy.server.workers.gunicorn_app import Service
    from proxy.settings import Settings

# uvloop is not installed on macOS.
_Base: Any = GunicornWebWorker if find_spec("uvloop") is None else GunicornUVLoopWebWorker

BEAT_S = 1.0
# Said to the arbiter; anything else is why it cannot be.
_IS_UP = b"up"
_ORDER_TIMEOUT_S = 1.0
_LENGTH = struct.Struct("!I")
_IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


class Worker(_Base):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's worker with our app in it. Made before the fork; `order` and `hear` are for the arbiter's process."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        service: Service = self.app
        self.place = service.place
        self.name = f"{self.ppid}-{self.place}"
        self.is_up = False
        self._is_orphan = False
        self.complaint: str | None = None
        self._control, self._orders = socket.socketpair()
        self._control.settimeout(0)
        service.controls.add(self._control)
        # Counted from here, so that one that hangs before its first sign of life is noticed too.
        self.notify()
        self._signals: Signals

    def order(self, settings: Settings) -> bool:
        """Have the worker serve by new settings, and say whether it was told."""
        data = pickle.dumps(settings)
        self._control.settimeout(_ORDER_TIMEOUT_S)
        try:
            self._control.sendall(_LENGTH.pack(len(data)) + data)
        except OSError:
            return False
        finally:
            self._control.settimeout(0)
        return True

    def hear(self) -> None:
        """Take in what the worker has to say: that it is up, or why it cannot be."""
        try:
            said = self._control.recv(4096)
        except OSError:
            return
        if said == _IS_UP:
            self.is_up = True
        elif said:
            self.complaint = said.decode(errors="replace")

    def let_go(self) -> None:
        """Free what the arbiter holds of a worker that has ended."""
        service: Service = self.app
        service.controls.discard(self._control)
        self._control.close()
        self._orders.close()
        self.tmp.close()

    def init_process(self) -> None:
        """Become the worker's process."""
        service: Service = self.app
        for control in service.controls:
            # Held by the arbiter alone, so that their end is its end.
            control.close()
        self._signals = Signals()
        faulthandler.enable()
        super().init_process()

    def load_wsgi(self) -> None:
        """There is none."""

    def init_signals(self) -> None:
        """Listen to the arbiter's signals only."""
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        # A worker that is stuck is aborted, and `faulthandler` tells where it was.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Not the loop's: closing it would leave these their default, to kill, for the rest of the process's life.
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGQUIT, self._stop)

    def run(self) -> None:
        """Serve, and leave with the exit code; what keeps it from starting is told to the arbiter."""
        service: Service = self.app
        log = service.settings.log
        writer = LineWriter(sys.stdout.fileno(), service.ground.turn)
        configure(format_=log.format, level=log.level, redactor=service.redactor, writer=writer, worker=self.name)
        try:
            super().run()
        except OSError as exc:
            if self.booted:
                raise
            self._tell((exc.strerror or str(exc)).encode()[:1000])
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        finally:
            for number in (signal.SIGTERM, signal.SIGQUIT):
                signal.signal(number, signal.SIG_IGN)
            writer.close()

    async def _run(self) -> None:
        service: Service = self.app
        ground = service.ground
        self._orders.setblocking(False)  # noqa: FBT003 - the standard library's signature
        server = Server(
            service.settings,
            service.redactor,
            Place(self.name, ground.directory, ground.listen, ground.admin_listen),
        )
        beating = asyncio.create_task(self._beat())
        obeying: asyncio.Task[None] | None = None
        try:
            await server.open()
            gc.collect()
            gc.freeze()
            self.booted = True
            structlog.get_logger().info("worker.started", pid=os.getpid())
            self._tell(_IS_UP)
            obeying = asyncio.create_task(self._obey_orders(server))
            await self._signals.stop.wait()
            obeying.cancel()
            await drain(self._signals, server)
            await server.close()
            if self._is_orphan and not any(ground.directory.glob("*.sock")):
                # Nobody else is left to do it.
                ground.remove()
        finally:
            for task in (beating, obeying):
                if task is not None:
                    task.cancel()

    def _stop(self, number: int, _frame: object) -> None:
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self._signals.stop.set)
        if number == signal.SIGQUIT:
            self.loop.call_soon_threadsafe(self._signals.hurry.set)

    def _tell(self, what: bytes) -> None:
        try:
            self._orders.send(what)
            # The arbiter sleeps until a signal: this one has it look at its workers, and nothing else.
            os.kill(self.ppid, signal.SIGCHLD)
        except OSError:
            # It is gone, which the end of the orders says too.
            return

    async def _beat(self) -> None:
        while True:
            self.notify()
            await asyncio.sleep(BEAT_S)

    async def _obey_orders(self, server: Server) -> None:
        reader, writer = await asyncio.open_connection(sock=self._orders)
        try:
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                settings = pickle.loads(await reader.readexactly(length))  # noqa: S301 - of our own arbiter, by a socket that nobody else has
                try:
                    await server.reload(settings)
                except OSError as exc:
                    log_refused(exc)
        except (asyncio.IncompleteReadError, OSError):
            structlog.get_logger().warning("arbiter.lost")
            self._is_orphan = True
            self._signals.stop.set()
        finally:
            writer.transport.abort()
