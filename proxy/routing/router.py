"""Chooses a request's upstream, and makes the exact target, fields and body that are sent to it.

What the head decides is decided before the body is read (`by_head`), the rest after (`at_once`, else `by_body`). The
path that is matched against the rules is the path that is sent, byte for byte. Nothing here waits; what takes longer
for larger bodies is done in steps.
"""

from __future__ import annotations

import re
from fnmatch import translate
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.auth import strip_query
from proxy.dialects import DEFAULT_DIALECT
from proxy.errors import (
    InvalidRequestError,
    MissingTokenError,
    NotFoundError,
    ProxyError,
    UnknownUpstreamError,
    UnsupportedMediaTypeError,
    UpstreamOffError,
)
from proxy.model import TYPED_NAMES
from proxy.protocol.content_codings import decode, read_codings
from proxy.protocol.envelope import RoutingMembers, find_envelope, parse_plain, read_body, read_passcode
from proxy.protocol.header_fields import is_loop, to_upstream
from proxy.protocol.model_member import replace_model
from proxy.protocol.paths import is_query, query_members, with_query, without_member
from proxy.routing.envelopes import route_envelope
from proxy.routing.model_routes import OFF_RETRY_S, RouteChoices
from proxy.routing.served_paths import FRONT, MODELS, SHORT, check_path_and_method
from proxy.routing.upstream_routes import UpstreamRoute, check_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.failover import UpstreamState
    from proxy.model import Principal, RequestHead, Route, RouteTarget, Upstream
    from proxy.protocol.json_text import JsonText, Steps
    from proxy.routing.envelopes import EnvelopeRules
    from proxy.routing.model_routes import ModelRoute

# The member of a query that asks for typed events.
_TYPED: Final = (b"events", b"typed")
# Longer names are no models of anybody's, and globs are not to be tried on them.
_MAX_MODEL: Final = 512


class Destination(NamedTuple):
    """Where a request's head sends it; `upstream` is None where only the body decides.

    `path` is below the upstream's url, None for `POST /forward-sse`: there the upstream's own default applies. `query`
    is what is left of it without the proxy's own parameters; credentials are still in it. `is_typed`: the client asks
    for typed events.
    """

    dialect_name: str
    upstream: Upstream | None = None
    path: bytes | None = None
    query: bytes | None = None
    is_typed: bool = False

    @property
    def may_be_envelope(self) -> bool:
        """Whether the body may turn out to be an envelope."""
        return self.path is None


_NO_STATES: Final[Mapping[str, UpstreamState]] = MappingProxyType({})
_TOLD_BY_BODY: Final = Destination(DEFAULT_DIALECT)
_NO_MEMBERS: Final = RoutingMembers()


