"""The route to each upstream: all that is the same for every request, computed once.

What may go to an upstream, and what is added to it, is known here; which upstream a request is for is the router's.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, NoReturn

from proxy.auth import repeats_credential
from proxy.dialects import DIALECTS
from proxy.errors import InvalidRequestError, NotFoundError, PathNotAllowedError, UpstreamNotAllowedError
from proxy.failover import credential_field
from proxy.model import Route
from proxy.protocol.header_fields import SERVER_CREDENTIALS, Added, fold
from proxy.protocol.paths import below, canonical_path, member_name, merge_queries, with_query

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.errors import Field
    from proxy.model import Principal, RequestHead, Upstream
    from proxy.protocol.json_text import Steps

# Longer than any vendor's path with a model's name in it.
_MAX_CACHED_PATH: Final = 256
NOT_READABLE: Final = "Typed events are made of a vendor's dialect, and this upstream has none."


class UpstreamRoute:
    """The route to one upstream. It has no state: with which of several keys a request goes, the attempts decide.

    `front_path` is where `POST /forward-sse` goes, below the upstream's url; None where it goes nowhere. `models_path`
    is where `GET /v1/models` goes; None where the vendor lists no models.
    `unasked_names` is what typed events are called where the operator wants them, else None. `asks_usage` says whether
    routes are to pass through `asking_usage`. `route` makes a route of
    what differs from request to request: method, target, fields, body, the names of typed events, and the body's model.
    """

    __slots__ = (
        "_added",
        "_default_path",
        "_front_names",
        "_front_query",
        "_has_extra_fields",
        "_patterns",
        "_upstream",
        "asks_usage",
        "base_path",
        "dialect",
        "front_path",
        "models_path",
        "name",
        "route",
        "unasked_names",
    )

    def __init__(self, upstream: Upstream) -> None:
        dialect = DIALECTS[upstream.dialect]
        self._upstream = upstream
        self.name = upstream.name
        self.dialect = dialect
        self.base_path = upstream.base_path.encode()
        default_path = below(upstream.base_path, dialect.default_path or "")
        path, _, query = (upstream.path or default_path).encode().partition(b"?")
        self._default_path = path or None
        self._front_query = query or None
        self._front_names = frozenset(member_name(member) for member in query.split(b"&"))
        # The path that the operator chose is allowed by having been chosen.
        chosen = () if upstream.path is None else (path.decode(),)
        patterns = (*dialect.default_allow_paths, *chosen) if upstream.allow_paths is None else upstream.allow_paths
        # What is matched is decoded, so that an operator may write a path as it is sent.
        self._patterns = tuple(canonical_path(pattern.encode()) or pattern for pattern in patterns)
        self.models_path = None if dialect.models_path is None else self.below(dialect.models_path.encode())
        self.front_path = path if path and _allows(dialect.name, "POST", path, self._patterns) else None
        # Which of them is added depends on the request; that there are none does not.
        self._has_extra_fields = bool(dialect.extra_fields(path, ()))
        self.unasked_names = upstream.typed_names if upstream.is_typed else None
        self.asks_usage = upstream.asks_usage
        # What is added with the first key, which the attempts replace; None where the client brings it.
        self._added: Added | None = None
        if upstream.key_source == "own":
            self._added = _added(upstream, credential_field(upstream, upstream.keys[0].encode()))
        elif upstream.key_source == "none":
            self._added = Added(upstream.headers)
        self.route = partial(
            Route,
            upstream.name,
            upstream.dialect,
            upstream.origin,
            upstream.origin.host_field,
            upstream.timeouts,
            upstream.heartbeat_s if dialect.heartbeat_allowed else None,
            upstream.way,
            _has_operators_key(upstream),
        )

    def raise_no_front_path(self) -> NoReturn:
        """Raise the error for a missing `front_path`.

        Raises:
            NotFoundError: there is no default path.
            PathNotAllowedError: the operator's own list does not let it pass.
        """
        if self._default_path is None:
            raise NotFoundError("This upstream has no default path: ask for one below its name.")
        raise PathNotAllowedError

    def check_path(self, method: str, path: bytes) -> None:
        """Refuse what the operator's list, or else the dialect's, does not let pass.

        Raises:
            PathNotAllowedError: the path, or the method on it.
        """
        # Long ones would fill the cache with what only one client asks for.
        allows = _allows if len(path) <= _MAX_CACHED_PATH else _allows.__wrapped__
        if not allows(self.dialect.name, method, path, self._patterns):
            raise PathNotAllowedError

    def below(self, path: bytes) -> bytes:
        """One of the proxy's own paths as it is asked for below the upstream's url, which may end in `/v1`."""
        return below(self.base_path.decode(), path.decode()).encode() if self.base_path else path

    def front_target(self, query: bytes | None) -> bytes:
        """The target of `POST /forward-sse`, with the caller's query: the operator's members come first, and win.

        Raises:
            NotFoundError, PathNotAllowedError: there is no `front_path`, as `raise_no_front_path` says.
        """
        target = self.base_path + (self.front_path or self.raise_no_front_path())
        if self._front_query is not None:
            query = merge_queries(self._front_query, self._front_names, query)
        return with_query(target, query)

    def typed_names(self) -> Mapping[str, str | int]:
        """What typed events are called here.

        Raises:
            InvalidRequestError: there are none of this dialect.
        """
        if not self.dialect.is_readable:
            raise InvalidRequestError(NOT_READABLE)
        return self._upstream.typed_names

    def asking_usage(self, route: Route) -> Steps[Route]:
        """Return the route with a body that asks for usage, or as it is where the body leaves no room for that."""
        body = yield from self.dialect.ask_usage(route.target, route.fields, route.body)
        return route if body is None else route._replace(body=body, asks_usage=True)

    def added(self, head: RequestHead, *, is_front: bool = False) -> Added:
        """What is ours to add: the vendor's credential, and the operator's headers.

        To `POST /forward-sse` also what its body alone cannot say to the vendor.

        Raises:
            InvalidRequestError: the client has to bring the credential, and does not.
        """
        added = self._added or self._of_client(head)
        if is_front and self._has_extra_fields and self.front_path is not None:
            added = added.under(self.dialect.extra_fields(self.front_path, {*head.index, *added.names}))
        return added

    def _of_client(self, head: RequestHead) -> Added:
        given = [value.strip(b" \t") for value in head.index.every(b"x-upstream-authorization")]
        if len(given) != 1 or not given[0] or repeats_credential(given, head):
            raise InvalidRequestError("This upstream needs the vendor's own key in X-Upstream-Authorization.")
        return _added(self._upstream, _client_credential(self._upstream, given[0]))


def check_plan(upstream: str, principal: Principal) -> None:
    """Refuse an upstream that the user's plan does not include.

    Raises:
        UpstreamNotAllowedError: it does not.
    """
    allowed = principal.plan.upstreams
    if allowed is not None and upstream not in allowed:
        raise UpstreamNotAllowedError


@lru_cache(maxsize=1024)
def _allows(dialect_name: str, method: str, path: bytes, patterns: tuple[str, ...]) -> bool:
    # Most requests ask for one of a few paths.
    return DIALECTS[dialect_name].allows(method, path, patterns)


def _has_operators_key(upstream: Upstream) -> bool:
    """Whether an upstream's 401 is about a key of the operator's: one of `keys`, or one among the operator's headers.

    Gateways have names of their own for such headers; there a value that is kept as keys are is taken for one. Not
    where the client brings the vendor's key: that may be the one that was refused.
    """
    if upstream.key_source == "own" or any(fold(name) in SERVER_CREDENTIALS for name, _ in upstream.headers):
        return True
    return upstream.key_source == "none" and upstream.has_secret_headers


def _client_credential(upstream: Upstream, value: bytes) -> Field:
    """Return the header field that carries the credential of `X-Upstream-Authorization`.

    Raises:
        InvalidRequestError: nothing is left of it without its scheme.
    """
    if upstream.credential_header is None:
        return DIALECTS[upstream.dialect].client_credential_field(value)
    scheme, space, rest = value.partition(b" ")
    key = rest.strip(b" \t") if space and scheme.lower() == b"bearer" else value
    if not key or key.lower() == b"bearer":
        raise InvalidRequestError("X-Upstream-Authorization has a scheme and no key.")
    return upstream.credential_header, key


def _added(upstream: Upstream, credential: Field) -> Added:
    """The credential and the operator's headers, which win where both have a name."""
    if fold(credential[0]) in {fold(name) for name, _ in upstream.headers}:
        return Added(upstream.headers)
    return Added((credential, *upstream.headers))
