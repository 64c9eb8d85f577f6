"""The way to the proxy: what is asked over it, and what its answers betray.

Everything is asked as a browser would: with its `Accept-Encoding`, by HTTP/1.1. No redirect is followed, no proxy of
the environment is used, and each answer is bounded in size and time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import SplitResult, urlsplit

import aiohttp

from proxy.cli.doctor.arrivals import Arrival
from proxy.cli.doctor.hops import is_from_cache, recognise
from proxy.protocol.verify_flags import set_verify_flags

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

ECHO: Final = "/forward-sse/echo"
BROWSERS_CODINGS: Final = "gzip, deflate, br, zstd"
CODE: Final = "X-Forward-Sse-Code"
ID: Final = "X-Forward-Sse-Id"
# Beyond what a stream takes by itself, for a slow path.
SLACK_S: Final = 20.0
# A limit that is over so soon is waited for, once.
_RETRY_S: Final = 15.0
LIMITED: Final = 429
_MAX_BYTES: Final = 1024 * 1024
AGENT: Final = "forward-sse-doctor"
UNANSWERED: Final = (
    aiohttp.ClientError,
    OSError,
    TimeoutError,
    asyncio.IncompleteReadError,
    asyncio.LimitOverrunError,
    ValueError,
)


class NoAnswerError(Exception):
    """There was no answer, or it broke off; the text says in what way, `after_s` when."""

    def __init__(self, text: str, after_s: float = 0.0) -> None:
        super().__init__(text)
        self.after_s = after_s


class RefusedError(Exception):
    """A stream was refused; the text is the code or status."""


@dataclass
class Answer:
    """An answer: status, fields, what came of the body, and when it was asked and its head came (monotonic)."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    asked_s: float
    answered_s: float
    version: tuple[int, int] = (1, 1)

    @property
    def code(self) -> str | None:
        """The proxy's own code for a refusal."""
        return self.headers.get(CODE)

    @property
    def is_ours(self) -> bool:
        """Whether the proxy answered."""
        return ID in self.headers


@dataclass
class Echo:
    """What came of an echo: its answer's head, its events, and how it ended.

    Attributes:
        is_whole: It ended in order, and no event is missing or damaged.
        problem: Why it broke off.
        ended_s: When the last byte, or the end, came, after the head was asked for.
    """

    answer: Answer
    arrivals: list[Arrival] = field(default_factory=list)
    is_whole: bool = False
    problem: str | None = None
    ended_s: float = 0.0

    @property
    def coding(self) -> str | None:
        """The content coding that a hop has put on it."""
        coding = self.answer.headers.get("Content-Encoding", "").strip().lower()
        return coding if coding not in {"", "identity"} else None


