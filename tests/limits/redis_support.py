"""A real Redis server for the tests, and stores that share it, as workers would."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import pytest

from proxy.errors import ProxyError
from proxy.limits.redis.address import Dialler, RedisAddress
from proxy.limits.redis.channel import Channel
from proxy.limits.redis.errors import StoreError
from proxy.limits.redis.store import RedisStore
from proxy.model import Plan, Principal
from tests.needs import need

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.limits.store import Admission, Store

WAIT_S = 30.0


def server_binary() -> str:
    """Return the server to test with: the one that `REDIS_SERVER` names, else one on the PATH."""
    return os.environ.get("REDIS_SERVER") or need("redis-server", "valkey-server")


class Process:
    """A server's process, which can be killed, and made to hang."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether it was started and not killed; it may hang."""
        return self._process is not None

    def spawn(self) -> None:
        """Begin."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Let it hang: connections are accepted by the kernel, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def is_own_key(key: bytes) -> bool:
    """Whether a key is the stores' own, and no user's."""
    return key.startswith(b"forward-sse:{node")


def is_lease_key(key: bytes) -> bool:
    """Whether it holds a user's leases."""
    return key.endswith(b":leases") and not is_own_key(key)


class RedisServer(Process):
    """A server process of the test's own, which forgets everything when it ends."""

    def __init__(self, *options: str) -> None:
        binary = server_binary()
        # Not the test's own room, whose path may be too long for a socket.
        self._room = tempfile.TemporaryDirectory(prefix="redis-")
        self.path = f"{self._room.name}/redis.sock"
        self.url = f"unix://{self.path}"
        self.address = RedisAddress(path=self.path)
        command = [binary, "--port", "0", "--unixsocket", self.path, "--save", ""]
        super().__init__([*command, "--dir", self._room.name, "--logfile", f"{self._room.name}/log", *options])

    async def start(self) -> None:
        """Begin, and wait until it answers."""
        self.spawn()
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(StoreError):
                    await self.ask("PING")
                    return
                await asyncio.sleep(0.01)

    def close(self) -> None:
        """End it, and leave nothing of it."""
        self.kill()
        self._room.cleanup()

    async def ask(self, *words: bytes | str | int) -> Any:
        """Ask it something, by a connection of the test's own."""
        channel = await control(self.address)
        try:
            return await channel.ask(*words)
        finally:
            channel.abort("")

    async def keys(self, pattern: str = "*") -> list[bytes]:
        """The keys there are, but for the store's own."""
        found: list[bytes] = await self.ask("KEYS", pattern)
        return sorted(key for key in found if not is_own_key(key))

    async def leases(self) -> int:
        """How many leases it has, over all users."""
        return sum([await self.ask("ZCARD", key) for key in await self.keys("*:leases")])


async def control(address: RedisAddress) -> Channel:
    """A channel of the test's own."""
    return Channel(await Dialler(address, timeout_s=WAIT_S).dial(), timeout_s=WAIT_S)


def channel_of(store: RedisStore) -> Channel:
    """The channel of a store on one server."""
    (link,) = store._links
    assert link.channel is not None
    return link.channel


class Shared(Protocol):
    """A limits server, or a group of them."""

    url: str
    address: RedisAddress

    async def leases(self) -> int:
        """How many leases there are, over all users."""
        ...


_Server = TypeVar("_Server", bound=Shared)


class Workers(Generic[_Server]):
    """Stores that share a server; closed with the test."""

    def __init__(self, server: _Server) -> None:
        self.server = server
        self._stack = AsyncExitStack()
        self.failures = 0
        # Of all stores, in order: why one was lost, None for back.
        self.changes: list[str | None] = []

    async def one(self, **options: Any) -> RedisStore:
        """Another store; patient, because other tests may keep the machine busy, unless told otherwise."""
        options.setdefault("timeout_s", WAIT_S)
        address = options.pop("address", self.server.address)
        store = RedisStore(address, on_failure=self._fail, on_change=self.changes.append, **options)
        await store.open()
        self._stack.push_async_callback(store.close)
        return store

    async def several(self, count: int, **options: Any) -> list[RedisStore]:
        """Several."""
        return [await self.one(**options) for _ in range(count)]

    async def close(self) -> None:
        """Close them all."""
        await self._stack.aclose()

    def _fail(self) -> None:
        self.failures += 1


def user(plan: Plan, name: str = "alice", issuer: str = "https://id.example.com/") -> Principal:
    """A user of the plan."""
    return Principal(issuer, name, plan)


async def attempt(store: Store, principal: Principal) -> Admission | str:
    """The admission, or the code of the refusal."""
    try:
        return await store.admit(principal)
    except ProxyError as error:
        return error.code


def at_once(store: Store, principal: Principal) -> Admission | str:
    """The same, of a store that waits for nothing, not even for a turn of the loop."""
    coroutine = attempt(store, principal)
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    outcome: Admission | str = ended.value.value
    return outcome


def die(store: RedisStore) -> None:
    """End a worker as `kill -9` would: nothing is told to the server, its socket closes."""
    (link,) = store._links
    for task in (link._task, store._leases._task):
        assert task is not None
        task.cancel()
    if link.channel is not None:
        link.channel.on_lost = None
        link.channel.abort("dead")
    link.channel = None


async def passes(condition: Callable[[], bool]) -> None:
    """Wait until it is so; for what nobody announces."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.005)


async def comes_true(condition: Callable[[], Awaitable[bool]]) -> None:
    """The same, where it is the server that must be asked."""
    async with asyncio.timeout(WAIT_S):
        while not await condition():  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.005)


async def holds(server: Shared, leases: int) -> None:
    """Wait until the server has so many leases."""

    async def is_so() -> bool:
        return await server.leases() == leases

    await comes_true(is_so)
