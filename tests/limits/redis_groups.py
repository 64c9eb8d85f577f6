"""Groups of real Redis servers for the tests: a primary with a replica and three sentinels, and a Cluster of three."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from proxy.limits.redis.accounts import UserAccount
from proxy.limits.redis.address import RedisAddress
from proxy.limits.redis.errors import StoreError
from tests.limits.redis_support import (
    ISSUER,
    WAIT_S,
    Process,
    control,
    free_ports,
    is_lease_key,
    is_own_key,
    server_binary,
)
from tests.needs import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.limits.redis_support import TLS

SERVICE = "limits"
# How long a node is away before the others say so.
DOWN_MS = 500
SLOTS = 16384


class Member(Process):
    """A server of a group, by its port."""

    def __init__(
        self,
        room: Path,
        port: int,
        *options: str,
        sentinel: str | None = None,
        password: str | None = None,
        tls: TLS | None = None,
    ) -> None:
        self.port = port
        self.address = RedisAddress(nodes=(("127.0.0.1", port),), password=password)
        listen = ["--port", str(port)]
        if tls is not None:
            self.address = tls.secure(self.address)
            listen = tls.serve(port)
        home = room / str(port)
        home.mkdir()
        command = [server_binary()]
        if sentinel is not None:
            # It writes what it learns into its own file.
            (home / "sentinel.conf").write_text(sentinel)
            command += [str(home / "sentinel.conf"), "--sentinel"]
        command += [*listen, "--bind", "127.0.0.1", "--dir", str(home), "--logfile", str(home / "log")]
        super().__init__([*command, *([] if sentinel is not None else ["--save", ""]), *options])

    async def start(self) -> None:
        """Begin, and wait until it answers."""
        self.spawn()
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(StoreError):
                    await self.ask("PING")
                    return
                await asyncio.sleep(0.01)

    async def ask(self, *words: bytes | str | int) -> Any:
        """Ask it something."""
        channel = await control(self.address)
        try:
            return await channel.ask(*words)
        finally:
            channel.abort("")

    async def role(self) -> str:
        """What it is: master or slave."""
        answer = await self.ask("ROLE")
        return str(answer[0].decode())


class Group(ABC):
    """Servers in a room of their own, closed together."""

    url: str
    address: RedisAddress

    def __init__(self) -> None:
        # Before anything that would have to be closed: it may skip the test.
        server_binary()
        self._room = tempfile.TemporaryDirectory(prefix="redis-")
        self.room = Path(self._room.name)
        self.members: list[Member] = []

    @abstractmethod
    async def start(self) -> None:
        """Begin, and wait until they know each other."""

    def close(self) -> None:
        """End them, and leave nothing of them."""
        for member in self.members:
            member.kill()
        self._room.cleanup()

    @abstractmethod
    async def primaries(self) -> Sequence[Member]:
        """Those that take writes now."""

    async def keys(self, pattern: str = "*") -> list[bytes]:
        """The keys there are, but for the stores' own."""
        found = [key for member in await self.primaries() for key in await member.ask("KEYS", pattern)]
        return sorted(key for key in found if not is_own_key(key))

    async def leases(self) -> int:
        """How many leases there are, over all users."""
        return sum(
            [
                await member.ask("ZCARD", key)
                for member in await self.primaries()
                for key in await member.ask("KEYS", "*:leases")
                if is_lease_key(key)
            ]
        )


_Group = TypeVar("_Group", bound=Group)


@asynccontextmanager
async def running(group: _Group) -> AsyncIterator[_Group]:
    """The group, started; ended also where it cannot start."""
    try:
        await group.start()
        yield group
    finally:
        group.close()


