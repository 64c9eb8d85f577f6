"""A vendor that counts what it generates, and clients that ask it in every way and leave at any time.

It streams texts whose tokens are known (`texts`), speaks all dialects, and tells usage as each does: at the end and
only if asked (OpenAI), the input first and the output last (Anthropic), running totals (Gemini, DashScope).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import aiohttp
import orjson
from aiohttp import web

from tests.conftest import VENDOR_KEY, token
from tests.usage.texts import KINDS, TEXTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from tests.usage.texts import Piece

# What becomes of a stream: it ends well with its usage or without; its client leaves before or after the first byte;
# the vendor breaks off; the vendor refuses; the answer is one whole JSON.
How = Literal["told", "untold", "left_early", "left", "broken", "refused", "whole"]
WEIGHTS: Final[dict[How, int]] = {
    "told": 45,
    "untold": 8,
    "left_early": 5,
    "left": 20,
    "broken": 8,
    "refused": 6,
    "whole": 8,
}
PATHS: Final = {
    "openai": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "gemini": "/v1beta/models/{model}:streamGenerateContent?alt=sse",
    "dashscope": "/api/v1/services/aigc/text-generation/generation",
}
DIALECTS: Final = sorted(PATHS)
_MOST_PIECES = 60
_PACE_S = 0.001


@dataclass
class Generated:
    """What the vendor did for one request: `is_told` where it has said all of its usage."""

    id: str
    dialect: str
    kind: str
    how: How
    tokens_in: int
    tokens_out: int = 0
    is_told: bool = False


@dataclass
class Asked:
    """A request that a client made, and whether it got what it waited for."""

    id: str
    dialect: str
    kind: str
    how: How
    is_refused: bool = False
    is_lost: bool = False


@dataclass
class CountingVendor:
    """Serves inside `async with`; `generated` has each request that reached it, by its id."""

    port: int = 0
    generated: dict[str, Generated] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    _runner: web.ServerRunner | None = None

    @property
    def upstreams(self) -> str:
        """The part of a configuration that names it, once for each dialect; models are named by kinds of text."""
        url = f"http://127.0.0.1:{self.port}"
        lines = [f"  {name}: {{url: '{url}', dialect: {name}, api_key: {VENDOR_KEY}}}\n" for name in DIALECTS]
        prices = ", ".join(f"{kind}: {{input: 1, output: 10}}" for kind in KINDS)
        return f"upstreams:\n{''.join(lines)}prices: {{{prices}}}\n"

    async def __aenter__(self) -> Self:
        server = web.Server(self._serve, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        plan = orjson.loads(request.headers["X-Test-Plan"])
        one = Generated(**plan)
        if one.id in self.generated:
            self.twice.append(one.id)
        self.generated[one.id] = one
        body = await request.json()
        pieces = [piece for text in TEXTS[one.kind] for piece in text][: request_pieces(one.id)]
        if one.how == "refused":
            return web.json_response({"error": {"message": "busy"}}, status=429)
        if one.how == "left_early":
            await asyncio.Event().wait()
        if one.how == "whole":
            one.tokens_out = sum(piece.tokens for piece in pieces)
            one.is_told = True
            return web.json_response(_whole(one, "".join(piece.text for piece in pieces)))
        is_told = one.dialect != "openai" or bool((body.get("stream_options") or {}).get("include_usage"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if one.dialect == "anthropic":
            usage = {"input_tokens": one.tokens_in, "output_tokens": 1}
            await response.write(_sse({"type": "message_start", "message": {"usage": usage}}))
        for number, piece in enumerate(pieces):
            if one.how == "broken" and number > len(pieces) // 2:
                assert request.transport is not None
                request.transport.abort()
                return response
            one.tokens_out += piece.tokens
            await response.write(_sse(_delta(one, piece)))
            # A break between two events, in which a client can leave.
            await asyncio.sleep(_PACE_S)
        if one.how == "left":
            await asyncio.Event().wait()
        if is_told:
            # Written whole, or the client has not stayed.
            await response.write(_last(one))
            one.is_told = True
        if one.dialect == "openai":
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def request_pieces(id_: str) -> int:
    """How many pieces the answer to a request has."""
    return random.Random(id_).randint(3, _MOST_PIECES)


def _sse(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _delta(one: Generated, piece: Piece) -> dict[str, Any]:
    match one.dialect:
        case "openai":
            return {"id": "c-1", "choices": [{"index": 0, "delta": {"content": piece.text}, "finish_reason": None}]}
        case "anthropic":
            return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece.text}}
        case "gemini":
            parts = {"content": {"parts": [{"text": piece.text}], "role": "model"}}
            return {"candidates": [parts], "usageMetadata": _usage(one)}
    message = {"role": "assistant", "content": piece.text}
    return {"output": {"choices": [{"message": message, "finish_reason": "null"}]}, "usage": _usage(one)}


def _usage(one: Generated) -> dict[str, int]:
    match one.dialect:
        case "openai":
            return {"prompt_tokens": one.tokens_in, "completion_tokens": one.tokens_out}
        case "gemini":
            return {"promptTokenCount": one.tokens_in, "candidatesTokenCount": one.tokens_out}
    return {"input_tokens": one.tokens_in, "output_tokens": one.tokens_out}


def _last(one: Generated) -> bytes:
    match one.dialect:
        case "openai":
            return _sse({"id": "c-1", "choices": [], "usage": _usage(one)})
        case "anthropic":
            delta = {"stop_reason": "end_turn"}
            usage = {"output_tokens": one.tokens_out}
            return _sse({"type": "message_delta", "delta": delta, "usage": usage}) + _sse({"type": "message_stop"})
        case "gemini":
            return _sse({"candidates": [{"finishReason": "STOP"}], "usageMetadata": _usage(one)})
    return _sse({"output": {"choices": [{"finish_reason": "stop"}]}, "usage": _usage(one)})


def _whole(one: Generated, text: str) -> dict[str, Any]:
    usage = {("usageMetadata" if one.dialect == "gemini" else "usage"): _usage(one)}
    return {"output": {"text": text}, "content": [{"type": "text", "text": text}], **usage}


class Load:
    """Clients of a proxy: each stream is of a kind, a dialect and an end that chance chooses by the seed.

    Args:
        address: Gives where to connect; asked for each stream.
    """

    def __init__(self, address: Callable[[], str], *, seed: int, users: int = 20) -> None:
        self._address = address
        self._chance = random.Random(seed)
        self._users = users
        self.asked: dict[str, Asked] = {}

    async def run(self, streams: int, *, at_once: int = 32, after: Callable[[int], None] = lambda _done: None) -> None:
        """Run so many streams, and tell `after` how many have ended each time that one has."""
        turns, done = asyncio.Semaphore(at_once), 0
        connector = aiohttp.TCPConnector(limit=0, force_close=True)

        async def one(asked: Asked) -> None:
            nonlocal done
            async with turns:
                await self._ask(session, asked)
            done += 1
            after(done)

        async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
            for _ in range(streams):
                group.create_task(one(self._next()))

    def _next(self) -> Asked:
        how = self._chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        dialect = "openai" if how == "untold" else self._chance.choice(DIALECTS)
        asked = Asked(f"s-{len(self.asked)}", dialect, self._chance.choice(KINDS), how)
        self.asked[asked.id] = asked
        return asked

    async def _ask(self, session: aiohttp.ClientSession, asked: Asked) -> None:
        prompt = list(islice(cycle(TEXTS[asked.kind][0]), self._chance.randint(20, 200)))
        plan = {
            "id": asked.id,
            "dialect": asked.dialect,
            "kind": asked.kind,
            "how": asked.how,
            "tokens_in": sum(piece.tokens for piece in prompt),
        }
        body: dict[str, Any] = {"model": asked.kind, "stream": asked.how != "whole"}
        body["messages"] = [{"role": "user", "content": "".join(piece.text for piece in prompt)}]
        if asked.how in {"told", "left", "broken"} and asked.dialect == "openai":
            body["stream_options"] = {"include_usage": True}
        headers = {
            "Authorization": f"Bearer {token(f'user-{self._chance.randrange(self._users)}')}",
            "X-Request-Id": asked.id,
            "X-Test-Plan": orjson.dumps(plan).decode(),
        }
        path = f"/{asked.dialect}{PATHS[asked.dialect].format(model=asked.kind)}"
        leave_after = request_pieces(asked.id) // 2
        try:
            # Who leaves early waits for an answer that does not come: the wait's end is its leaving.
            timeout = aiohttp.ClientTimeout(total=0.3 if asked.how == "left_early" else 60)
            async with session.post(self._address() + path, json=body, headers=headers, timeout=timeout) as response:
                asked.is_refused = response.status != 200
                async for number in _events(response):
                    if asked.how == "left" and number >= leave_after:
                        response.close()
                        return
        except (aiohttp.ClientError, TimeoutError, OSError):
            asked.is_lost = asked.how not in {"left_early", "broken"}


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[int]:
    count = 0
    with contextlib.suppress(asyncio.IncompleteReadError):
        async for data in response.content.iter_any():
            count += data.count(b"\n\n")
            yield count
