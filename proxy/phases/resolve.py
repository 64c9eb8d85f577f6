"""Resolve: which upstream a request is for, and the exact bytes that go there.

What the head decides is decided before the body is read (`by_head`), the rest after (`by_body`). The path that is
matched against the rules is the path that is sent, byte for byte. Nothing here waits.
"""

from __future__ import annotations

import itertools
import re
from copy import copy
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import translate
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

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
from proxy.exchange import TYPED_NAMES, FieldIndex, Route, Timeouts
from proxy.protocol.envelope import Envelope, find_envelope, parse_envelope, read_json_object
from proxy.protocol.fields import CREDENTIALS, Added, fold, is_loop, single, to_upstream
from proxy.protocol.paths import is_query, parse_target, query_members, with_query, without_member

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    from proxy.dialects import Dialect
    from proxy.errors import Field
    from proxy.exchange import Principal, RequestHead, Upstream
    from proxy.protocol.paths import Target, TargetPattern

_FRONT: Final = b"/forward-sse"
# The paths that stock SDKs of two vendors call below a bare base URL, and whose SDKs they are.
_SHORT: Final = {b"/v1/chat/completions": "openai", b"/v1/responses": "openai", b"/v1/messages": "anthropic"}
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
# The label of logs and metrics for targets that belong to no upstream; a plan that names its upstreams must name it.
ENVELOPE: Final = "envelope"
# The member of a query that asks for typed events.
_TYPED: Final = (b"events", b"typed")
_NOT_READABLE: Final = "Typed events are made of a vendor's dialect, and this upstream has none."
_ACCEPT: Final[Field] = (b"Accept", b"text/event-stream")
_JSON: Final[Field] = (b"Content-Type", b"application/json")
# Those of an envelope's fields that are for its target; the others of the kind are for proxies.
_TARGET_CREDENTIALS: Final = CREDENTIALS - {b"proxy-authorization", b"x-upstream-authorization"}
# Longer names are no models of anybody's, and globs are not to be tried on them.
_MAX_MODEL: Final = 512
# Shorter strings are no secrets, and occur in values by chance.
_MIN_CREDENTIAL: Final = 8


class Kind(StrEnum):
    """Which of the proxy's doors a request came through."""

    FRONT = "front"
    SHORT = "short"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class EnvelopeRules:
    """Which targets an envelope may name, in the file's order, and the clocks of those without an upstream."""

    targets: tuple[tuple[TargetPattern, str | None], ...]
    timeouts: Timeouts = field(default_factory=Timeouts)


class Destination(NamedTuple):
    """What the head says about where a request goes; `upstream` is None where only the body can tell.

    `path` is below the upstream's url, None where the upstream's own default applies. `query` is what is left of it
    without the proxy's own parameters; credentials are still in it. `is_typed`: the client asks for typed events.
    """

    kind: Kind
    dialect_name: str
    upstream: Upstream | None = None
    path: bytes | None = None
    query: bytes | None = None
    is_typed: bool = False

    @property
    def may_be_envelope(self) -> bool:
        """Whether the body may turn out to be an envelope."""
        return self.kind is Kind.FRONT


class _Either:
    """The names of two."""

    __slots__ = ("_both",)

    def __init__(self, *both: Container[bytes]) -> None:
        self._both = both

    def __contains__(self, name: object) -> bool:
        return any(name in names for names in self._both)


