"""The operator's listener: metrics, the live streams, health. Health is answered on the public listener as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from proxy import metrics as names
from proxy.dialects import DIALECTS
from proxy.errors import InvalidRequestError, MethodNotAllowedError, NotFoundError, ProxyError, refusal
from proxy.exchange import Ending
from proxy.phases.answer import Settled, write_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.clocks import Clocks
    from proxy.metrics import Metrics
    from proxy.phases.accept import ClientConnection, Incoming
    from proxy.pipeline import Pipeline

_JSON = b"application/json"
_Reply = tuple[int, bytes, bytes]


class Health:
    """What `/healthz` and `/readyz` say: alive, and able to serve a request that arrives now."""

    def __init__(self, problems: Callable[[], dict[str, list[str]]]) -> None:
        """`problems` gives the reasons against being ready under `reasons`, and under others what only limps."""
        self._problems = problems

    def reply(self, path: str) -> _Reply | None:
        """The answer of either path, None for any other."""
        if path == "/healthz":
            return 200, _JSON, b'{"status":"ok"}'
        if path != "/readyz":
            return None
        problems = self._problems()
        is_ready = not problems["reasons"]
        body = orjson.dumps({"status": "ready" if is_ready else "unready", **problems})
        return (200 if is_ready else 503), _JSON, body


class Admin:
    """Serves the operator's listener; no credential, so it listens on loopback unless told otherwise."""

    def __init__(self, pipeline: Pipeline, metrics: Metrics, health: Health, clocks: Clocks) -> None:
        self._pipeline = pipeline
        self._metrics = metrics
        self._health = health
        self._clocks = clocks

    async def handle(self, request: Incoming) -> Settled:
        """Answer one request; bodies are not read."""
        path = request.target.partition(b"?")[0].decode("latin-1")
        is_last = request.is_last or not request.content.is_eof()
        extra: tuple[tuple[bytes, bytes], ...] = ()
        try:
            status, content_type, body = self._reply(request.method, path)
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

    def _reply(self, method: str, path: str) -> _Reply:
        is_read = method in {"GET", "HEAD"}
        stream_id = path.removeprefix("/admin/streams/")
        if stream_id != path:
            if method != "DELETE":
                raise MethodNotAllowedError("DELETE")
            if not stream_id:
                raise InvalidRequestError("An id is required.")
            if not self._pipeline.interrupt(Ending.STOPPED, stream_id):
                raise NotFoundError("No such stream is running.")
            return 204, _JSON, b""
        reply = self._health.reply(path)
        if reply is None and path == "/metrics":
            reply = 200, names.CONTENT_TYPE.encode(), self._metrics.render()
        elif reply is None and path == "/admin/streams":
            reply = 200, _JSON, self._streams()
        if reply is None:
            raise NotFoundError
        if not is_read:
            raise MethodNotAllowedError("GET, HEAD")
        return reply

    def _streams(self) -> bytes:
        now_s = self._clocks.now()
        return orjson.dumps(
            {
                "streams": [
                    {
                        "id": exchange.id,
                        "issuer": None if exchange.principal is None else exchange.principal.issuer,
                        "user": None if exchange.principal is None else exchange.principal.user,
                        "plan": None if exchange.principal is None else exchange.principal.plan.name,
                        "upstream": exchange.upstream,
                        "method": exchange.method,
                        "path": exchange.path,
                        "status": exchange.status,
                        "age_s": round(now_s - exchange.started_s, 3),
                        "bytes": bytes_,
                        "events": events,
                    }
                    for exchange, bytes_, events in self._pipeline.live()
                ]
            }
        )
