"""The operator's listener: metrics, the live streams, health. Health is answered on the public listener as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from proxy import metrics as names
from proxy.dialects import DIALECTS
from proxy.errors import MethodNotAllowedError, NotFoundError, ProxyError, refusal
from proxy.phases.answer import Settled, write_answer
from proxy.protocol.paths import without_slash

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.phases.accept import ClientConnection, Incoming
    from proxy.view import Problems, View

_JSON = b"application/json"
_PATHS = frozenset({"/metrics", "/admin/streams", "/healthz", "/readyz"})
_Reply = tuple[int, bytes, bytes]


class Health:
    """What `/healthz` and `/readyz` say: alive, and able to serve a request that arrives now."""

    def __init__(self, problems: Callable[[], Problems]) -> None:
        """`problems` gives the reasons against being ready under `reasons`, and under others what only limps."""
        self._problems = problems

    def reply(self, path: str) -> _Reply | None:
        """The answer of either path, None for any other."""
        if path == "/healthz":
            return 200, _JSON, b'{"status":"ok"}'
        if path != "/readyz":
            return None
        return readiness(self._problems())


def readiness(problems: Problems) -> _Reply:
    """The answer to whether a request that arrives now can be served."""
    is_ready = not problems["reasons"]
    body = orjson.dumps({"status": "ready" if is_ready else "unready", **problems})
    return (200 if is_ready else 503), _JSON, body


class Admin:
    """Serves the operator's listener; no credential, so it listens on loopback unless told otherwise."""

    def __init__(self, view: View, health: Health) -> None:
        self._view = view
        self._health = health

    async def handle(self, request: Incoming) -> Settled:
        """Answer one request; bodies are not read."""
        path = without_slash(request.target.partition(b"?")[0]).decode("latin-1")
        is_last = request.is_last or not request.content.is_complete
        extra: tuple[tuple[bytes, bytes], ...] = ()
        try:
            status, content_type, body = await self._reply(request.method, path)
            extra = ((b"Content-Type", content_type),) if body else ()
        except ProxyError as error:
            answer = refusal(error, DIALECTS["openai"])
            status, extra, body = answer.status, answer.fields, answer.body
        return write_answer(
            request.client.transport,
            status,
            extra,
            body,
            keep_alive=not is_last,
            is_head_request=request.method == "HEAD",
        )

    def refuse_head(self, client: ClientConnection, error: ProxyError) -> Settled:
        """Refuse what never became a request."""
        answer = refusal(error, DIALECTS["openai"])
        return write_answer(
            client.transport, answer.status, answer.fields, answer.body, keep_alive=False, is_head_request=False
        )

    async def _reply(self, method: str, path: str) -> _Reply:
        stream_id = path.removeprefix("/admin/streams/")
        if stream_id != path:
            if method != "DELETE":
                raise MethodNotAllowedError("DELETE")
            if not await self._view.stop(stream_id):
                raise NotFoundError("No such stream is running.")
            return 204, _JSON, b""
        if path not in _PATHS:
            raise NotFoundError
        if method not in {"GET", "HEAD"}:
            raise MethodNotAllowedError("GET, HEAD")
        if path == "/metrics":
            return 200, names.CONTENT_TYPE.encode(), await self._view.metrics()
        if path == "/admin/streams":
            return 200, _JSON, orjson.dumps({"streams": await self._view.streams()})
        # The public listener speaks for its worker; this one for all of them.
        reply = None if path == "/readyz" else self._health.reply(path)
        return readiness(await self._view.problems()) if reply is None else reply
