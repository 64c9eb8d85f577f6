"""Resolve: which upstream a request is for, and the exact bytes that go there.

What the head decides is decided before the body is read (`by_head`), the rest after (`by_body`). The path that is matched
against the rules is the path that is sent, byte for byte.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from fnmatch import translate
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote_to_bytes

from proxy.auth.credentials import strip_query
from proxy.dialects import DIALECTS
from proxy.errors import (
    InvalidRequestError,
    MethodNotAllowedError,
    MissingTokenError,
    NotFoundError,
    PathNotAllowedError,
    TargetNotAllowedError,
    UnknownUpstreamError,
    UpstreamNotAllowedError,
)
from proxy.exchange import Route, Timeouts
from proxy.protocol.envelope import Envelope, parse_envelope, read_json_object
from proxy.protocol.fields import CREDENTIALS, is_loop, single, to_upstream
from proxy.protocol.paths import Target, TargetPattern, is_allowed, is_query, parse_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from proxy.errors import Field
    from proxy.exchange import Principal, RequestHead, Upstream

FRONT = b"/forward-sse"
# The three paths that stock SDKs of two vendors call; the upstream is chosen by the body's `model`.
SHORT_PATHS = frozenset({b"/v1/chat/completions", b"/v1/responses", b"/v1/messages"})
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
_SEGMENTS = re.compile(rb"/([a-z0-9][a-z0-9_-]{0,62})(/.*)")
# The label of logs and metrics for targets that belong to no upstream.
ENVELOPE = "envelope"

# Those of an envelope's fields that are for its target; the others of the kind are for proxies.
_TARGET_CREDENTIALS = CREDENTIALS - {b"proxy-authorization", b"x-upstream-authorization"}

Kind = Literal["front", "short", "direct"]


@dataclass(frozen=True, slots=True)
class EnvelopeRules:
    """Which targets an envelope may name, in the file's order, and the clocks of those without an upstream."""

    targets: tuple[tuple[TargetPattern, str | None], ...]
    timeouts: Timeouts = Timeouts()


@dataclass(frozen=True, slots=True)
class Destination:
    """What the head says about where a request goes; `upstream` is None where only the body can tell.

    `path` is below the upstream's base, None where the upstream's own default applies.
    """

    kind: Kind
    upstream: Upstream | None
    path: bytes | None
    query: bytes | None

    @property
    def dialect_name(self) -> str:
        """The dialect that refusals are worded in."""
        if self.upstream is not None:
            return self.upstream.dialect
        return "anthropic" if self.path == b"/v1/messages" else "openai"

    @property
    def may_be_envelope(self) -> bool:
        """Whether the body may turn out to be an envelope."""
        return self.kind == "front"


