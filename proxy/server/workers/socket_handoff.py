"""What one generation of processes hands to the next: the sockets that listen, and the directory where workers meet.

The next generation is another program started by this one (`exec`), so all of it goes through descriptors that stay
open and one variable of the environment.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import orjson

from proxy.auth.operators import SECRET_BYTES
from proxy.server.sockets import listening

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.settings import Address, Settings

VARIABLE = "SSE_PROXY_HANDOVER"
_CLIENTS, _OPERATORS = "listen", "admin_listen"
_SEAL_KEY = "sessions.key"
_Key: TypeAlias = "tuple[str, str]"
# Of 108 bytes for the path of a socket in the system's interface; the names are short.
_MAX_PATH = 70


@dataclass(frozen=True, slots=True)
class SharedSockets:
    """The sockets and the directory that all workers share. Descriptors are closed on `exec` unless handed over."""

    directory: Path
    # By role and by the address in the file, which may be a name of several addresses.
    sockets: dict[_Key, tuple[socket.socket, ...]]
    # Seals the console's sessions. In a file of the directory, so that the next generation has it, too.
    secret: bytes = field(repr=False)

    @classmethod
    def prepare(cls, settings: Settings, environ: Mapping[str, str]) -> SharedSockets:
        """Take over the sockets that a predecessor names in the environment, and make those that are missing.

        A listener is taken over where its address is the same in the file; another address is listened on anew.

        Raises:
            OSError: an address cannot be listened on, or there is no place for the directory.
        """
        inherited_state = orjson.loads(environ.get(VARIABLE, "{}"))
        left: dict[_Key, list[int]] = {
            (role, address): fds for role, address, fds in inherited_state.get("listeners", ())
        }
        directory = Path(inherited_state["directory"]) if inherited_state else _new_directory(environ)
        wanted = _addresses(settings)
        taken: dict[_Key, tuple[socket.socket, ...]] = {}
        try:
            for key, descriptors in left.items():
                inherited = tuple(socket.socket(fileno=descriptor) for descriptor in descriptors)
                if key in wanted:
                    taken[key] = inherited
                    continue
                for sock in inherited:
                    sock.close()
            for key, address in wanted.items():
                if key not in taken:
                    taken[key] = tuple(listening(address.host, address.port))
            for sock in (sock for sockets in taken.values() for sock in sockets):
                sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
                sock.set_inheritable(False)
            secret = _secret_in(directory)
        except BaseException:
            for sock in (sock for sockets in taken.values() for sock in sockets):
                sock.close()
            if not inherited_state:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        # In the file's order, whoever made them.
        return cls(directory, {key: taken[key] for key in wanted}, secret)

    @property
    def listen(self) -> tuple[socket.socket, ...]:
        """The sockets for clients, in the order of the file's addresses."""
        return self._of(_CLIENTS)

    @property
    def admin_listen(self) -> tuple[socket.socket, ...]:
        """The sockets for operators."""
        return self._of(_OPERATORS)

    def _of(self, role: str) -> tuple[socket.socket, ...]:
        return tuple(sock for key, sockets in self.sockets.items() if key[0] == role for sock in sockets)

    def hand_over(self) -> str:
        """Keep the sockets open over an `exec`, and give the variable's value; called by the process that does it."""
        listeners: list[tuple[str, str, list[int]]] = []
        for (role, address), sockets in self.sockets.items():
            for sock in sockets:
                sock.set_inheritable(True)
            listeners.append((role, address, [sock.fileno() for sock in sockets]))
        return orjson.dumps({"directory": str(self.directory), "listeners": listeners}).decode()

    def stop_listening(self) -> None:
        """Close this process's sockets."""
        for sock in (*self.listen, *self.admin_listen):
            sock.close()

    def remove(self) -> None:
        """Remove the directory; called by the last generation."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _addresses(settings: Settings) -> dict[_Key, Address]:
    """Every address to listen on, by what it is for and how it is written."""
    addresses = {(_CLIENTS, str(address)): address for address in settings.listen}
    if settings.admin_listen is not None:
        addresses[_OPERATORS, str(settings.admin_listen)] = settings.admin_listen
    return addresses


def _secret_in(directory: Path) -> bytes:
    """The secret of the service, made where there is none yet; the directory is its owner's alone.

    Raises:
        OSError: it cannot be written or read.
    """
    path = directory / _SEAL_KEY
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        secret = path.read_bytes()
        if len(secret) != SECRET_BYTES:
            raise OSError(f"{path} is not whole") from None
        return secret
    secret = os.urandom(SECRET_BYTES)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
    return secret


def _new_directory(environ: Mapping[str, str]) -> Path:
    # systemd's own for the service, else memory, else wherever temporary files go.
    candidates = [*environ.get("RUNTIME_DIRECTORY", "").split(":"), "/dev/shm", tempfile.gettempdir(), "/tmp"]  # noqa: S108 - mkdtemp makes the directory, private and new
    for parent in candidates:
        if parent and len(parent) <= _MAX_PATH and os.access(parent, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="forward-sse-", dir=parent))
    raise OSError("no directory for the workers' sockets: set RUNTIME_DIRECTORY to one that can be written")
