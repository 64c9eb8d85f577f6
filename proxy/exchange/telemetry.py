"""What telemetry is told of an exchange: its trace from its head on, its spans and its observations at its end.

Nothing is done here while a stream runs, and nothing at all where neither traces nor metrics are on. Spans never hold
content, a credential or a query; a user's name only where the operator has asked for it.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from proxy.dialects import DIALECTS
from proxy.dialects.operations import operation_of, provider_at
from proxy.dialects.told import Told
from proxy.model import Ending
from proxy.observability.gen_ai import Series, Traced
from proxy.observability.tracing import Asked, Event, Span
from proxy.protocol.header_fields import fold
from proxy.protocol.trace_context import TRACE_FIELDS, TRACEPARENT, TRACESTATE, read_traceparent, write_traceparent
from proxy.usage import usd_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from proxy.exchange.attempt import Attempt
    from proxy.exchange.exchange import Exchange
    from proxy.exchange.settle import Taken
    from proxy.model import FieldIndex, Principal, Route
    from proxy.observability.gen_ai import GenAiMetrics, Semconv
    from proxy.observability.tracing import Attributes, SpanSink, Trace, Tracer, Value
    from proxy.protocol.json_text import Steps
    from proxy.routing import Turns
    from proxy.usage import Figures

UserShown: TypeAlias = Literal["none", "hashed", "plain"]

_FIRST_BYTE: Final = "forward_sse.first_byte"
_END: Final = "forward_sse.end"
# The only attribute of the event that an exchange ended: made once for each ending, not for each span.
_ENDED: Final[Mapping[Ending, Attributes]] = {
    ending: MappingProxyType({"forward_sse.ending": str(ending)}) for ending in Ending
}
# Larger bodies are not read for what they ask: it would take as long as all the rest.
_MOST_READ: Final = 256 * 1024
_CLIENT_ERROR, _SERVER_ERROR = 400, 500
# Endings that are the service's failure, whatever the status was; by the HTTP conventions a client's are none.
_BROKEN: Final = frozenset(
    {
        Ending.UPSTREAM_CLOSED,
        Ending.TIMEOUT_CONNECT,
        Ending.TIMEOUT_FIRST_BYTE,
        Ending.TIMEOUT_IDLE,
        Ending.TIMEOUT_TOTAL,
        Ending.DRAINED,
    }
)
_OWN_PATHS: Final = frozenset(
    {"/forward-sse", "/forward-sse/echo", "/forward-sse/tickets", "/forward-sse/usage", "/playground"}
)
_STREAMS: Final = "/forward-sse/streams/"
# Vendors are few; those whom clients choose by an envelope take each other's place.
_provider_at = lru_cache(maxsize=256)(provider_at)


class Call(NamedTuple):
    """What is known of one request to a vendor as it is sent."""

    span_id: str
    operation: str | None
    provider: str
    model: str | None
    method: str
    host: str
    port: int


class Telemetry:
    """Tells one worker's tracer and metrics of its exchanges. Either may be missing."""

    def __init__(
        self,
        *,
        tracer: Tracer | None,
        spans: SpanSink | None,
        metrics: GenAiMetrics | None,
        user: UserShown = "none",
        user_key: bytes | None = None,
        semconv: Semconv = "1.41",
    ) -> None:
        self.tracer = tracer
        self._spans = spans
        self._metrics = metrics
        self._user = user
        # Copied for each user, which costs less than a key's two blocks each time.
        self._digest = hashlib.sha256() if user_key is None else hmac.new(user_key, digestmod="sha256")
        self._is_latest = semconv == "latest"

    async def send_on(self, exchange: Exchange, route: Route, attempt: Attempt, turns: Turns) -> Route:
        """Note a request to a vendor as a child of the exchange, and return the route with its fields about that.

        What the request asks for is read here, before its body is dropped; only where its trace is recorded.
        """
        trace, tracer = exchange.trace, self.tracer
        span_id = "" if tracer is None else tracer.new_id()
        is_sampled = trace is not None and trace.is_sampled
        if is_sampled or self._metrics is not None:
            attempt.call = _call(exchange, route, span_id)
        if trace is None:
            return route
        if is_sampled and exchange.meter is not None:
            exchange.meter.told = Told()
            if trace.asked is None and len(route.body) <= _MOST_READ:
                trace.asked = await turns.run(_read(route))
        fields = [field for field in route.fields if fold(field[0]) not in TRACE_FIELDS]
        fields.append((TRACEPARENT, write_traceparent(trace.trace_id, span_id, trace.flags)))
        if trace.state:
            fields.append((TRACESTATE, trace.state))
        return route._replace(fields=tuple(fields))

    def settled(self, exchange: Exchange, taken: Taken, now_s: float) -> None:
        """Make the spans of an exchange that has ended, and observe it; once for each. Does not wait."""
        trace = exchange.trace
        is_sampled = trace is not None and trace.is_sampled
        if self._metrics is not None:
            self._observe(exchange, taken.figures, now_s, self._metrics, trace if is_sampled else None)
        if trace is None or not is_sampled or self._spans is None:
            return
        made = _Made(exchange, taken, trace, now_s, is_latest=self._is_latest)
        self._spans.put([made.server(self._user_attributes(exchange.principal)), *made.clients()])

    def _user_attributes(self, principal: Principal | None) -> dict[str, Value]:
        if principal is None or self._user == "none":
            return {}
        if self._user == "plain":
            return {"enduser.id": principal.user}
        digest = self._digest.copy()
        digest.update(f"{principal.issuer}\0{principal.user}".encode("utf-8", "replace"))
        return {"enduser.pseudo.id": digest.hexdigest()[:32]}

    def _observe(
        self, exchange: Exchange, figures: Figures, now_s: float, metrics: GenAiMetrics, trace: Trace | None
    ) -> None:
        prices, at_s = exchange.rules.prices, time.time()
        series: Series | None = None
        for attempt in exchange.attempts:
            call = attempt.call
            if call is None or call.operation is None:
                series = None
                continue
            model = metrics.model_label(call.model, has_price=prices.is_known(call.model))
            series = Series(attempt.upstream, call.provider, call.operation, model)
            traced = None if trace is None else Traced(trace.trace_id, call.span_id, at_s)
            ended_s = now_s if attempt.ending is None else attempt.ended_s
            metrics.observe_operation(series, ended_s - attempt.begun_s, _error_of(attempt, exchange) or "", traced)
        # The last one's, whose answer the client has been given.
        if series is None or not exchange.is_answered:
            return
        traced = None if trace is None else Traced(trace.trace_id, trace.span_id, at_s)
        if figures.source == "reported":
            metrics.observe_tokens(
                series,
                input_=figures.input,
                output=figures.output,
                cached=figures.cached,
                cache_write=figures.cache_write,
                reasoning=figures.reasoning,
            )
        first_s, meter = exchange.first_byte_s, exchange.meter
        if first_s is None or meter is None or not meter.is_stream or exchange.ending is not Ending.COMPLETE:
            return
        metrics.observe_first_token(series, first_s - exchange.started_s, traced)
        if figures.source == "reported" and figures.output > 1:
            metrics.observe_output_token(series, (now_s - first_s) / (figures.output - 1), traced)