class Router:
    """The routes of one configuration. Keeps no state but whose turn it is among an upstream's keys."""

    def __init__(
        self, *, upstreams: Mapping[str, Upstream], default_upstream: str | None, envelope: EnvelopeRules | None
    ) -> None:
        self._upstreams = upstreams
        self._default = None if default_upstream is None else upstreams[default_upstream]
        self._envelope = envelope
        # Vendors' model names are case-sensitive, so the globs are.
        self._models = [
            (re.compile(translate(glob)), upstream) for upstream in upstreams.values() for glob in upstream.models
        ]
        self._keys: dict[str, Iterator[str]] = {
            name: itertools.cycle(upstream.keys) for name, upstream in upstreams.items() if upstream.keys
        }

    def by_head(self, head: RequestHead) -> Destination:
        """What the head decides.

        Raises:
            NotFoundError, MethodNotAllowedError: nothing here, or not with this method.
            UnknownUpstreamError, InvalidRequestError: to be told to authenticated callers only.
        """
        path = head.path
        if path == FRONT:
            self._demand_post(head)
            return self._front(head)
        if path in SHORT_PATHS:
            self._demand_post(head)
            return Destination("short", None, path, head.query)
        match = _SEGMENTS.fullmatch(path)
        if match is None or path.startswith(FRONT + b"/"):
            raise NotFoundError
        if head.method not in METHODS:
            raise MethodNotAllowedError(", ".join(METHODS))
        upstream = self._upstreams.get(match[1].decode())
        if upstream is None:
            raise UnknownUpstreamError
        return Destination("direct", upstream, match[2], head.query)

    def check_head(self, destination: Destination, head: RequestHead) -> None:
        """Refuse early what the head asks and nobody gets; apart from `by_head` so that the dialect is known by then.

        Raises:
            InvalidRequestError: a loop, a malformed query, what this release does not do.
            PathNotAllowedError: the path is not on the upstream's list.
        """
        _refuse_unsupported(head)
        upstream, path = destination.upstream, destination.path
        if upstream is not None and path is not None and not is_allowed(path, upstream.allow_paths):
            raise PathNotAllowedError

    def check_plan(self, destination: Destination, principal: Principal) -> None:
        """Refuse early what the head decided and the plan forbids.

        Raises:
            UpstreamNotAllowedError: the plan does not include the upstream.
        """
        if destination.upstream is not None:
            _check_plan(destination.upstream.name, principal)

    def passcode(self, body: bytes) -> str:
        """The credential inside an envelope, for where no header carries one.

        Raises:
            MissingTokenError: the body is not an envelope with a passcode.
        """
        try:
            passcode = read_json_object(body).get("passcode")
        except InvalidRequestError as exc:
            raise MissingTokenError from exc
        if not isinstance(passcode, str) or not passcode:
            raise MissingTokenError
        return passcode

    def by_body(self, destination: Destination, head: RequestHead, body: bytes, principal: Principal) -> Route:
        """Decide the rest, and make the route.

        Raises:
            InvalidRequestError: the body cannot be read where routing needs it.
            UnknownUpstreamError, UpstreamNotAllowedError, PathNotAllowedError, TargetNotAllowedError: as they say.
        """
        upstream = destination.upstream
        if destination.kind == "front":
            members = _object(body) if upstream is not None else read_json_object(body)
            if members is not None and "targetUrl" in members:
                return self._enveloped(head, parse_envelope(body, members), principal)
            if upstream is None:
                assert members is not None
                upstream = self._by_model(members)
        elif upstream is None:
            upstream = self._by_model(read_json_object(body))
        _check_plan(upstream.name, principal)
        path = destination.path
        is_default = path is None
        if path is None:
            if upstream.path is None:
                raise NotFoundError("This upstream has no default path.")
            path = upstream.path.encode()
        if not is_allowed(path, upstream.allow_paths):
            raise PathNotAllowedError
        dialect = DIALECTS[upstream.dialect]
        query = strip_query(destination.query, gemini=dialect.query_credential)
        added = self._added(upstream, head)
        if is_default:
            added += dialect.extra_fields(path, {name.lower() for name, _ in head.fields})
        target = upstream.base_path.encode() + path
        return _route(upstream, head.method, _with_query(target, query), to_upstream(head.fields, added), body)

    def _front(self, head: RequestHead) -> Destination:
        members = _members(head.query)
        named = [value for name, value in members if name == b"upstream"]
        if not named:
            value = single(head.fields, b"x-upstream")
            named = [] if value is None else [value]
        if len(named) > 1:
            raise InvalidRequestError("More than one upstream is named.")
        upstream = None
        if named:
            upstream = self._upstreams.get(named[0].decode("latin-1"))
            if upstream is None:
                raise UnknownUpstreamError
        rest = _without(head.query, {b"upstream", b"events"})
        return Destination("front", upstream, None, rest)

    def _demand_post(self, head: RequestHead) -> None:
        if head.method != "POST":
            raise MethodNotAllowedError("POST")

    def _by_model(self, members: dict[str, Any]) -> Upstream:
        model = members.get("model")
        if isinstance(model, str):
            for glob, upstream in self._models:
                if glob.fullmatch(model):
                    return upstream
        if self._default is None:
            raise UnknownUpstreamError("No upstream serves this model.")
        return self._default

    def _added(self, upstream: Upstream, head: RequestHead) -> tuple[Field, ...]:
        """Our own fields: the vendor's key, and what the operator adds."""
        dialect = DIALECTS[upstream.dialect]
        if upstream.key_source == "none":
            return upstream.headers
        if upstream.key_source == "own":
            return (dialect.credential_field(next(self._keys[upstream.name])), *upstream.headers)
        value = single(head.fields, b"x-upstream-authorization")
        if not value:
            raise InvalidRequestError("This upstream needs the vendor's key in X-Upstream-Authorization.")
        if dialect.credential_prefix:
            return ((b"Authorization", value), *upstream.headers)
        key = value[7:] if value[:7].lower() == b"bearer " else value
        return ((dialect.credential_name, key), *upstream.headers)

    def _enveloped(self, head: RequestHead, envelope: Envelope, principal: Principal) -> Route:
        rules = self._envelope
        target = parse_target(envelope.target_url)
        matched = None if rules is None else next((entry for entry in rules.targets if entry[0].matches(target)), None)
        if rules is None or matched is None or (target.query is not None and not is_query(target.query)):
            raise TargetNotAllowedError
        accept: Field = (b"Accept", b"text/event-stream")
        if is_loop(envelope.fields):
            raise InvalidRequestError("The request has been through this proxy already.")
        line = _with_query(target.path, target.query)
        if matched[1] is not None:
            upstream = self._upstreams[matched[1]]
            _check_plan(upstream.name, principal)
            fields = to_upstream(envelope.fields, (accept, *self._added(upstream, head)))
            return _route(upstream, envelope.method, line, fields, envelope.body, target=target)
        # The envelope's own credential is for this target, and goes to it alone.
        own = tuple(field for field in envelope.fields if field[0].lower() in _TARGET_CREDENTIALS)
        return Route(
            upstream=ENVELOPE,
            dialect="raw",
            origin=target.origin,
            method=envelope.method,
            target=line,
            fields=tuple(to_upstream(envelope.fields, (accept, *own))),
            body=envelope.body,
            timeouts=rules.timeouts,
            is_pinned=True,
        )


