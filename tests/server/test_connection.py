"""The private names of aiohttp that the product looks at: what they mean, and that there are no others."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from aiohttp import web

import proxy as package
from proxy.server.connection import ClientConnection, ClientTimeouts
from tests.relay.one_client import turns
from tests.upstream.wire import Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from proxy.timers import DeadlineTimer, Watched

# By class, what stands in `proxy/server/connection.py`; and what aiohttp's own worker for gunicorn runs as its task,
# which the tests of several workers watch: without it none comes up.
USED = {"ClientConnection": {"_waiter", "_messages"}, "EgressConnector": {"_create_connection"}}
OVERRIDDEN = {"Worker": {"_run"}, "EgressConnector": {"_create_connection"}}
# Private by their looks alone: of every named tuple, and of every abstract class.
_OF_PYTHON = {"_asdict", "_replace", "_make", "_fields", "_field_defaults", "_abc_impl"}
GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"


class Handled:
    """aiohttp's own connection, and a handler that answers when the test says so."""

    def __init__(self) -> None:
        self.requests: list[web.BaseRequest] = []
        self.answer = asyncio.Event()
        self.server = web.Server(self._handle)
        self.connection = web.RequestHandler(self.server, loop=asyncio.get_running_loop())
        self.wire = Wire()
        self.connection.connection_made(cast("asyncio.Transport", self.wire))

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        self.requests.append(request)
        await self.answer.wait()
        self.answer.clear()
        return web.Response()

    async def answers(self) -> None:
        self.answer.set()
        await turns(20)

    @property
    def is_waiting(self) -> bool:
        waiter = self.connection._waiter
        return waiter is not None and not waiter.done()


@pytest.fixture
async def handled() -> AsyncIterator[Handled]:
    one = Handled()
    await turns()
    yield one
    one.connection.force_close()
    one.connection.connection_lost(None)
    await turns(20)


class Full(Wire):
    """A transport whose peer takes nothing: it tells the protocol to wait, as one with a full buffer does."""

    def write(self, data: bytes) -> None:
        super().write(data)
        self.unsent += len(data)
        assert isinstance(self.protocol, ClientConnection)
        if not self.protocol.writing_paused:
            self.protocol.pause_writing()


class Watching:
    """Timers that keep whom they would ask."""

    def __init__(self) -> None:
        self.watched: set[Watched] = set()

    def now(self) -> float:
        return 0.0

    def add(self, one: Watched) -> None:
        self.watched.add(one)

    def discard(self, one: Watched) -> None:
        self.watched.discard(one)


class Reading:
    """A connection of ours whose handler reads each body, the first once the test says so."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.go_on = asyncio.Event()
        self.connection = ClientConnection(
            web.Server(self._handle),
            loop=asyncio.get_running_loop(),
            timers=cast("DeadlineTimer", Watching()),
            timeouts=ClientTimeouts(header_s=None, write_s=None),
            refuse=lambda _error: [],
        )
        self.connection.connection_made(cast("asyncio.Transport", Wire()))

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        await self.go_on.wait()
        self.sizes.append(len(body))
        return web.Response()

    async def receive(self, data: bytes) -> None:
        self.connection.data_received(data)
        await turns(10)


@pytest.fixture
async def reading() -> AsyncIterator[Reading]:
    one = Reading()
    await turns()
    yield one
    one.connection.force_close()
    one.connection.connection_lost(None)
    await turns(20)


async def test_requests_behind_a_late_body(reading: Reading) -> None:
    """All requests of a long pipeline are answered, even behind one whose body came after its head."""
    await reading.receive(POST)
    await reading.receive(b"ab")
    await reading.receive((POST + b"ab") * 40)

    reading.go_on.set()
    await turns(600)

    assert reading.sizes == [2] * 41


async def test_request_behind_a_body_that_was_paused_at_its_end(reading: Reading) -> None:
    """A request is answered behind a body whose last chunk was the first that was one too many to wait unread."""
    chunks = 2**16 // 4 + 1
    await reading.receive(GET + CHUNKED)
    for begin in range(0, chunks, 2000):
        few = b"1\r\nx\r\n" * min(2000, chunks - begin)
        await reading.receive(few if begin + 2000 < chunks else few + b"0\r\n\r\n")
    reading.go_on.set()
    await turns(100)

    await reading.receive(POST + b"ab")

    assert reading.sizes == [0, chunks, 2]


@pytest.mark.parametrize("behind", [b"", GET[:9], GET], ids=["nothing", "part of a head", "a request"])
async def test_write_timeout_of_a_client_that_takes_nothing(behind: bytes) -> None:
    """The write timeout ends a connection whose client does not take a response, whatever it sends meanwhile."""

    async def handle(_request: web.BaseRequest) -> web.Response:
        return web.Response()

    timers, wire = Watching(), Full()
    connection = ClientConnection(
        web.Server(handle),
        loop=asyncio.get_running_loop(),
        timers=cast("DeadlineTimer", timers),
        timeouts=ClientTimeouts(header_s=None, write_s=1.0),
        refuse=lambda _error: [],
    )
    wire.protocol = connection
    connection.connection_made(cast("asyncio.Transport", wire))
    connection.data_received(GET)
    await turns(20)
    for one in list(timers.watched):
        one.check(10.0)
    connection.data_received(behind)

    for one in list(timers.watched):
        one.check(11.0)

    assert wire.written
    assert wire.is_closed
    connection.connection_lost(None)
    await turns(20)
    for one in list(timers.watched):
        one.check(12.0)
    assert not timers.watched


async def test_waiter_of_a_head_in_parts(handled: Handled) -> None:
    """`_waiter` is pending while no head has come whole, and done with the head's last byte."""
    seen = [handled.is_waiting]
    handled.connection.data_received(GET[:20])
    await turns()
    seen.append(handled.is_waiting)

    handled.connection.data_received(GET[20:])

    assert [*seen, handled.is_waiting] == [True, True, False]


@pytest.mark.parametrize("head", [POST, CHUNKED], ids=["length", "chunks"])
async def test_waiter_of_a_body_that_is_missing(handled: Handled, head: bytes) -> None:
    """`_waiter` is not pending while a body arrives, nor while the handler runs."""
    handled.connection.data_received(head)
    seen = [handled.is_waiting]
    await turns()
    seen.append(handled.is_waiting)
    handled.connection.data_received(b"ab" if head is POST else b"2\r\nab\r\n0\r\n\r\n")
    await turns()
    seen.append(handled.is_waiting)

    await handled.answers()

    assert [*seen, handled.is_waiting] == [False, False, False, True]


async def test_waiter_between_pipelined_requests(handled: Handled) -> None:
    """`_waiter` is pending again only when the last of the requests that have come is answered."""
    handled.connection.data_received(GET * 2)
    await turns()
    await handled.answers()
    seen = [handled.is_waiting]
    await handled.answers()
    assert [*seen, handled.is_waiting] == [False, True]
    assert len(handled.requests) == 2


async def test_messages_of_a_good_body(handled: Handled) -> None:
    """`_messages` is empty while a good body is incomplete."""
    handled.connection.data_received(CHUNKED)
    await turns()
    for read in (b"2\r\na", b"b\r\n", b"5;x=y\r\nabcde", b"\r\n1\r\na\r\n0\r\nX-Trailer: a\r\n"):
        handled.connection.data_received(read)
        assert not handled.connection._messages


@pytest.mark.parametrize("bad", [b"zz\r\n", b"2\r\nabcd", b"2\r\nab\r\n-1\r\n", b"2\nab\n"])
async def test_messages_of_a_malformed_body(handled: Handled, bad: bytes) -> None:
    """The parser's error is appended to `_messages` at once, while the body is incomplete."""
    handled.connection.data_received(CHUNKED)
    await turns()
    (request,) = handled.requests

    handled.connection.data_received(bad)

    assert len(handled.connection._messages) == 1
    # While the body itself is told nothing, nothing public can be looked at instead.
    assert request.content.exception() is None
    assert not request.content.is_eof()


# That there are no others.


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in _OF_PYTHON


def names_of(kinds: Iterator[type] | list[type]) -> set[str]:
    """The private names of aiohttp's classes."""
    return {name for kind in kinds for name in dir(kind) if is_private(name)}


def classes_of(module: Any) -> list[type]:
    return [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]


def of_aiohttp(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.partition(".")[0] == "aiohttp"]


def private_uses(source: str) -> Iterator[tuple[bool, str]]:
    """The private attributes that a source uses: whether of `self`, and the name; `getattr` counts, too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            value = node.value
            is_own = isinstance(value, ast.Name) and value.id in {"self", "cls"}
            is_super = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super"
            yield is_own or is_super, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"getattr", "setattr"}:
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                yield False, str(name.value)


SOURCES = sorted(Path(package.__file__).parent.rglob("*.py"))
MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(package.__path__, "proxy.")
    # Alembic alone can import its environment.
    if not found.name.endswith("__main__") and ".migrations." not in found.name
]
DERIVED = [kind for module in MODULES for kind in classes_of(module) if of_aiohttp(kind)]
# Every attribute that an object of aiohttp's server side may have, and what it is made of.
OBJECTS = names_of(
    [
        kind
        for name in ("base_protocol", "web_protocol", "web_request", "web_response", "web_runner", "web_server")
        for kind in classes_of(importlib.import_module(f"aiohttp.{name}"))
    ]
    + [
        kind
        for name in ("http_parser", "http_writer", "streams", "web_app", "web_urldispatcher", "payload", "client")
        for kind in classes_of(importlib.import_module(f"aiohttp.{name}"))
    ]
)


def test_derived_classes() -> None:
    """The classes that inherit from aiohttp's, whose own names could hide one, are found."""
    assert {"ClientConnection", "RelayResponse"} <= {kind.__name__ for kind in DERIVED}


@pytest.mark.parametrize("kind", DERIVED, ids=lambda kind: kind.__name__)
def test_private_names_of_a_base(kind: type) -> None:
    """A class of ours uses no private name of its base in aiohttp but the listed ones, and hides none."""
    inherited = names_of(of_aiohttp(kind))
    used = {name for is_own, name in private_uses(inspect.getsource(kind)) if is_own} & inherited
    assert used == USED.get(kind.__name__, set())
    assert set(vars(kind)) & inherited == OVERRIDDEN.get(kind.__name__, set())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_private_names_of_objects(path: Path) -> None:
    """No private name of aiohttp's is used of a request, a response or another object, nor imported."""
    source = path.read_text()
    assert not {name for is_own, name in private_uses(source) if not is_own} & OBJECTS
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.module]
    for node in imported:
        if str(node.module).partition(".")[0] == "aiohttp":
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            assert not [name for name in names if is_private(name)]