class Router:
    """The routes of one configuration."""

    def __init__(
        self,
        *,
        upstreams: Mapping[str, Upstream],
        default_upstream: str | None,
        envelope: EnvelopeRules | None,
        max_body_bytes: int,
        routes: Sequence[ModelRoute] = (),
        states: Mapping[str, UpstreamState] = _NO_STATES,
    ) -> None:
        """`states` are those of the upstreams, all of which routes need."""
        self._routes = routes
        self._states = states
        self._upstreams = {name.encode(): upstream for name, upstream in upstreams.items()}
        self._default = None if default_upstream is None else upstreams[default_upstream]
        self._envelope = envelope
        self._max_body_bytes = max_body_bytes
        # In the file's order. Vendors' model names are case-sensitive, so the globs are.
        self._models = [
            (re.compile(translate(glob)).match, upstream.name)
            for upstream in upstreams.values()
            for glob in upstream.models
        ]
        self._upstream_routes = {name: UpstreamRoute(upstream) for name, upstream in upstreams.items()}
        # Whether a vendor's body is ever more than read: renamed, or made to ask for usage.
        self._changes_bodies = bool(routes) or any(upstream.asks_usage for upstream in upstreams.values())

    def dialect_name(self, head: RequestHead) -> str:
        """The dialect in which a request is refused, whatever else is wrong with it; never raises."""
        if head.path in SHORT:
            return SHORT[head.path]
        if head.path == MODELS:
            return DEFAULT_DIALECT if self._default is None else self._default.dialect
        if head.path == FRONT:
            named = self._named(head)
            upstream = self._upstreams.get(named[0]) if len(named) == 1 else None
        else:
            upstream = self._upstreams.get(head.path[1:].partition(b"/")[0])
        return DEFAULT_DIALECT if upstream is None else upstream.dialect

    def by_head(self, head: RequestHead) -> Destination:
        """Decide what the head decides.

        Raises:
            NotFoundError, MethodNotAllowedError: nothing is served here, or not with this method.
            UnknownUpstreamError, PathNotAllowedError: no such upstream, or not this of it.
            InvalidRequestError: a loop, a malformed query, two upstreams, or typed events of a dialect without them.
        """
        path, query, is_typed = head.path, head.query, False
        is_silent = query is None and b"x-upstream" not in head.index and b"via" not in head.index
        if is_silent and path == FRONT and head.method == "POST":
            # Nothing left to judge, as in most requests.
            return _TOLD_BY_BODY
        check_path_and_method(head)
        if is_loop(head.index):
            raise InvalidRequestError("The request has been through this proxy before.")
        if query is not None:
            if not is_query(query):
                raise InvalidRequestError("The query is malformed.")
            is_typed = _TYPED in query_members(query)
            if is_typed:
                # Any other value of `events` is the vendor's own parameter.
                query = without_member(query, *_TYPED)
        if path in SHORT:
            return Destination(SHORT[path], None, path, query, is_typed)
        if path == FRONT:
            upstream = self._front_upstream(head)
            query = without_member(query, b"upstream")
            if upstream is None:
                return Destination(DEFAULT_DIALECT, None, None, query, is_typed)
            upstream_route, path_below = self._upstream_routes[upstream.name], None
        elif path == MODELS:
            upstream, path_below = self._models_below(head.method)
            upstream_route = self._upstream_routes[upstream.name]
        else:
            name, _, rest = path[1:].partition(b"/")
            if name not in self._upstreams:
                raise UnknownUpstreamError
            upstream, path_below = self._upstreams[name], b"/" + rest
            upstream_route = self._upstream_routes[upstream.name]
            upstream_route.check_path(head.method, path_below)
        if is_typed:
            upstream_route.typed_names()
        return Destination(upstream.dialect, upstream, path_below, query, is_typed)

    def typed_names(self, head: RequestHead) -> Mapping[str, str | int]:
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
            check_plan(destination.upstream.name, principal)

    def read_members(self, destination: Destination, head: RequestHead, body: bytes) -> Steps[RoutingMembers]:
        """Read what routing needs of the body, and nothing where it needs nothing.

        Where an upstream is named, a body that cannot be read is no envelope, and the vendor's to judge.

        Raises:
            InvalidRequestError: the body cannot be read, or is ambiguous.
            BodyTooLargeError: without its content coding it is larger than a body may be.
            UnsupportedMediaTypeError: its content coding is not known.
        """
        if destination.upstream is not None and destination.path is not None:
            return _NO_MEMBERS
        if destination.upstream is not None:
            return (yield from self.read_envelope(head, body))
        text: JsonText = body
        if b"content-encoding" in head.index:
            text = yield from self._decoded(head, body)
        return (yield from read_body(text))

    def read_envelope(self, head: RequestHead, body: bytes) -> Steps[RoutingMembers]:
        """Read the body where it is an envelope, and nothing of it where it is anything else, readable or not.

        Raises:
            InvalidRequestError: it is an envelope that is ambiguous.
        """
        text: JsonText = body
        if b"content-encoding" in head.index:
            try:
                text = yield from self._decoded(head, body)
            except ProxyError:
                return _NO_MEMBERS
        return RoutingMembers(envelope=(yield from find_envelope(text)))

    def _decoded(self, head: RequestHead, body: bytes) -> Steps[JsonText]:
        codings = read_codings(head.index.every(b"content-encoding"))
        return decode(body, codings, max_bytes=self._max_body_bytes)

    def passcode(self, members: RoutingMembers) -> str:
        """The credential inside an envelope, for where no header carries one.

        Raises:
            MissingTokenError: the body is not an envelope with a passcode.
        """
        passcode = None if members.envelope is None else read_passcode(members.envelope)
        if not passcode:
            raise MissingTokenError
        return passcode

    def at_once(self, destination: Destination, head: RequestHead, body: bytes, principal: Principal) -> Route | None:
        """Decide the rest where that takes no steps, as for most requests; None where `by_body` has to.

        Raises:
            ProxyError: as `by_body` says.
        """
        if self._changes_bodies:
            return None
        upstream = destination.upstream
        if upstream is not None:
            request = (destination, head, body, principal, None)
            return None if destination.may_be_envelope else self._to_upstream(upstream.name, *request)
        if b"content-encoding" in head.index:
            return None
        members = parse_plain(body, envelopes=self._envelope is not None)
        if members is None:
            return None
        model = members.get("model")
        return self._to_upstream(self._by_model(model), destination, head, body, principal, model)

    def by_body(
        self,
        destination: Destination,
        head: RequestHead,
        body: bytes,
        principal: Principal,
        members: RoutingMembers | None = None,
    ) -> Steps[Route]:
        """Decide the rest, and make the route. The body is read only where something hangs on it.

        `members` is what `read_envelope` found, where that was asked for before.

        Raises:
            InvalidRequestError: the body cannot be read where routing needs it, or is no valid envelope.
            BodyTooLargeError, UnsupportedMediaTypeError: as `read_members` says.
            NotFoundError: the upstream has no default path, and none was asked for.
            UpstreamOffError: an operator has turned it off, or all upstreams of a route.
            UnknownUpstreamError, UpstreamNotAllowedError, PathNotAllowedError, TargetNotAllowedError: as they say.
        """
        _, upstream, path, _, is_typed = destination
        if members is None:
            members = yield from self.read_members(destination, head, body)
        if members.envelope is not None and path is None:
            route = yield from route_envelope(
                self._envelope, self._upstream_routes, head, members.envelope, principal, is_typed=is_typed
            )
            self._check_on(route.upstream)
            return route
        if upstream is None and self._routes and (found := self._route_of(members.model)) is not None:
            request = (destination, head, body, principal, members.model)
            return (
                yield from RouteChoices(found, self._states, lambda target: self._to_target(target, *request)).first()
            )
        name = self._by_model(members.model) if upstream is None else upstream.name
        route = self._to_upstream(name, destination, head, body, principal, members.model)
        upstream_route = self._upstream_routes[name]
        return (yield from upstream_route.asking_usage(route)) if upstream_route.asks_usage else route

    def _to_upstream(
        self,
        name: str,
        destination: Destination,
        head: RequestHead,
        body: bytes,
        principal: Principal,
        model: str | None,
    ) -> Route:
        """Make the request to an upstream, where it may go there; `model` is the body's, where that was read."""
        _, upstream, path, query, is_typed = destination
        upstream_route = self._upstream_routes[name]
        check_plan(name, principal)
        self._check_on(name)
        is_front = path is None
        if query is not None:
            query = strip_query(query, query_key=upstream_route.dialect.query_credential)
        if path is None:
            target = upstream_route.front_target(query)
        else:
            if upstream is None:  # else `by_head` has checked it
                path = upstream_route.below(path)
                upstream_route.check_path(head.method, path)
            target = with_query(upstream_route.base_path + path, query)
        added = upstream_route.added(head, is_front=is_front)
        fields = to_upstream(head.fields, head.index, added)
        return upstream_route.route(
            head.method,
            target,
            fields,
            body,
            upstream_route.typed_names() if is_typed else upstream_route.unasked_names,
            # A body in a content coding names no model to who reads it as it is.
            None if b"content-encoding" in head.index else model,
        )

    def _to_target(
        self,
        target: RouteTarget,
        destination: Destination,
        head: RequestHead,
        body: bytes,
        principal: Principal,
        model: str | None,
    ) -> Steps[Route]:
        """Make the request to a route's target, with the target's own model where it has one."""
        if target.model is not None:
            if read_codings(head.index.every(b"content-encoding")):
                # It would have to be coded again, and be other bytes than the client's.
                raise UnsupportedMediaTypeError(
                    "This model is renamed on its way: its requests must not be compressed."
                )
            body = bytes((yield from replace_model(body, target.model)))
        route = self._to_upstream(target.upstream, destination, head, body, principal, target.model or model)
        upstream_route = self._upstream_routes[target.upstream]
        return (yield from upstream_route.asking_usage(route)) if upstream_route.asks_usage else route

    def _check_on(self, name: str) -> None:
        """Refuse what an operator has turned off.

        Raises:
            UpstreamOffError: it is off.
        """
        state = self._states.get(name)
        if state is not None and state.is_off:
            raise UpstreamOffError(retry_after_s=OFF_RETRY_S)

    def _route_of(self, model: str | None) -> ModelRoute | None:
        """The first of the operator's routes that is for this model."""
        if model is None or len(model) > _MAX_MODEL:
            return None
        return next((route for route in self._routes if route.matches(model)), None)

    def _named(self, head: RequestHead) -> list[bytes]:
        """The upstreams that `POST /forward-sse` names: by its query, else by its field."""
        if head.query is not None:
            named = [value for name, value in query_members(head.query) if name == b"upstream"]
            if named:
                return named
        return [value.strip(b" \t") for value in head.index.every(b"x-upstream")]

    def _models_below(self, method: str) -> tuple[Upstream, bytes]:
        """The default upstream, and the path of its list of models."""
        upstream = self._default
        if upstream is None:
            raise UnknownUpstreamError("There is no default upstream whose models could be listed.")
        upstream_route = self._upstream_routes[upstream.name]
        if upstream_route.models_path is None:
            raise NotFoundError("The default upstream lists no models.")
        upstream_route.check_path(method, upstream_route.models_path)
        return upstream, upstream_route.models_path

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

    def _by_model(self, model: str | None) -> str:
        """The name of the upstream that has the model, or of the default."""
        if model is not None:
            if len(model) > _MAX_MODEL:
                raise InvalidRequestError("model must be the name of a model.")
            for matches, name in self._models:
                if matches(model):
                    return name
        if self._default is None:
            raise UnknownUpstreamError("No upstream serves this model.")
        return self._default.name
