"""The arbiter: the process that keeps the workers, and has one answer to each signal for all of them.

gunicorn's arbiter makes workers, watches over them and knows how to be succeeded. Different here, and why:

1. SIGHUP reloads within the workers, because streams run for minutes and gunicorn would replace every worker. The file
   is read and judged once, by the arbiter; the workers are handed what it read.
2. SIGTERM and SIGINT both drain; a second one hurries. gunicorn's SIGINT cuts.
3. SIGUSR2 hands over by itself: when the new generation serves, it has the old one drain. In gunicorn an operator does.
4. A worker that cannot start ends the service only while the service has never been up. Later it is tried again, ever
   less often: those that run are worth more than one that does not.
5. A worker is taken for stuck only when it is so for several looks: a machine that has slept is no fault of its.
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
from gunicorn.errors import HaltServer

from proxy import __version__
from proxy.app import trust
from proxy.observability.logging import Redactor, configure
from proxy.server.signals import log_refused, warn_of_ignored_proxies
from proxy.server.sockets import show_all
from proxy.server.workers.arbiter_log import ArbiterLog, DirectWriter
from proxy.server.workers.gunicorn_app import STUCK_S, Service
from proxy.server.workers.socket_handoff import VARIABLE, SharedSockets
from proxy.server.workers.worker import Worker
from proxy.settings.build import secrets_of
from proxy.settings.loading import ConfigurationError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from proxy.settings import Settings

EXIT_FAILED = 1
# Beyond the drain: for workers to say goodbye, after that they are killed.
PARTING_S = 5.0
_PATIENT_LOOKS = 5
# A worker that lived shorter than this has not worked; its place is filled after a pause that doubles each time.
_SHORT_LIFE_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_PREDECESSOR = "GUNICORN_PID"


def run(settings: Settings, load: Callable[[], Settings]) -> int:
    """Serve with several workers until a signal ends it, and give the exit code. `load` reads the file again."""
    redactor = Redactor(secrets_of(settings))
    try:
        trust(settings)
        ground = SharedSockets.prepare(settings, os.environ)
    except OSError as exc:
        sys.stderr.write(f"forward-sse: cannot start: {exc.strerror or exc}\n")
        return EXIT_FAILED
    os.environ.pop(VARIABLE, None)
    writer = DirectWriter(sys.stdout.fileno(), ground.turn)
    configure(format_=settings.log.format, level=settings.log.level, redactor=redactor, writer=writer)
    arbiter = Arbiter(Service(settings, load, redactor, ground))
    pid = os.getpid()
    # What was imported is never collected: so no worker's collector touches, and thereby copies, the pages they share.
    gc.collect()
    gc.freeze()
    try:
        arbiter.run()
    except SystemExit as exc:
        if os.getpid() != pid:
            # A worker's process, which ends here.
            raise
        if arbiter.is_last:
            ground.remove()
        return EXIT_FAILED if exc.code else 0
    return 0


class Arbiter(gunicorn.Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """Keeps a service's workers. `run` leaves by `SystemExit`, in the arbiter's process and in each worker's."""

    app: Service

    def __init__(self, app: Service) -> None:
        self.WORKERS: dict[int, Worker] = {}
        self._has_started = False
        self._is_stopping = False
        self._born_s: dict[int, float] = {}
        self._pause_s = 0.0
        self._not_before_s = 0.0
        self._looks: dict[int, int] = {}
        super().__init__(app)

    @property
    def is_last(self) -> bool:
        """Whether no other generation needs what the workers share."""
        return self.reexec_pid == 0 and (self.master_pid == 0 or os.getppid() != self.master_pid)

    def setup(self, app: Service) -> None:
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
        """Begin to listen to signals; the sockets are there."""
        self.pid = os.getpid()
        self.master_pid = int(os.environ.get(_PREDECESSOR, "0"))
        self.init_signals()

    def spawn_workers(self) -> None:
        """Fill the empty places, unless the last that did so failed just now."""
        if time.monotonic() < self._not_before_s:
            return
        for _ in range(self.num_workers - len(self.WORKERS)):
            self.spawn_worker()

    def spawn_worker(self) -> int:
        """Make a worker, in the first place that is empty: it goes on counting where the last one there ended."""
        taken = {worker.place for worker in self.WORKERS.values()}
        self.app.place = next(place for place in range(len(taken) + 1) if place not in taken)
        pid: int = super().spawn_worker()
        self._born_s[pid] = time.monotonic()
        return pid

    def handle_chld(self) -> None:
        """Bury who died, and hear who came up."""
        self.reap_workers()
        for worker in self.WORKERS.values():
            worker.hear()
        if not self._has_started and self._is_complete():
            self._has_started = True
            self._announce()

    handle_cld = handle_chld

    def handle_hup(self) -> None:
        """Read the file; a faulty one changes nothing, a good one goes to every worker."""
        settings = self._read()
        if settings is None:
            return
        self.app.redactor.learn(secrets_of(settings))
        self.app.renew(settings)
        for pid, worker in self.WORKERS.items():
            if not worker.order(settings):
                # It does not listen; who comes in its place will know.
                structlog.get_logger().error("worker.not_reloaded", worker=worker.name, pid=pid)
                self.kill_worker(pid, signal.SIGTERM)

    def handle_int(self) -> None:
        """Drain, as for SIGTERM."""
        raise StopIteration

    handle_quit = handle_int

    def handle_usr1(self) -> None:
        """There are no log files to open anew."""

    def handle_usr2(self) -> None:
        """Start the next generation beside this one, unless its configuration is faulty."""
        why = None
        if self.reexec_pid or self.master_pid:
            why = "another upgrade is under way"
        elif os.getpid() == 1:
            why = "the first process of a container cannot be succeeded"
        if why is not None:
            structlog.get_logger().error("upgrade.refused", reason=why)
        elif self._read() is not None:
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
                VARIABLE: self.app.ground.hand_over(),
            }
            os.chdir(self.START_CTX["cwd"])
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606 - the command that started this process
        finally:
            os._exit(127)

    def stop(self, graceful: bool = True) -> None:  # noqa: FBT002 - gunicorn's signature
        """Have every worker drain, hurry them at another signal, and kill who is left when the time is over."""
        self._is_stopping = True
        self.app.ground.stop_listening()
        drain_s = self.app.settings.drain_timeout_s or 0.0
        limit_s = time.monotonic() + (drain_s if graceful else 0.0) + PARTING_S
        number = signal.SIGTERM if graceful else signal.SIGQUIT
        while self.WORKERS and time.monotonic() < limit_s:
            # Again and again, for one that was just being born did not hear it.
            self.kill_workers(number)
            for heard in self._signals_within(1.0):
                if heard in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT} and number != signal.SIGQUIT:
                    number = signal.SIGQUIT
                    limit_s = min(limit_s, time.monotonic() + PARTING_S)
            self.reap_workers()
        for pid in self.WORKERS:
            structlog.get_logger().error("worker.killed", worker=self.WORKERS[pid].name, pid=pid)
        self.kill_workers(signal.SIGKILL)
        while self.WORKERS:
            self.reap_workers()
            time.sleep(0.01)
        structlog.get_logger().info("server.stopped")

    def reap_workers(self) -> None:
        """Bury every child that has ended."""
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
                    self._bury(pid, code)

    def murder_workers(self) -> None:
        """Abort who shows no sign of life, kill who does not even die of that."""
        for pid, worker in self.WORKERS.items():
            if time.monotonic() - worker.tmp.last_update() <= STUCK_S:
                self._looks.pop(pid, None)
                continue
            looks = self._looks[pid] = self._looks.get(pid, 0) + 1
            if looks < _PATIENT_LOOKS:
                continue
            structlog.get_logger().error("worker.stuck", worker=worker.name, pid=pid)
            self.kill_worker(pid, signal.SIGKILL if worker.aborted else signal.SIGABRT)
            worker.aborted = True

    def _is_complete(self) -> bool:
        return len(self.WORKERS) == self.num_workers and all(worker.is_up for worker in self.WORKERS.values())

    def _announce(self) -> None:
        settings, ground = self.app.settings, self.app.ground
        predecessor = self.master_pid if os.getppid() == self.master_pid else 0
        structlog.get_logger().info(
            "server.started",
            version=__version__,
            listen=_shown(ground.listen),
            admin_listen=_shown(ground.admin_listen),
            auth="none" if settings.auth is None else "required",
            workers=self.num_workers,
            pid=self.pid,
            **({"after": predecessor} if predecessor else {}),
        )
        warn_of_ignored_proxies(os.environ)
        systemd.sd_notify(f"READY=1\nMAINPID={self.pid}", self.log)
        if predecessor:
            os.kill(predecessor, signal.SIGTERM)

    def _read(self) -> Settings | None:
        try:
            settings = self.app.load_settings()
            trust(settings)
        except (ConfigurationError, OSError) as exc:
            log_refused(exc)
            return None
        return settings

    def _bury(self, pid: int, code: int) -> None:
        worker = self.WORKERS.pop(pid)
        worker.hear()
        worker.let_go()
        self._looks.pop(pid, None)
        lived_s = time.monotonic() - self._born_s.pop(pid)
        if self._is_stopping:
            if code:
                structlog.get_logger().error("worker.ended", worker=worker.name, pid=pid, exit_code=code)
            return
        reason = worker.complaint
        if not self._has_started:
            sys.stderr.write(f"forward-sse: cannot start: {reason or f'a worker ended with {code} at its start'}\n")
            raise HaltServer("no start", EXIT_FAILED)
        if lived_s < _SHORT_LIFE_S:
            self._pause_s = min(_LONGEST_PAUSE_S, self._pause_s * 2 or _FIRST_PAUSE_S)
            self._not_before_s = time.monotonic() + self._pause_s
        else:
            self._pause_s = 0.0
        log: Any = structlog.get_logger().error if code else structlog.get_logger().info
        fields = {"reason": reason} if reason else {}
        log("worker.ended", worker=worker.name, pid=pid, exit_code=code, pause_s=self._pause_s, **fields)

    def _signals_within(self, timeout_s: float) -> list[int]:
        with contextlib.suppress(queue.Empty):
            return [self.SIG_QUEUE.get(timeout=timeout_s)]
        return []


def _shown(sockets: tuple[socket.socket, ...]) -> str | None:
    return show_all(sock.getsockname()[:2] for sock in sockets)