class SentinelGroup(Group):
    """One primary, one replica, three sentinels that fail over after half a second."""

    def __init__(self, *, password: str | None = None, tls: TLS | None = None) -> None:
        super().__init__()
        primary, replica, *sentinels = free_ports(5)
        options = ["--repl-diskless-sync-delay", "0"]
        self.servers = [
            Member(self.room, primary, *options, tls=tls),
            Member(self.room, replica, "--replicaof", "127.0.0.1", str(primary), *options, tls=tls),
        ]
        watched = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_MS}\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )
        if password is not None:
            watched += f"requirepass {password}\nsentinel sentinel-pass {password}\n"
        self.sentinels = [Member(self.room, port, sentinel=watched, password=password, tls=tls) for port in sentinels]
        self.members = [*self.servers, *self.sentinels]
        hosts = ",".join(f"127.0.0.1:{port}" for port in sentinels)
        self.url = f"redis+sentinel://{hosts}/{SERVICE}"
        nodes = tuple(("127.0.0.1", port) for port in sentinels)
        self.address = RedisAddress(kind="sentinel", nodes=nodes, service=SERVICE)
        if tls is not None:
            self.url = f"rediss+sentinel://{hosts}/{SERVICE}{tls.query()}"
            self.address = tls.secure(self.address)

    async def start(self) -> None:
        """Begin, and wait until the replica follows, and the sentinels know it and each other."""
        for member in self.members:
            await member.start()
        await self.is_whole()

    async def is_whole(self) -> None:
        """Wait until there is a replica that follows, and every sentinel knows it and the other sentinels."""
        async with asyncio.timeout(WAIT_S):
            while not await self._is_whole():  # noqa: ASYNC110 - it is they who must be asked
                await asyncio.sleep(0.05)

    async def primary(self) -> Member:
        """The server that the sentinels name."""
        for sentinel in self.sentinels:
            with contextlib.suppress(StoreError):
                _, port = await sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                return next(server for server in self.servers if server.port == int(port))
        raise AssertionError("no sentinel answers")

    async def primaries(self) -> Sequence[Member]:
        """The one that the sentinels name."""
        return [await self.primary()]

    async def _is_whole(self) -> bool:
        primary = await self.primary()
        with contextlib.suppress(StoreError):
            for server in self.servers:
                if server is not primary:
                    role = await server.ask("ROLE")
                    if role[0] != b"slave" or role[3] != b"connected":
                        return False
            for sentinel in self.sentinels:
                (found,) = await sentinel.ask("SENTINEL", "MASTERS")
                known = dict(zip(found[::2], found[1::2], strict=True))
                if (known[b"num-slaves"], known[b"num-other-sentinels"], known[b"flags"]) != (b"1", b"2", b"master"):
                    return False
            return True
        return False


def slot_of(name: str, issuer: str = ISSUER) -> int:
    """The slot of a user's keys."""
    return UserAccount((issuer, name)).slot


class Cluster(Group):
    """Three primaries without replicas; `full` has it stop altogether when a slot is lost, as is the default."""

    def __init__(self, *, full: bool = False, tls: TLS | None = None) -> None:
        self._redis_cli = need("redis-cli")
        super().__init__()
        self._tls = tls
        ports = free_ports(3)
        options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(DOWN_MS)]
        options += ["--cluster-require-full-coverage", "yes" if full else "no"]
        if tls is not None:
            options += ["--tls-cluster", "yes"]
        self.members = [Member(self.room, port, *options, tls=tls) for port in ports]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports[:2])
        self.url = f"redis+cluster://{hosts}"
        self.address = RedisAddress(kind="cluster", nodes=tuple(("127.0.0.1", port) for port in ports[:2]))
        if tls is not None:
            self.url = f"rediss+cluster://{hosts}{tls.query()}"
            self.address = tls.secure(self.address)

    async def start(self) -> None:
        """Begin, join them, and wait until all of them know all slots."""
        for member in self.members:
            await member.start()
        create = [self._redis_cli]
        if self._tls is not None:
            certificate = str(self._tls.certificate)
            create += ["--tls", "--cacert", str(self._tls.ca_file), "--cert", certificate, "--key", certificate]
        create += ["--cluster", "create"]
        create += [f"127.0.0.1:{member.port}" for member in self.members]
        process = await asyncio.create_subprocess_exec(
            *create, "--cluster-yes", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said, _ = await process.communicate()
        assert process.returncode == 0, said
        async with asyncio.timeout(WAIT_S):
            for member in self.members:
                while b"cluster_state:ok" not in await member.ask("CLUSTER", "INFO"):  # noqa: ASYNC110 - it is they who must be asked
                    await asyncio.sleep(0.02)

    async def primaries(self) -> Sequence[Member]:
        """Those that run."""
        return [member for member in self.members if member.is_running]

    async def owner(self, slot: int) -> Member:
        """Who has a slot, by what a node that runs says."""
        (asked, *_) = await self.primaries()
        for first, last, (_host, port, *_), *_ in await asked.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(member for member in self.members if member.port == port)
        raise AssertionError("nobody has it")

    async def users_of(self, member: Member, most: int, issuer: str = ISSUER) -> list[str]:
        """Users whose keys a node has."""
        owners: dict[int, Member] = {}
        found: list[str] = []
        for number in count():
            slot = slot_of(f"user-{number}", issuer)
            if slot not in owners:
                owners[slot] = await self.owner(slot)
            if owners[slot] is member:
                found.append(f"user-{number}")
            if len(found) == most:
                return found
        raise AssertionError

    async def begin_move(self, slot: int, source: Member, target: Member) -> None:
        """Let a slot's keys be on the way: those that the source lacks are asked for at the target (ASK)."""
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", await source.ask("CLUSTER", "MYID"))
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", await target.ask("CLUSTER", "MYID"))

    async def move_keys(self, slot: int, source: Member, target: Member) -> None:
        """Move the slot's keys, one by one."""
        while keys := await source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1):
            await source.ask("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000)

    async def end_move(self, slot: int, target: Member) -> None:
        """Say that the slot has a new owner."""
        id_ = await target.ask("CLUSTER", "MYID")
        for member in (target, *[other for other in await self.primaries() if other is not target]):
            await member.ask("CLUSTER", "SETSLOT", slot, "NODE", id_)
