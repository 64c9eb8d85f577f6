"""What a generation takes over, and what it makes anew."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from proxy.server.workers.socket_handoff import VARIABLE, SharedSockets
from proxy.settings.loading import load

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.settings import Settings


def settings(tmp_path: Path, listen: str = "127.0.0.1:0", admin_listen: str = "127.0.0.1:0") -> Settings:
    path = tmp_path / "proxy.yaml"
    path.write_text(
        f"listen: {listen}\nadmin_listen: {admin_listen}\nauth: none\n"
        "upstreams: {main: {url: 'http://127.0.0.1:1', dialect: openai, api_key: none}}\n"
    )
    return load(path, {}, {})


def names(ground: SharedSockets) -> list[tuple[str, int]]:
    return [sock.getsockname() for sock in (*ground.listen, *ground.admin_listen)]


def leave(*grounds: SharedSockets) -> None:
    for ground in grounds:
        ground.stop_listening()
        ground.remove()


def handed(ground: SharedSockets) -> dict[str, str]:
    """The environment of a successor, with descriptors of its own as after a fork."""
    value = ground.hand_over()
    for sock in (*ground.listen, *ground.admin_listen):
        assert sock.get_inheritable()
        value = value.replace(f"[{sock.fileno()}]", f"[{os.dup(sock.fileno())}]")
    return {VARIABLE: value}


def test_prepare_from_nothing(tmp_path: Path) -> None:
    """Both listeners listen, nothing of it passes an `exec` by itself, and the directory is nobody else's."""
    ground = SharedSockets.prepare(settings(tmp_path), {"RUNTIME_DIRECTORY": f"/nowhere:{tmp_path}"})
    with socket.create_connection(names(ground)[0]), socket.create_connection(names(ground)[1]):
        pass
    assert not any(sock.get_inheritable() for sock in (*ground.listen, *ground.admin_listen))
    assert ground.directory.stat().st_mode & 0o777 == 0o700
    directory = ground.directory
    leave(ground)
    assert not directory.exists()


def test_secret_is_handed_over(tmp_path: Path) -> None:
    """What seals the console's sessions is random, its owner's alone, and the same in the next generation."""
    first, other = (SharedSockets.prepare(settings(tmp_path), {}) for _ in range(2))
    second = SharedSockets.prepare(settings(tmp_path), handed(first))
    assert first.secret == second.secret != other.secret
    assert len(first.secret) == 32
    assert (first.directory / "sessions.key").stat().st_mode & 0o777 == 0o600
    assert repr(first.secret) not in repr(first)
    (first.directory / "sessions.key").write_bytes(b"half")
    with pytest.raises(OSError, match="is not whole"):
        SharedSockets.prepare(settings(tmp_path), handed(first))
    leave(first, second, other)


def test_prepare_without_admin_listener(tmp_path: Path) -> None:
    """`off` is no listener."""
    ground = SharedSockets.prepare(settings(tmp_path, admin_listen="'off'"), {})
    assert ground.admin_listen == ()
    leave(ground)


def test_take_over(tmp_path: Path) -> None:
    """A successor listens on the same sockets, also where the system chose the port, and meets in the same place."""
    first = SharedSockets.prepare(settings(tmp_path), {})
    second = SharedSockets.prepare(settings(tmp_path), handed(first))
    assert names(second) == names(first)
    assert second.directory == first.directory
    first.stop_listening()
    with socket.create_connection(names(second)[0]):
        pass
    leave(second)


def test_take_over_with_another_address(tmp_path: Path) -> None:
    """An address that changed is listened on anew, one that is gone is not listened on; the other is taken over."""
    first = SharedSockets.prepare(settings(tmp_path), {})
    second = SharedSockets.prepare(settings(tmp_path, listen="localhost:0", admin_listen="'off'"), handed(first))
    third = SharedSockets.prepare(settings(tmp_path, listen="localhost:0"), handed(first))
    assert names(second)[0] != names(first)[0]
    assert second.admin_listen == ()
    assert third.admin_listen[0].getsockname() == first.admin_listen[0].getsockname()
    leave(first, second, third)


def test_take_over_of_several(tmp_path: Path) -> None:
    """Of a list each address is taken over by itself, in the new file's order; what is new is listened on."""
    first = SharedSockets.prepare(settings(tmp_path, listen='["127.0.0.1:0", "127.0.0.2:0"]'), {})
    second = SharedSockets.prepare(
        settings(tmp_path, listen='["127.0.0.3:0", "127.0.0.2:0", "127.0.0.1:0"]'), handed(first)
    )
    assert [name[0] for name in names(second)] == ["127.0.0.3", "127.0.0.2", "127.0.0.1", "127.0.0.1"]
    assert names(second)[1:] == [*reversed(names(first)[:2]), names(first)[2]]
    third = SharedSockets.prepare(settings(tmp_path, listen="127.0.0.2:0"), handed(second))
    assert names(third) == [names(first)[1], names(first)[2]]
    leave(first, second, third)


def test_port_in_use(tmp_path: Path) -> None:
    """The fault names the address, and nothing is left: no socket, no directory."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        runtime = tmp_path / "run"
        runtime.mkdir()
        with pytest.raises(OSError, match="cannot listen on") as caught:
            SharedSockets.prepare(settings(tmp_path, admin_listen=where), {"RUNTIME_DIRECTORY": str(runtime)})
    assert where in str(caught.value)
    assert list(runtime.iterdir()) == []
