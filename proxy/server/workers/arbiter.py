"""The arbiter: the process that starts, watches and stops the workers, and handles the service's signals.

It is gunicorn's arbiter, with these differences:

1. SIGHUP reloads within the workers, because streams run for minutes and gunicorn would replace every worker. The
   arbiter validates the file first, so a faulty one is logged once; then each worker reads it again.
2. SIGTERM and SIGINT both drain; a second one ends the streams. gunicorn's SIGINT ends them at once.
3. SIGUSR2 completes an upgrade: when the next generation serves, it sends SIGTERM to this one. With gunicorn, the
   operator does.
4. A worker that cannot start ends the service only while the service has never been up. Later another one is started
   after a pause, because the running workers still serve.
5. Workers are not taken for stuck after a pause of the whole service (a frozen container, a stopped job).
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import structlog
from gunicorn import arbiter as gunicorn
from gunicorn import systemd
from gunicorn.app.base import BaseApplication
from gunicorn.errors import HaltServer

from proxy import __version__
from proxy.observability.logging import Redactor, configure
from proxy.server.configuration import note_refused
from proxy.server.signals import log_egress_proxies, log_options, log_refused
from proxy.server.sockets import format_addresses
from proxy.server.workers.arbiter_log import ArbiterLog, DirectWriter
from proxy.server.workers.socket_handoff import VARIABLE, SharedSockets
from proxy.server.workers.worker import Worker
from proxy.settings.build import secrets_of
from proxy.settings.build_ways import trust
from proxy.settings.fixed import keep_fixed
from proxy.settings.ledgers import check_ledger
from proxy.settings.loading import ConfigurationError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from proxy.settings import Settings

EXIT_FAILED = 1
# After the drain's timeout, workers have this long to exit before they are killed.
EXIT_TIMEOUT_S = 5.0
# Between a worker that could not start and the next attempt.
_RETRY_S = 2.0
_PREDECESSOR = "GUNICORN_PID"
# A worker notifies the arbiter every second; without a notification for this long it is stuck.
STUCK_S = 60


def run(settings: Settings, load: Callable[[], Settings]) -> int:
    """Serve with several workers until a signal ends it, and return the exit code. `load` reads the file again."""
    redactor = Redactor(secrets_of(settings))
    try:
        trust(settings)
        check_ledger(settings)
        shared = SharedSockets.prepare(settings, os.environ)
    except OSError as exc:
        sys.stderr.write(f"forward-sse: cannot start: {exc.strerror or exc}\n")
        return EXIT_FAILED
    os.environ.pop(VARIABLE, None)
    writer = DirectWriter(sys.stdout.fileno())
    configure(redactor=redactor, writer=writer, **log_options(settings))
    arbiter = Arbiter(WorkerApplication(settings, load, redactor, shared))
    pid = os.getpid()
    # Imported objects are never collected: a worker's collector would write to, and so copy, memory that all share.
    gc.collect()
    gc.freeze()
    try:
        arbiter.run()
    except SystemExit as exc:
        if os.getpid() != pid:
            # A worker's process ends here.
            raise
        if arbiter.is_last:
            shared.remove()
        return EXIT_FAILED if exc.code else 0
    return 0


class WorkerApplication(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """The proxy as gunicorn's application. A worker inherits it by the fork, with the settings to serve."""

    def __init__(
        self, settings: Settings, load: Callable[[], Settings], redactor: Redactor, shared: SharedSockets
    ) -> None:
        self.settings = settings
        self.load_settings = load
        self.redactor = redactor
        self.shared = shared
        # The number of the worker that is started next, and the arbiter's end of each worker's control socket.
        self.next_number = 0
        self.controls: set[socket.socket] = set()
        super().__init__()

    def load_config(self) -> None:
        """Set the few options of gunicorn that are used."""
        self.cfg.set("workers", self.settings.workers)
        self.cfg.set("timeout", STUCK_S)
        self.cfg.set("worker_tmp_dir", str(self.shared.directory))
        # Another way to control the arbiter, which is not needed.
        self.cfg.set("control_socket_disable", True)  # noqa: FBT003 - gunicorn's signature

    def load(self) -> WorkerApplication:
        """Return this object: there is no WSGI application, each worker makes an aiohttp application."""
        return self

    def update_settings(self, settings: Settings) -> None:
        """Set what workers that start later serve; keys that need a restart keep their values."""
        self.settings = keep_fixed(settings, self.settings)


