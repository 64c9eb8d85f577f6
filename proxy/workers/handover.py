"""What one generation of processes hands to the next: the sockets that listen, and the directory where workers meet.

The next generation is another program started by this one (`exec`), so all of it goes through descriptors that stay
open and one variable of the environment.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from proxy.server.sockets import answer_no_more, listening

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.settings import Address, Settings

VARIABLE = "SSE_PROXY_HANDOVER"
# Of 108 bytes for the path of a socket in the system's interface; the names are short.
_MAX_PATH = 70


@dataclass(frozen=True, slots=True)
class Ground:
    """What the workers of a service share. Descriptors are closed on `exec` unless handed over."""

    directory: Path
    listen: tuple[socket.socket, ...]
    admin_listen: tuple[socket.socket, ...]
    # A file whose lock the processes take in turns to write to the log.
    turn: int

    @classmethod
    def prepare(cls, settings: Settings, environ: Mapping[str, str]) -> Ground:
        """Take over what a predecessor left in the environment, and make what is missing.

        A listener is taken over where its address is the same in the file; another address is listened on anew.

        Raises:
            OSError: an address cannot be listened on, or there is no place for the directory.
        """
        heritage = orjson.loads(environ.get(VARIABLE, "{}"))
        left = {role: (address, fds) for role, (address, fds) in heritage.get("listeners", {}).items()}
        directory = Path(heritage["directory"]) if heritage else _new_directory(environ)
        taken: dict[str, tuple[socket.socket, ...]] = {}
        try:
            for role, address in _addresses(settings).items():
                old_address, descriptors = left.pop(role, (None, []))
                inherited = tuple(socket.socket(fileno=descriptor) for descriptor in descriptors)
                if old_address == str(address):
                    taken[role] = inherited
                    continue
                for sock in inherited:
                    sock.close()
                taken[role] = () if address is None else tuple(listening(address.host, address.port))
            for sock in (sock for sockets in taken.values() for sock in sockets):
                sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
                sock.set_inheritable(False)
            turn = os.open(directory / "log.turn", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except BaseException:
            for sock in (sock for sockets in taken.values() for sock in sockets):
                sock.close()
            if not heritage:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        return cls(directory, taken["listen"], taken["admin_listen"], turn)

    def hand_over(self, settings: Settings) -> str:
        """Keep the sockets open over an `exec`, and give the variable's value; called by the process that does it."""
        listeners: dict[str, tuple[str, list[int]]] = {}
        for role, address in _addresses(settings).items():
            sockets = self.listen if role == "listen" else self.admin_listen
            for sock in sockets:
                sock.set_inheritable(True)
            listeners[role] = str(address), [sock.fileno() for sock in sockets]
        return orjson.dumps({"directory": str(self.directory), "listeners": listeners}).decode()

    def stop_listening(self, *, for_good: bool) -> None:
        """Close this process's sockets. For good: nobody else listens on, and no one who connects now is to be lost."""
        for sock in self.listen if for_good else ():
            answer_no_more(sock)
        for sock in (*self.listen, *self.admin_listen):
            sock.close()

    def remove(self) -> None:
        """Remove the directory; for the last generation."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _addresses(settings: Settings) -> dict[str, Address | None]:
    return {"listen": settings.listen, "admin_listen": settings.admin_listen}


def _new_directory(environ: Mapping[str, str]) -> Path:
    # systemd's own for the service, else memory, else wherever temporary files go.
    wishes = [*environ.get("RUNTIME_DIRECTORY", "").split(":"), "/dev/shm", tempfile.gettempdir(), "/tmp"]  # noqa: S108 - mkdtemp makes the directory, private and new
    for parent in wishes:
        if parent and len(parent) <= _MAX_PATH and os.access(parent, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="forward-sse-", dir=parent))
    raise OSError("no directory for the workers' sockets: set RUNTIME_DIRECTORY to one that can be written")