def begin_trace(exchange: Exchange, index: FieldIndex | None, request: web.BaseRequest | None) -> None:
    """Give an exchange its place in a trace: that of its caller, or a new one. Without tracing only the log has it."""
    telemetry = exchange.registry.telemetry
    if telemetry is None or telemetry.tracer is None:
        if index is not None and (parent := read_traceparent(index)) is not None:
            exchange.trace_ids = parent.trace_id, parent.span_id
        return
    trace = exchange.trace = telemetry.tracer.begin(index)
    exchange.trace_ids = trace.trace_id, trace.span_id
    if request is not None and trace.is_sampled:
        version = request.version
        trace.scheme, trace.version = request.scheme, f"{version.major}.{version.minor}"


class _Made:
    """The spans of one exchange, from what it has kept. Times are the loop's; spans want the world's."""

    def __init__(self, exchange: Exchange, taken: Taken, trace: Trace, now_s: float, *, is_latest: bool) -> None:
        self._exchange = exchange
        self._taken = taken
        self._trace = trace
        self._is_latest = is_latest
        self._now_s = now_s
        self._now_ns = time.time_ns()
        self._ending = exchange.ending or Ending.CLIENT_CLOSED
        first_s = exchange.first_byte_s
        self._first_byte = () if first_s is None else (Event(_FIRST_BYTE, self._at(first_s)),)
        # What the last request's span and the exchange's own share.
        attempts = exchange.attempts
        call = attempts[-1].call if attempts else None
        self._shared = {} if call is None else self._gen_ai(call, is_answered=exchange.is_answered)

    def server(self, user: dict[str, Value]) -> Span:
        """The exchange's own span, below its caller's."""
        exchange, trace, ending = self._exchange, self._trace, self._ending
        status, attempts = exchange.status, exchange.attempts
        route = _route_of(exchange)
        is_error = (status or 0) >= _SERVER_ERROR or ending in _BROKEN or self._is_error_inside(status)
        error = None
        if is_error:
            error = str(status) if status is not None and status >= _SERVER_ERROR else str(ending)
        attributes: dict[str, Value | None] = {
            "http.request.method": exchange.method or "_OTHER",
            "url.scheme": trace.scheme or None,
            "url.path": exchange.cut_path() or None,
            "http.route": route,
            "http.response.status_code": status,
            "network.protocol.name": "http" if trace.version else None,
            "network.protocol.version": trace.version or None,
            "client.address": str(exchange.client) if exchange.rules.logs_client and exchange.client else None,
            "error.type": error,
            "forward_sse.id": exchange.id,
            "forward_sse.ending": str(ending),
            "forward_sse.code": exchange.code,
            "forward_sse.reason": exchange.reason,
            "forward_sse.plan": None if exchange.principal is None else exchange.principal.plan.name,
            "forward_sse.upstream": exchange.upstream,
            "forward_sse.attempts": len(attempts),
            "forward_sse.bytes": exchange.bytes,
            "forward_sse.events": exchange.events,
            **user,
            **self._shared,
        }
        if self._taken.cost_nano is not None:
            attributes["forward_sse.cost_usd"] = float(usd_text(self._taken.cost_nano))
        # The members in their order: by name it would take three times as long (decision 33).
        return Span(
            trace.trace_id,
            trace.span_id,
            trace.parent_id,
            trace.flags,
            trace.state,
            f"{exchange.method or 'HTTP'} {route}" if route else exchange.method or "HTTP",
            True,  # noqa: FBT003 - `is_server`
            self._at(exchange.started_s),
            self._now_ns,
            attributes,
            (*self._first_byte, Event(_END, self._now_ns, _ENDED[ending])),
            (),
            is_error,
        )

    def clients(self) -> list[Span]:
        """A span for each request to a vendor, below the exchange's; each links to the one before it."""
        trace, spans = self._trace, list[Span]()
        last = len(self._exchange.attempts) - 1
        for number, attempt in enumerate(self._exchange.attempts):
            call = attempt.call
            if call is None:
                continue
            is_answered = number == last and self._exchange.is_answered
            ending = attempt.ending or self._ending
            error = _error_of(attempt, self._exchange)
            attributes: dict[str, Value | None] = {
                "http.request.method": call.method,
                "http.response.status_code": attempt.status,
                "http.request.resend_count": number or None,
                "server.address": call.host,
                "server.port": call.port,
                "error.type": error,
                "forward_sse.upstream": attempt.upstream,
                "forward_sse.key": attempt.key,
                "forward_sse.ending": str(ending),
                "forward_sse.reason": self._exchange.reason if attempt.ending is None else attempt.reason,
                **(self._shared if number == last else self._gen_ai(call, is_answered=False)),
            }
            ended_ns = self._now_ns if attempt.ending is None else self._at(attempt.ended_s)
            name = call.method
            if call.operation is not None:
                name = call.operation if call.model is None else f"{call.operation} {call.model}"
            first_byte = self._first_byte if is_answered and attempt.ending is None else ()
            links = (spans[-1].span_id,) if spans else ()
            spans.append(
                Span(
                    trace.trace_id,
                    call.span_id,
                    trace.span_id,
                    trace.flags,
                    trace.state,
                    name,
                    False,  # noqa: FBT003 - `is_server`
                    self._at(attempt.begun_s),
                    ended_ns,
                    attributes,
                    (*first_byte, Event(_END, ended_ns, _ENDED[ending])),
                    links,
                    error is not None,
                )
            )
        return spans

    def _gen_ai(self, call: Call, *, is_answered: bool) -> dict[str, Value | None]:
        """The attributes of the conventions for generative AI; what was answered only where it was."""
        if call.operation is None:
            return {"gen_ai.provider.name": call.provider}
        asked, meter, figures = self._trace.asked, self._exchange.meter, self._taken.figures
        attributes: dict[str, Value | None] = {
            "gen_ai.operation.name": call.operation,
            "gen_ai.provider.name": call.provider,
            "gen_ai.request.model": call.model,
            "gen_ai.request.stream": True if asked is not None and asked.is_stream else None,
            "gen_ai.request.max_tokens": None if asked is None else asked.max_tokens,
        }
        if not is_answered or meter is None:
            return attributes
        if meter.is_stream:
            attributes["gen_ai.request.stream"] = True
        if meter.told is not None:
            attributes["gen_ai.response.id"] = meter.told.id
            attributes["gen_ai.response.finish_reasons"] = meter.told.finish_reasons or None
        attributes["gen_ai.response.model"] = meter.counts.model
        first_s = self._exchange.first_byte_s
        if self._is_latest and first_s is not None and meter.is_stream:
            attributes["gen_ai.response.time_to_first_chunk"] = first_s - self._exchange.attempts[-1].begun_s
        if figures.source == "none":
            return attributes
        written = "cache_write" if self._is_latest else "cache_creation"
        attributes |= {
            "gen_ai.usage.input_tokens": figures.input,
            "gen_ai.usage.output_tokens": figures.output,
            "gen_ai.usage.cache_read.input_tokens": figures.cached or None,
            f"gen_ai.usage.{written}.input_tokens": figures.cache_write or None,
            "gen_ai.usage.reasoning.output_tokens": figures.reasoning or None,
            "forward_sse.usage": figures.source,
        }
        return attributes

    def _is_error_inside(self, status: int | None) -> bool:
        """Whether a vendor failed in a stream whose status was fine."""
        return self._ending is Ending.UPSTREAM_ERROR and (status is None or status < _CLIENT_ERROR)

    def _at(self, moment_s: float) -> int:
        # Whole microseconds: two moments that are one stay one.
        return self._now_ns - round((self._now_s - moment_s) * 1e6) * 1000