class Arbiter(gunicorn.Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """Starts and watches the workers. `run` ends by `SystemExit`, in the arbiter's process and in each worker's."""

    app: WorkerApplication

    def __init__(self, app: WorkerApplication) -> None:
        self.WORKERS: dict[int, Worker] = {}
        self._has_started = False
        self._is_stopping = False
        self._retry_at_s = 0.0
        self._checked_s = time.monotonic()
        super().__init__(app)

    @property
    def is_last(self) -> bool:
        """Whether no other generation uses the shared sockets and directory."""
        return self.reexec_pid == 0 and (self.master_pid == 0 or os.getppid() != self.master_pid)

    def setup(self, app: WorkerApplication) -> None:
        """Take gunicorn's configuration."""
        self.app = app
        self.cfg = app.cfg
        self.log = ArbiterLog()
        self.worker_class = Worker
        self.address: list[str] = []
        self.LISTENERS: list[socket.socket] = []
        self.num_workers = self.cfg.workers
        self.timeout = self.cfg.timeout
        self.proc_name = "forward-sse"

    def start(self) -> None:
        """Install the signal handlers; the sockets are already open."""
        self.pid = os.getpid()
        self.master_pid = int(os.environ.get(_PREDECESSOR, "0"))
        self.init_signals()

    def spawn_workers(self) -> None:
        """Start the missing workers, unless one has just failed to start."""
        if time.monotonic() < self._retry_at_s:
            return
        for _ in range(self.num_workers - len(self.WORKERS)):
            self.spawn_worker()

    def spawn_worker(self) -> int:
        """Start a worker with the first free number: it takes over the counters of the last one that had it."""
        taken = {worker.number for worker in self.WORKERS.values()}
        self.app.next_number = next(number for number in range(len(taken) + 1) if number not in taken)
        pid: int = super().spawn_worker()
        return pid

    def handle_chld(self) -> None:
        """Remove workers that have ended, and read the others' status."""
        self.reap_workers()
        for worker in self.WORKERS.values():
            worker.read_status()
        if not self._has_started and self._is_complete():
            self._has_started = True
            self._announce()

    handle_cld = handle_chld

    def handle_hup(self) -> None:
        """Validate the file, and have every worker read it again; a faulty file changes nothing."""
        settings = self._read_settings()
        if settings is None:
            return
        self.app.redactor.add_secrets(secrets_of(settings))
        self.app.update_settings(settings)
        for pid, worker in self.WORKERS.items():
            try:
                worker.send_reload()
            except OSError:
                # It does not read; the one that replaces it has the settings.
                structlog.get_logger().error("worker.not_reloaded", worker=worker.name, pid=pid)
                self.kill_worker(pid, signal.SIGTERM)

    def handle_int(self) -> None:
        """Drain, as for SIGTERM."""
        raise StopIteration

    handle_quit = handle_int

    def handle_usr1(self) -> None:
        """Do nothing: there are no log files to open again."""

    def handle_usr2(self) -> None:
        """Start the next generation beside this one, unless its configuration is faulty."""
        why = None
        if self.reexec_pid or self.master_pid:
            why = "another upgrade is under way"
        elif os.getpid() == 1:
            why = "the first process of a container cannot be succeeded"
        if why is not None:
            structlog.get_logger().error("upgrade.refused", reason=why)
        elif self._read_settings() is not None:
            self.reexec()

    def reexec(self) -> None:
        """Start this program again, as it is on disk now, with our sockets."""
        sys.stdout.flush()
        self.reexec_pid = os.fork()
        if self.reexec_pid:
            structlog.get_logger().info("upgrade.started", pid=self.reexec_pid)
            return
        try:
            environ = {
                **os.environ,
                _PREDECESSOR: str(self.pid),
                VARIABLE: self.app.shared.hand_over(),
            }
            os.chdir(self.START_CTX["cwd"])
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606 - the command that started this process
        finally:
            os._exit(127)

    def stop(self, graceful: bool = True) -> None:  # noqa: FBT002 - gunicorn's signature
        """Have every worker drain, end their streams at a second signal, and kill those left at the timeout."""
        self._is_stopping = True
        self.app.shared.stop_listening()
        settings = self.app.settings
        drain_s = (settings.drain_delay_s or 0.0) + (settings.drain_timeout_s or 0.0)
        limit_s = time.monotonic() + (drain_s if graceful else 0.0) + EXIT_TIMEOUT_S
        number = signal.SIGTERM if graceful else signal.SIGQUIT
        while self.WORKERS and time.monotonic() < limit_s:
            # Repeated: a worker that was just starting has not handled the first one.
            self.kill_workers(number)
            for received in self._signals_within(1.0):
                if received in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT} and number != signal.SIGQUIT:
                    number = signal.SIGQUIT
                    limit_s = min(limit_s, time.monotonic() + EXIT_TIMEOUT_S)
            self.reap_workers()
        for pid in self.WORKERS:
            structlog.get_logger().error("worker.killed", worker=self.WORKERS[pid].name, pid=pid)
        self.kill_workers(signal.SIGKILL)
        while self.WORKERS:
            self.reap_workers()
            time.sleep(0.01)
        structlog.get_logger().info("server.stopped")

    def reap_workers(self) -> None:
        """Remove every child that has ended."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                code = os.waitstatus_to_exitcode(status)
                if pid == self.reexec_pid:
                    self.reexec_pid = 0
                    if not self._is_stopping:
                        structlog.get_logger().error("upgrade.failed", pid=pid, exit_code=code)
                elif pid in self.WORKERS:
                    self._remove_worker(pid, code)

    def murder_workers(self) -> None:
        """Abort workers that have not notified for `STUCK_S`, and kill those that do not end by that."""
        checked_s, self._checked_s = self._checked_s, time.monotonic()
        if self._checked_s - checked_s > STUCK_S / 2:
            # The arbiter itself stood still, and its workers with it: they need a moment to notify.
            return
        for pid, worker in self.WORKERS.items():
            if self._checked_s - worker.tmp.last_update() <= STUCK_S:
                continue
            structlog.get_logger().error("worker.stuck", worker=worker.name, pid=pid)
            self.kill_worker(pid, signal.SIGKILL if worker.aborted else signal.SIGABRT)
            worker.aborted = True

    def _is_complete(self) -> bool:
        return len(self.WORKERS) == self.num_workers and all(worker.is_up for worker in self.WORKERS.values())

    def _announce(self) -> None:
        settings, shared = self.app.settings, self.app.shared
        predecessor = self.master_pid if os.getppid() == self.master_pid else 0
        structlog.get_logger().info(
            "server.started",
            version=__version__,
            listen=_shown(shared.listen),
            admin_listen=_shown(shared.admin_listen),
            auth="none" if settings.auth is None else "required",
            workers=self.num_workers,
            pid=self.pid,
            **({"after": predecessor} if predecessor else {}),
        )
        log_egress_proxies(settings)
        systemd.sd_notify(f"READY=1\nMAINPID={self.pid}", self.log)
        if predecessor:
            os.kill(predecessor, signal.SIGTERM)

    def _read_settings(self) -> Settings | None:
        try:
            settings = self.app.load_settings()
            trust(settings)
        except (ConfigurationError, OSError) as exc:
            note_refused(self.app.shared.directory, exc)
            log_refused(exc)
            return None
        return settings

    def _remove_worker(self, pid: int, code: int) -> None:
        worker = self.WORKERS.pop(pid)
        worker.read_status()
        worker.close()
        if self._is_stopping:
            if code:
                structlog.get_logger().error("worker.ended", worker=worker.name, pid=pid, exit_code=code)
            return
        reason = worker.failure
        if not self._has_started:
            sys.stderr.write(f"forward-sse: cannot start: {reason or f'a worker ended with {code} at its start'}\n")
            raise HaltServer("no start", EXIT_FAILED)
        pause_s = 0.0 if worker.is_up else _RETRY_S
        self._retry_at_s = time.monotonic() + pause_s
        log: Any = structlog.get_logger().error if code else structlog.get_logger().info
        fields = {"reason": reason} if reason else {}
        log("worker.ended", worker=worker.name, pid=pid, exit_code=code, pause_s=pause_s, **fields)

    def _signals_within(self, timeout_s: float) -> list[int]:
        with contextlib.suppress(queue.Empty):
            return [self.SIG_QUEUE.get(timeout=timeout_s)]
        return []


def _shown(sockets: tuple[socket.socket, ...]) -> str | None:
    return format_addresses(sock.getsockname()[:2] for sock in sockets)
