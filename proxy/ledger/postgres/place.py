"""The spool's directory on the node, and the files in it: the spool, the shipper's lock, and its socket."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from proxy.ledger.file import LedgerFile

if TYPE_CHECKING:
    from collections.abc import Iterator

# What every system takes as a socket's path, its last byte included (macOS 104, Linux 108).
_MAX_SOCKET_BYTES: Final = 103
_DESCRIPTORS: Final = Path("/proc/self/fd")


class SpoolPlace:
    """A directory that all workers of a service share on a node, and nobody else."""

    def __init__(self, directory: Path) -> None:
        # Absolute: the shipper need not have our working directory.
        self.directory = directory.absolute()
        self.lock = self.directory / "ship.lock"
        self._socket = self.directory / "ship.sock"

    def file(self) -> LedgerFile:
        """The spool itself."""
        return LedgerFile(self.directory / "spool.db", has_totals=False)

    def create(self) -> None:
        """Create the directory, for its owner only, unless it is there.

        Raises:
            OSError: it cannot be used; the text names the setting.
        """
        self.check()
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as exc:
            raise OSError(exc.errno, f"usage.spool: {self.directory}: {exc.strerror}") from exc

    def check(self) -> None:
        """Find out, without changing anything, whether the directory can be used, or created.

        Raises:
            OSError: as `create`.
        """
        directory = self.directory if self.directory.exists() else self.directory.parent
        if not directory.is_dir():
            raise OSError(f"usage.spool: {self.directory}: there is no directory {directory}")
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise OSError(f"usage.spool: {self.directory}: the directory {directory} cannot be written")
        if not _DESCRIPTORS.is_dir() and len(os.fsencode(self._socket)) > _MAX_SOCKET_BYTES:
            raise OSError(f"usage.spool: {self.directory}: is too long for a socket's path")
        if self.directory.exists():
            self.file().check()

    @contextlib.contextmanager
    def socket_path(self) -> Iterator[str]:
        """The path of the shipper's socket, short enough for the system as long as this is not left.

        Raises:
            OSError: the directory is gone.
        """
        if len(os.fsencode(self._socket)) <= _MAX_SOCKET_BYTES:
            yield str(self._socket)
            return
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield str(_DESCRIPTORS / str(descriptor) / self._socket.name)
        finally:
            os.close(descriptor)