def _call(exchange: Exchange, route: Route, span_id: str) -> Call:
    origin = route.origin
    return Call(
        span_id,
        operation_of(route.target),
        _provider_at(origin.host) or DIALECTS[route.dialect].provider or route.upstream,
        None if exchange.meter is None else exchange.meter.model,
        route.method,
        origin.host,
        origin.port,
    )


def _read(route: Route) -> Steps[Asked]:
    dialect = DIALECTS[route.dialect]
    is_stream = yield from dialect.asks_for_stream(route.method, route.fields, route.body)
    return Asked(is_stream, (yield from dialect.output_bound(route.fields, route.body)))


def _error_of(attempt: Attempt, exchange: Exchange) -> str | None:
    """What went wrong with a request to a vendor: its status, or how it ended; None where the client ended it."""
    if attempt.status is not None and attempt.status >= _CLIENT_ERROR:
        return str(attempt.status)
    ending = attempt.ending or exchange.ending or Ending.CLIENT_CLOSED
    return str(ending) if ending in _BROKEN or ending is Ending.UPSTREAM_ERROR else None


def _route_of(exchange: Exchange) -> str | None:
    """The template of the request's path; None for a vendor's own paths, of which there are many."""
    path = exchange.path.removesuffix("/")
    if path in _OWN_PATHS:
        return path
    if path.startswith(_STREAMS):
        return f"{_STREAMS}{{id}}"
    if exchange.upstream is not None and path.startswith(f"/{exchange.upstream}/"):
        return f"/{exchange.upstream}/{{path}}"
    return None