def _route(
    upstream: Upstream, method: str, line: bytes, fields: Sequence[Field], body: bytes, *, target: Target | None = None
) -> Route:
    return Route(
        upstream=upstream.name,
        dialect=upstream.dialect,
        origin=upstream.origin if target is None else target.origin,
        method=method,
        target=line,
        fields=tuple(fields),
        body=body,
        timeouts=upstream.timeouts,
        heartbeat_s=upstream.heartbeat_s,
        ca_file=upstream.ca_file,
        is_pinned=target is not None,
    )


def _refuse_unsupported(head: RequestHead) -> None:
    if is_loop(head.fields):
        raise InvalidRequestError("The request has been through this proxy already.")
    if head.query is not None:
        if not is_query(head.query):
            raise InvalidRequestError("The query is malformed.")
        if any(name == b"events" and value == b"typed" for name, value in _members(head.query)):
            raise InvalidRequestError("Typed events are not part of this release.")


def _check_plan(name: str, principal: Principal) -> None:
    allowed = principal.plan.upstreams
    if allowed is not None and name not in allowed:
        raise UpstreamNotAllowedError


def _object(body: bytes) -> dict[str, Any] | None:
    """The body as an object where it is one; where the upstream is named it need not be."""
    try:
        return read_json_object(body)
    except InvalidRequestError:
        return None


def _with_query(path: bytes, query: bytes | None) -> bytes:
    return path if query is None else path + b"?" + query


def _members(query: bytes | None) -> list[tuple[bytes, bytes]]:
    if not query:
        return []
    pairs = (member.partition(b"=") for member in query.split(b"&"))
    return [(unquote_to_bytes(name), unquote_to_bytes(value)) for name, _, value in pairs]


def _without(query: bytes | None, names: set[bytes]) -> bytes | None:
    if not query:
        return None
    rest = [member for member in query.split(b"&") if unquote_to_bytes(member.partition(b"=")[0]) not in names]
    return b"&".join(rest) or None
