"""A real PostgreSQL server for the tests, which can be stopped, made to hang, and killed."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from tests.needs import skip_or_fail

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 30.0
PASSWORD = "a-password-of-the-tests"
USER = "shipper"
DATABASE = "ledger"
# What a test's server need not do: it loses everything with its directory.
_FAST = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}


def programs() -> Path:
    """Return the directory of the server's programs: of the newest of Debian's, else of `initdb` on the PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    found = debian[-1] if debian else shutil.which("initdb")
    if found is None:
        skip_or_fail("initdb (PostgreSQL's server) is neither in /usr/lib/postgresql/*/bin nor on the PATH")
    return Path(found).resolve().parent


def _unprivileged() -> dict[str, Any]:
    """Options of a subprocess: the server refuses to run as root."""
    if os.geteuid():
        return {}
    entry = pwd.getpwnam("nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": ()}


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class PostgresServer:
    """A server of the test's own on a port of 127.0.0.1, with passwords; its data is gone with `close`.

    Attributes:
        url: Of an empty database, as a user who owns it, and is no superuser.
    """

    def __init__(self) -> None:
        self._programs = programs()
        self._room = tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True)
        self._data = Path(self._room.name, "data")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.url = self.url_of(DATABASE)
        if os.geteuid() == 0:
            entry = pwd.getpwnam("nobody")
            os.chown(self._room.name, entry.pw_uid, entry.pw_gid)
        secret = Path(self._room.name, "password")
        secret.write_text(PASSWORD)
        secret.chmod(0o644)  # for nobody; the directory is nobody else's
        self._run(
            "initdb", f"--pgdata={self._data}", "--no-sync", "--auth=scram-sha-256", f"--pwfile={secret}", "-Upostgres"
        )

    def url_of(self, database: str, *, user: str = USER, password: str = PASSWORD, port: int | None = None) -> str:
        """The URL of one of its databases."""
        return f"postgresql://{user}:{password}@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Begin, and wait until it answers; the first time, make the user and the database."""
        options = [f"-c{name}={value}" for name, value in _FAST.items()]
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", self._data, "-h127.0.0.1", f"-p{self.port}", "-k", "", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **_unprivileged(),
        )
        until_s = time.monotonic() + WAIT_S
        while True:
            try:
                known = self.admin("SELECT 1 FROM pg_database WHERE datname = %s", DATABASE)
                break
            except psycopg.OperationalError:
                # It says nothing when it is ready, and a client is what must be let in.
                assert time.monotonic() < until_s
                time.sleep(0.05)
        if not known:
            self.admin(f"CREATE USER {USER} PASSWORD '{PASSWORD}'")
            self.create_database(DATABASE)

    def create_database(self, name: str) -> str:
        """Make another empty database, and return its URL."""
        self.admin(f"CREATE DATABASE {name} OWNER {USER}")
        return self.url_of(name)

    def admin(self, statement: str, *values: Any, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Do as the superuser."""
        return ask(self.url_of(database, user="postgres"), statement, *values)

    def ask(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Do in the ledger's database, as its owner."""
        return ask(self.url, statement, *values)

    def kill(self) -> None:
        """End it as a crash would: every process of it."""
        if self._process is None:
            return
        self._signal(signal.SIGKILL, self._pids())
        self._process.wait()
        self._process = None
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """Let it hang: connections are accepted by the kernel, nothing is answered."""
        self._signal(signal.SIGSTOP, self._pids())

    def go_on(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT, self._pids())

    def close(self) -> None:
        """End it, and remove what it had."""
        self.kill()
        self._room.cleanup()

    def _signal(self, number: signal.Signals, pids: list[int]) -> None:
        for pid in pids:
            # A connection's process may have ended meanwhile.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _pids(self) -> list[int]:
        """Its processes: the server's and those of its connections."""
        assert self._process is not None
        pids = [self._process.pid]
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pids[0])], capture_output=True, check=False)
        return [*pids, *map(int, listed.stdout.split())]

    def _run(self, program: str, *options: str) -> None:
        subprocess.run(
            [self._programs / program, *options], check=True, capture_output=True, cwd="/", **_unprivileged()
        )


@contextlib.contextmanager
def started() -> Iterator[PostgresServer]:
    """A server that runs, for as long as the block."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


def ask(url: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run one statement on a connection of its own, and return its rows."""
    with psycopg.connect(url, connect_timeout=5, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []
