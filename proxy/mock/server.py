"""The mock vendor as a server: for tests and the demo in process, for everyone else as the command.

Responsible for listening, keys, what was received and how it went; dialects and faults live in their own modules.
Connections are watched by aiohttp, which cancels a handler the moment its client goes: no write is needed to notice
it, so a stalled answer notices too. A client that closes only its sending side counts as gone.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import orjson
from aiohttp import web

from proxy.mock.controls import Controls, RefusedError
from proxy.mock.reception import MAX_BODY_BYTES, admit, answer, greet, receive, refuse
from proxy.mock.sender import Sender

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http_parser import RawRequestMessage
    from aiohttp.streams import StreamReader
    from aiohttp.web_protocol import RequestHandler

    from proxy.mock.answer import Received

KEPT_REQUESTS = 1000
KEPT_BYTES = 128 * 1024 * 1024
# The command paces its events so that a person sees them arrive.
COMMAND_INTERVAL_MS = 50


@dataclass(frozen=True, slots=True)
class Stats:
    """How the requests went: `requests` is always the sum of the others.

    `finished` counts what the mock ended, refusals and faults included; `cancelled` what its client left before.
    """

    requests: int = 0
    active: int = 0
    finished: int = 0
    cancelled: int = 0


class MockVendor:
    """A vendor on a port, open inside `async with`.

    `requests` holds the last thousand requests received (as many of them as fit in 128 MiB), with prompts and
    credentials: it is for assertions. `interval_ms` is the pace where a request asks for none, `clock` gives the
    `created` of answers. Leaving tears down what is still streaming.
    """

    def __init__(
        self,
        key: str = "mock-key",
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        interval_ms: int = 0,
        kept_requests: int = KEPT_REQUESTS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.host = host
        self.port = port
        self.stats = Stats()
        self.requests: deque[Received] = deque(maxlen=kept_requests)
        self._kept_bytes = 0
        self._key = key
        self._interval_ms = interval_ms
        self._clock = clock
        self._is_closing = False
        self._handlers: set[asyncio.Task[Any]] = set()
        self._waiters: list[tuple[Callable[[Stats], bool], asyncio.Future[Stats]]] = []
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            OSError: The address cannot be had.
        """
        server = web.Server(
            self._handle,
            handler_cancellation=True,
            request_factory=_make_request,
            access_log=None,
            lingering_time=1.0,  # so that a refusal of a body that is still coming can be read
            auto_decompress=False,  # what is recorded is what came
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, self.port).start()
        except OSError:
            await self._runner.cleanup()
            raise
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop listening, tear down running streams, close every connection."""
        self._is_closing = True
        for handler in self._handlers:
            handler.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    async def wait_for(self, predicate: Callable[[Stats], bool]) -> Stats:
        """Wait until the stats satisfy the predicate, and return the first that did.

        Asked at once and then on every change, so no state is missed. Waits for ever: bound it with a timeout.
        """
        if predicate(self.stats):
            return self.stats
        future: asyncio.Future[Stats] = asyncio.get_running_loop().create_future()
        waiter = (predicate, future)
        self._waiters.append(waiter)
        try:
            return await future
        finally:
            self._waiters.remove(waiter)

    def _change(self, stats: Stats) -> None:
        self.stats = stats
        for predicate, future in self._waiters:
            if not future.done() and predicate(stats):
                future.set_result(stats)

    def _keep(self, received: Received) -> None:
        if not self.requests.maxlen:
            return
        if len(self.requests) == self.requests.maxlen:
            self._kept_bytes -= len(self.requests.popleft().body)
        self.requests.append(received)
        self._kept_bytes += len(received.body)
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self.requests.popleft().body)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET" and request.raw_path.partition("?")[0] == "/mock/stats":
            return web.Response(body=orjson.dumps(self.stats), content_type="application/json")
        stats = self.stats
        number = stats.requests + 1
        self._change(replace(stats, requests=number, active=stats.active + 1))
        task = asyncio.current_task()
        assert task is not None  # a handler runs in a task
        self._handlers.add(task)
        is_finished = False
        try:
            keeps_alive = await self._serve(request, number)
            is_finished = True
        finally:
            self._handlers.discard(task)
            stats = self.stats
            active = stats.active - 1
            if is_finished or self._is_closing:
                self._change(replace(stats, active=active, finished=stats.finished + 1))
            else:
                self._change(replace(stats, active=active, cancelled=stats.cancelled + 1))
        return _AlreadySent(keeps_alive=keeps_alive)

    async def _serve(self, request: web.BaseRequest, number: int) -> bool:
        """Receive, answer, send; true when the connection can be used again."""
        received_at = time.monotonic()
        keeps_alive = request.keep_alive
        ask, controls = greet(request, number=number, created=int(self._clock())), Controls()
        try:
            received = await receive(request)
            self._keep(received)
            ask = admit(ask, received, key=self._key, interval_ms=self._interval_ms)
            response = answer(ask, request.method)
            controls = ask.controls
        except RefusedError as refused:
            response = refuse(ask, refused)
            keeps_alive = keeps_alive and request.content.is_eof()
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        sender = Sender(
            transport,
            request.writer.drain,
            controls,
            is_http_1_0=request.version < (1, 1),
            keeps_alive=keeps_alive,
        )
        try:
            return await sender.send(response, received_at=received_at)
        except Exception:
            # A half-sent answer must not be mended into a whole one by the server's own error page.
            transport.abort()
            raise


class _AlreadySent(web.StreamResponse):
    """Tells aiohttp that the handler has written its answer itself, and whether the connection goes on."""

    def __init__(self, *, keeps_alive: bool) -> None:
        super().__init__()
        self._goes_on = keeps_alive

    @property
    def keep_alive(self) -> bool:
        return self._goes_on

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to prepare."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


def _make_request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY_BYTES)


def run(host: str, port: int, *, key: str = "mock-key") -> int:
    """Serve until SIGINT or SIGTERM, and return the command's exit code: 0, or 1 where it cannot listen."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):
        from uvloop import new_event_loop as loop_factory  # noqa: PLC0415  # some systems have none
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_run(host, port, key))


async def _run(host: str, port: int, key: str) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    vendor = MockVendor(key, host, port, interval_ms=COMMAND_INTERVAL_MS, kept_requests=0)
    try:
        async with vendor:
            sys.stdout.write(f"{_greeting(vendor, key)}\n")
            sys.stdout.flush()
            await stop.wait()
    except OSError as exc:
        sys.stderr.write(f"mock vendor: cannot listen on {host}:{port}: {exc.strerror or exc}\n")
        return 1
    return 0


def _greeting(vendor: MockVendor, key: str) -> str:
    url = vendor.url
    return (
        f"mock vendor on {url} with key {key!r}; base URLs: OpenAI {url}/v1, DashScope {url}/api/v1 and "
        f"{url}/compatible-mode/v1, Anthropic {url}, Gemini {url}"
    )