class Router:
    """The routes of one configuration. Keeps no state but whose turn it is among an upstream's keys."""

    def __init__(
        self, *, upstreams: Mapping[str, Upstream], default_upstream: str | None, envelope: EnvelopeRules | None
    ) -> None:
        self._upstreams = {name.encode(): upstream for name, upstream in upstreams.items()}
        self._default = None if default_upstream is None else upstreams[default_upstream]
        self._envelope = envelope
        # In the file's order. Vendors' model names are case-sensitive, so the globs are.
        self._models = [
            (re.compile(translate(glob)), upstream) for upstream in upstreams.values() for glob in upstream.models
        ]
        self._default_paths = {
            name: None if path is None else path.encode()
            for name, upstream in upstreams.items()
            for path in [upstream.path or DIALECTS[upstream.dialect].default_path]
        }
        # What is added for each key of an upstream, in turn.
        self._own: dict[str, Iterator[Added]] = {
            name: itertools.cycle(
                [_added(upstream, DIALECTS[upstream.dialect].credential_field(key)) for key in upstream.keys]
            )
            for name, upstream in upstreams.items()
        }

    def rehearsal(self) -> Router:
        """The same router for requests that are not sent yet: refuses alike, takes no key's turn, gives no key away."""
        router = copy(self)
        router._own = dict.fromkeys(self._own, itertools.repeat(Added()))  # noqa: SLF001 - its own kind
        return router

    def dialect_name(self, head: RequestHead) -> str:
        """The dialect in which a request is refused, whatever else is wrong with it; never raises."""
        if head.path == _FRONT:
            named = self._named(head)
            upstream = self._upstreams.get(named[0]) if len(named) == 1 else None
        else:
            upstream = self._upstreams.get(head.path[1:].partition(b"/")[0])
        return _SHORT.get(head.path, "openai") if upstream is None else upstream.dialect

    def by_head(self, head: RequestHead, dialect_name: str | None = None) -> Destination:
        """Decide what the head decides; `dialect_name` is what the method of that name gave, where it was asked.

        Raises:
            NotFoundError, MethodNotAllowedError: nothing is served here, or not with this method.
            UnknownUpstreamError, PathNotAllowedError: no such upstream, or not this of it.
            InvalidRequestError: a loop, a malformed query, two upstreams, or typed events of a dialect without them.
        """
        path = head.path
        if path == _FRONT or path in _SHORT:
            if head.method != "POST":
                raise MethodNotAllowedError("POST")
        elif path.startswith((_FRONT + b"/", b"//")) or path.count(b"/") < 2:  # noqa: PLR2004 - /{upstream}/{path}
            raise NotFoundError
        elif head.method not in _METHODS:
            raise MethodNotAllowedError(", ".join(_METHODS))
        if is_loop(head.index):
            raise InvalidRequestError("The request has been through this proxy before.")
        name = self.dialect_name(head) if dialect_name is None else dialect_name
        query, is_typed = head.query, False
        if query is not None:
            if not is_query(query):
                raise InvalidRequestError("The query is malformed.")
            is_typed = _TYPED in query_members(query)
            if is_typed:
                # Any other value of `events` is the vendor's own parameter.
                query = without_member(query, *_TYPED)
        if path == _FRONT:
            upstream = self._front_upstream(head)
            _check_typed(upstream, is_typed=is_typed)
            return Destination(Kind.FRONT, name, upstream, None, without_member(query, b"upstream"), is_typed)
        if path in _SHORT:
            return Destination(Kind.SHORT, name, None, path, query, is_typed)
        first, _, rest = path[1:].partition(b"/")
        upstream = self._upstreams.get(first)
        if upstream is None:
            raise UnknownUpstreamError
        _check_path(upstream, head.method, b"/" + rest)
        _check_typed(upstream, is_typed=is_typed)
        return Destination(Kind.DIRECT, name, upstream, b"/" + rest, query, is_typed)

    def typed_names(self, head: RequestHead) -> Mapping[str, str]:
        """What typed events are called in answers to `POST /forward-sse`, as far as the head tells; never raises."""
        named = self._named(head)
        upstream = self._upstreams.get(named[0]) if len(named) == 1 else self._default
        return TYPED_NAMES if upstream is None else upstream.typed_names

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
            InvalidRequestError: it is an ambiguous one.
        """
        members = find_envelope(body)
        passcode = None if members is None else members.get("passcode")
        if not isinstance(passcode, str) or not passcode:
            raise MissingTokenError
        return passcode

    def by_body(self, destination: Destination, head: RequestHead, body: bytes, principal: Principal) -> Route:
        """Decide the rest, and make the route. The body is read only where something hangs on it.

        Raises:
            InvalidRequestError: the body cannot be read where routing needs it, or is no valid envelope.
            NotFoundError: the upstream has no default path, and none was asked for.
            UnknownUpstreamError, UpstreamNotAllowedError, PathNotAllowedError, TargetNotAllowedError: as they say.
        """
        upstream = destination.upstream
        members: dict[str, Any] | None = None
        if upstream is None:
            members = read_json_object(body)
        elif destination.kind is Kind.FRONT:
            members = find_envelope(body)
        if destination.kind is Kind.FRONT and members is not None and "targetUrl" in members:
            return self._by_envelope(destination, head, members, principal)
        if upstream is None:
            assert members is not None
            upstream = self._by_model(members)
        _check_plan(upstream.name, principal)
        dialect = DIALECTS[upstream.dialect]
        path = destination.path
        if path is None:
            path = self._default_paths[upstream.name]
            if path is None:
                raise NotFoundError("This upstream has no default path: ask for one below its name.")
        if destination.kind is not Kind.DIRECT:  # else `by_head` has checked it
            _check_path(upstream, head.method, path)
        added = self._added(upstream, dialect, head)
        if destination.kind is Kind.FRONT:
            added = added.under(dialect.extra_fields(path, _Either(head.index, added.names)))
        query = strip_query(destination.query, gemini=dialect.query_credential)
        line = with_query(upstream.base_path.encode() + path, query)
        fields = to_upstream(head.fields, head.index, added)
        typed_names = _typed_names(upstream, destination)
        return _route(upstream, dialect, head.method, line, fields, body, typed_names=typed_names)

    def _named(self, head: RequestHead) -> list[bytes]:
        """The upstreams that `POST /forward-sse` names: by its query, else by its field."""
        if head.query is not None:
            named = [value for name, value in query_members(head.query) if name == b"upstream"]
            if named:
                return named
        return [value.strip(b" \t") for value in head.index.every(b"x-upstream")]

    def _front_upstream(self, head: RequestHead) -> Upstream | None:
        named = self._named(head)
        if len(named) > 1:
            raise InvalidRequestError("More than one upstream is named.")
        if not named:
            return None
        upstream = self._upstreams.get(named[0])
        if upstream is None:
            raise UnknownUpstreamError
        return upstream

    def _by_model(self, members: dict[str, Any]) -> Upstream:
        model = members.get("model")
        if model is not None and (not isinstance(model, str) or len(model) > _MAX_MODEL):
            raise InvalidRequestError("model must be the name of a model.")
        if model is not None:
            for glob, upstream in self._models:
                if glob.match(model):
                    return upstream
        if self._default is None:
            raise UnknownUpstreamError("No upstream serves this model.")
        return self._default

    def _added(self, upstream: Upstream, dialect: Dialect, head: RequestHead) -> Added:
        """What is ours to add: the vendor's credential and the operator's headers."""
        if upstream.key_source == "own":
            return next(self._own[upstream.name])
        if upstream.key_source == "none":
            return Added(upstream.headers)
        given = [value.strip(b" \t") for value in head.index.every(b"x-upstream-authorization")]
        if len(given) != 1 or not given[0] or _is_own_credential(given[0], head):
            raise InvalidRequestError("This upstream needs the vendor's own key in X-Upstream-Authorization.")
        return _added(upstream, dialect.client_credential_field(given[0]))

    def _by_envelope(
        self, destination: Destination, head: RequestHead, members: dict[str, Any], principal: Principal
    ) -> Route:
        if self._envelope is None:
            raise TargetNotAllowedError
        envelope = parse_envelope(members)
        target = parse_target(envelope.target_url)
        if target.query is not None and not is_query(target.query):
            raise InvalidRequestError("targetUrl is malformed.")
        index = FieldIndex(envelope.fields)
        if is_loop(index):
            raise InvalidRequestError("The request has been through this proxy before.")
        entry = next((entry for entry in self._envelope.targets if entry[0].matches(target)), None)
        if entry is None:
            raise TargetNotAllowedError
        name = entry[1]
        _check_plan(ENVELOPE if name is None else name, principal)
        plain: tuple[Field, ...] = (_ACCEPT,)
        if envelope.has_json_body and single(envelope.fields, b"content-type") is None:
            plain = (_ACCEPT, _JSON)
        if name is not None:
            # Its key goes to the targets that the operator gave it, and nothing of the envelope's own beside it.
            upstream = self._upstreams[name.encode()]
            dialect = DIALECTS[upstream.dialect]
            added = self._added(upstream, dialect, head).under(plain)
            query = strip_query(target.query, gemini=dialect.query_credential)
            fields = to_upstream(envelope.fields, index, added)
            line = with_query(target.path, query)
            typed_names = _typed_names(upstream, destination)
            return _route(
                upstream, dialect, envelope.method, line, fields, envelope.body, target=target, typed_names=typed_names
            )
        if destination.is_typed:
            raise InvalidRequestError(_NOT_READABLE)
        if any(_is_own_credential(value, head, envelope) for _, value in envelope.fields):
            raise InvalidRequestError("The envelope's header repeats the credential that is meant for the proxy.")
        own = tuple(own_field for own_field in envelope.fields if fold(own_field[0]) in _TARGET_CREDENTIALS)
        return Route(
            upstream=ENVELOPE,
            dialect="raw",
            origin=target.origin,
            method=envelope.method,
            target=with_query(target.path, target.query),
            fields=to_upstream(envelope.fields, index, Added((*plain, *own))),
            body=envelope.body,
            timeouts=self._envelope.timeouts,
            is_pinned=True,
        )


def _route(
    upstream: Upstream,
    dialect: Dialect,
    method: str,
    line: bytes,
    fields: tuple[Field, ...],
    body: bytes,
    *,
    target: Target | None = None,
    typed_names: Mapping[str, str] | None,
) -> Route:
    return Route(
        upstream=upstream.name,
        dialect=upstream.dialect,
        origin=upstream.origin if target is None else target.origin,
        method=method,
        target=line,
        fields=fields,
        body=body,
        timeouts=upstream.timeouts,
        heartbeat_s=upstream.heartbeat_s if dialect.heartbeat_allowed else None,
        ca_file=upstream.ca_file,
        is_pinned=target is not None,
        typed_names=typed_names,
    )


def _check_typed(upstream: Upstream | None, *, is_typed: bool) -> None:
    if is_typed and upstream is not None and not DIALECTS[upstream.dialect].is_readable:
        raise InvalidRequestError(_NOT_READABLE)


def _typed_names(upstream: Upstream, destination: Destination) -> Mapping[str, str] | None:
    """What typed events are called, where the client or the operator wants them."""
    _check_typed(upstream, is_typed=destination.is_typed)
    return upstream.typed_names if destination.is_typed or upstream.is_typed else None


def _check_plan(name: str, principal: Principal) -> None:
    allowed = principal.plan.upstreams
    if allowed is not None and name not in allowed:
        raise UpstreamNotAllowedError


def _check_path(upstream: Upstream, method: str, path: bytes) -> None:
    dialect = DIALECTS[upstream.dialect]
    patterns = upstream.allow_paths
    if not patterns:
        # The path that the operator chose is allowed by having been chosen.
        patterns = dialect.default_allow_paths + (() if upstream.path is None else (upstream.path,))
    if not _allows(upstream.dialect, method, path, patterns):
        raise PathNotAllowedError


@lru_cache(maxsize=1024)
def _allows(dialect_name: str, method: str, path: bytes, patterns: tuple[str, ...]) -> bool:
    # Most requests ask for one of a few paths.
    return DIALECTS[dialect_name].allows(method, path, patterns)


def _added(upstream: Upstream, credential: Field) -> Added:
    """The credential and the operator's headers, which win where both have a name."""
    if fold(credential[0]) in {fold(name) for name, _ in upstream.headers}:
        return Added(upstream.headers)
    return Added((credential, *upstream.headers))


def _is_own_credential(value: bytes, head: RequestHead, envelope: Envelope | None = None) -> bool:
    """Whether a value that is about to leave holds what the caller may have authenticated with."""
    own = [given.strip().rpartition(b" ")[2] for name, given in head.fields if fold(name) in _TARGET_CREDENTIALS]
    own += [given for name, given in query_members(head.query) if name in {b"access_token", b"key"}]
    if envelope is not None and envelope.passcode is not None:
        own.append(envelope.passcode.encode())
    return any(len(secret) >= _MIN_CREDENTIAL and secret in value for secret in own)