def check_address(url: str) -> SplitResult:
    """Split the public address.

    Raises:
        ValueError: it is no http(s) URL, or holds a credential, a query or a fragment.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not _is_visible(url):
        raise ValueError("URL must be an http:// or https:// address")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("URL must have no user, query or fragment; the token goes into --token")
    _ = parts.port  # raises ValueError by itself
    return parts


def check_field(option: str, value: str | None) -> None:
    """Check an option that becomes a field's value.

    Raises:
        ValueError: it could not be one; the text does not have it.
    """
    if value is not None and not _is_visible(value):
        raise ValueError(f"{option} must be visible ASCII without spaces")


def check_name(upstream: str | None) -> None:
    """Check the name of an upstream.

    Raises:
        ValueError: it could not be one.
    """
    if upstream is not None and re.fullmatch(r"[A-Za-z0-9._-]+", upstream) is None:
        raise ValueError("--upstream must be an upstream's name")


def _is_visible(text: str) -> bool:
    return re.fullmatch(r"[!-~]+", text) is not None


class Way:
    """The public address, a token, and one HTTP session; collects which products answers betray.

    An `async with` block opens and closes the session.

    Raises:
        ValueError: `check_address` refuses the address.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        parts = check_address(url)
        self.host = parts.hostname or ""
        self.is_tls = parts.scheme == "https"
        self.port = parts.port or (443 if self.is_tls else 80)
        self.path = parts.path.rstrip("/")
        self.base = f"{parts.scheme}://{parts.netloc}{self.path}"
        self.netloc = parts.netloc
        self.token = token
        self.hops: set[str] = set()
        self.is_cached = False
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=set_verify_flags(ssl.create_default_context()) if self.is_tls else True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": AGENT, "Accept-Encoding": BROWSERS_CODINGS},
            trust_env=False,
            # Each question has its own clock.
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._session.close()

    def fields(self, **more: str) -> dict[str, str]:
        """The fields of a request with the token, where there is one."""
        return ({} if self.token is None else {"Authorization": f"Bearer {self.token}"}) | more

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, *, within_s: float = SLACK_S
    ) -> Answer:
        """Ask for something short.

        Raises:
            NoAnswerError: there is no answer, or no whole one in time.
        """
        try:
            async with asyncio.timeout(within_s), self._begin(method, path, headers or {}) as (response, asked_s):
                answered_s = _now()
                return self._answer(response, await read(response), asked_s, answered_s)
        except UNANSWERED as exc:
            raise NoAnswerError(why(exc)) from exc

    async def echo(
        self, *, events: int, interval_ms: int, silence_ms: int = 0, headers: Mapping[str, str] | None = None
    ) -> Echo:
        """Ask for a timed stream, and take it to its end; once more where the proxy's limits allow it soon.

        Raises:
            NoAnswerError: not even a head came.
        """
        echo = await self._echo(events=events, interval_ms=interval_ms, silence_ms=silence_ms, headers=headers)
        after = echo.answer.headers.get("Retry-After", "")
        if echo.answer.status == LIMITED and echo.answer.is_ours and after.isdecimal() and int(after) <= _RETRY_S:
            await asyncio.sleep(int(after))
            echo = await self._echo(events=events, interval_ms=interval_ms, silence_ms=silence_ms, headers=headers)
        return echo

    async def _echo(self, *, events: int, interval_ms: int, silence_ms: int, headers: Mapping[str, str] | None) -> Echo:
        query = f"?events={events}&interval_ms={interval_ms}&silence_ms={silence_ms}"
        duration_s = ((events - 1) * interval_ms + silence_ms) / 1000
        asked_s, echo = _now(), None
        try:
            async with (
                asyncio.timeout(duration_s + SLACK_S),
                self._begin("GET", ECHO + query, self.fields(**(headers or {}))) as (response, asked_s),
            ):
                echo = Echo(self._answer(response, b"", asked_s, _now()))
                if echo.answer.status != 200:  # noqa: PLR2004 - RFC 9110 §15.3.1
                    echo.answer.body = await read(response)
                else:
                    await _take(response, echo)
                    echo.is_whole = [one.n for one in echo.arrivals] == list(range(events))
        except UNANSWERED as exc:
            if echo is None:
                raise NoAnswerError(why(exc), _now() - asked_s) from exc
            echo.problem = why(exc)
        echo.ended_s = _now() - asked_s
        return echo

    @contextlib.asynccontextmanager
    async def open_echo(self, id_: str, *, interval_ms: int) -> AsyncIterator[asyncio.Task[str | None]]:
        """Have a long stream run; leaving the block leaves the stream. Gives what is waiting for its head.

        The result is the stream's own id, or None where a hop has removed it.

        Raises (the result):
            RefusedError: the answer is no stream.
        """
        opened: list[aiohttp.ClientResponse] = []

        async def head() -> str | None:
            url = f"{self.base}{ECHO}?events=600&interval_ms={interval_ms}"
            headers = self.fields(**{"X-Request-Id": id_})
            response = await self._session.get(url, headers=headers, allow_redirects=False)
            opened.append(response)
            if response.status != 200:  # noqa: PLR2004 - as above
                raise RefusedError(response.headers.get(CODE) or f"status {response.status}")
            return response.headers.get(ID)

        task = asyncio.create_task(head())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()
            for response in opened:
                response.close()

    def note(self, headers: Mapping[str, str]) -> None:
        """Note what an answer betrays."""
        self.hops |= recognise(headers)
        self.is_cached |= is_from_cache(headers)

    @contextlib.asynccontextmanager
    async def _begin(
        self, method: str, path: str, headers: Mapping[str, str]
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, float]]:
        asked_s = _now()
        async with self._session.request(method, self.base + path, headers=headers, allow_redirects=False) as response:
            yield response, asked_s

    def _answer(self, response: aiohttp.ClientResponse, body: bytes, asked_s: float, answered_s: float) -> Answer:
        self.note(response.headers)
        return Answer(response.status, response.headers, body, asked_s, answered_s, response.version or (1, 1))


def why(error: BaseException) -> str:
    """In words, what went wrong with a connection; by its type, because texts may hold anything."""
    if isinstance(error, ssl.SSLCertVerificationError | aiohttp.ClientConnectorCertificateError):
        return "its certificate is not trusted"
    if isinstance(error, ssl.SSLError | aiohttp.ClientSSLError):
        return "TLS failed"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is not known"
    if isinstance(error, ConnectionRefusedError) or (
        isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError)
    ):
        return "the connection was refused"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "it could not be connected to"
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionError | asyncio.IncompleteReadError):
        return "the connection was closed without an answer"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer broke off"
    return f"it failed ({type(error).__name__})"


async def read(response: aiohttp.ClientResponse, most_bytes: int = _MAX_BYTES) -> bytes:
    """What is there of a body; little more than `most_bytes` where it is longer."""
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > most_bytes:
            break
    return bytes(data)


async def _take(response: aiohttp.ClientResponse, echo: Echo) -> None:
    """Note each event with the time at which it arrived."""
    rest, size = b"", 0
    async for piece in response.content.iter_any():
        arrived_s = _now()
        size += len(piece)
        if size > _MAX_BYTES:
            return
        *events, rest = (rest + piece).split(b"\n\n")
        for event in events:
            value = _value(event)
            if value is not None:
                echo.arrivals.append(Arrival(value[0], value[1] / 1000, arrived_s))


def _value(event: bytes) -> tuple[int, int] | None:
    """Number and time of an event of the echo; None for any other."""
    try:
        value = json.loads(event.removeprefix(b"data:"))
        n, sent_ms = value["n"], value["sent_ms"]
    except (ValueError, KeyError, TypeError):
        return None
    return (n, sent_ms) if isinstance(n, int) and isinstance(sent_ms, int) else None


def _now() -> float:
    # Not the loop's, which uvloop rounds to its turns.
    return time.monotonic()
