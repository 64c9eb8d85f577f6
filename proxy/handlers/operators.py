"""Who may use the operator's listener: one middleware, which also logs every action in one line.

A token comes in `Authorization`, a console's session in a cookie; a query is never looked at. GET and HEAD need the
role `view` or `operate`, everything else `operate`. Without a credential are served: /healthz, /readyz, the console's
page, and /metrics unless the configuration says otherwise.

A browser adds the cookie by itself, and nothing is needed at all on loopback. So what no token comes with must not be
asked for by another origin's page, and with a cookie every other method than GET and HEAD needs a field that no form
can send. No answer has CORS fields.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiohttp import hdrs, web

from proxy.auth.operators import AdminRules, Operator, Operators
from proxy.errors import (
    ExpiredTokenError,
    InsufficientScopeError,
    InvalidRequestError,
    InvalidTokenError,
    MissingTokenError,
    OriginNotAllowedError,
    ProxyError,
)
from proxy.limits.failures import AuthFailures
from proxy.model import FieldIndex, Rate
from proxy.observability.redaction import cut_redacted
from proxy.protocol.own_origin import is_own_page, is_this_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from proxy.handlers.errors import Handler

COOKIE: Final = "forward_sse_console"
# The field that requests by a cookie need, and its value.
PAGE_FIELD: Final = "X-Requested-With"
PAGE_VALUE: Final = "forward-sse-console"
SESSION_PATH: Final = "/console/session"

# Of each client address, in each worker. A token of `key new` cannot be guessed at any speed; one that somebody has
# thought of could be.
FAILURES: Final = Rate(10, 60.0)
# Lines about tries of whom nobody knows, in each worker.
REFUSED_LINES: Final = 20
REFUSED_WINDOW_S: Final = 60.0

_SAFE: Final = frozenset({"GET", "HEAD"})
_HEALTH: Final = frozenset({"/healthz", "/readyz"})
_METRICS: Final = "/metrics"
_CONSOLE: Final = "/console"
# What each line names, by method and route.
_ACTIONS: Final = {
    ("DELETE", "/admin/streams/{id}"): "stop_stream",
    ("DELETE", "/admin/streams"): "stop_streams",
    ("PUT", "/admin/upstreams/{name}"): "switch_upstream",
    ("POST", SESSION_PATH): "login",
    ("DELETE", SESSION_PATH): "logout",
}
_MAX_TARGET: Final = 200

# Who asks; there for every handler behind the middleware, except those that are open to everybody.
OPERATOR: Final = web.RequestKey("operator", Operator)
# What a handler adds to the line of its action: `target` and more.
_ACT: Final[web.RequestKey[dict[str, Any]]] = web.RequestKey("act", dict)


class Access:
    """Decides who gets in at one worker's admin listener, and logs what they do."""

    def __init__(
        self,
        operators: Operators,
        *,
        now: Callable[[], float] = time.monotonic,
        redact: Callable[[bytes], bytes] = bytes,
    ) -> None:
        """`now` gives monotonic seconds, `redact` takes secrets out of a text."""
        self.operators = operators
        self.redact = redact
        self._failures = AuthFailures(FAILURES, now=now)
        self._lines = _Window(REFUSED_LINES, REFUSED_WINDOW_S, now)

    @property
    def rules(self) -> AdminRules:
        """By the configuration of the moment."""
        return self.operators.rules

    def admit(self, request: web.Request, path: str) -> Operator | None:
        """Who asks for what is at that route; None where it is open to everybody.

        Raises:
            OriginNotAllowedError: another origin's page asks, or one whose name was pointed here.
            MissingTokenError, InvalidTokenError, ExpiredTokenError: a credential is needed, and there is no good one.
            InsufficientScopeError: the role does not allow it.
            InvalidRequestError: there are several credentials.
            TooManyFailuresError: too many bad tokens came from the client's address.
        """
        is_safe = request.method in _SAFE
        if path in _HEALTH or (path == _METRICS and self.rules.are_metrics_open):
            return None
        if self.rules.checks_host and not is_this_machine(request.headers.get(hdrs.HOST)):
            raise OriginNotAllowedError(
                "Without a configured `admin` this listener answers only to localhost or an IP address as its Host."
            )
        if is_safe and path == _CONSOLE:
            return None
        if path == SESSION_PATH and not is_safe:
            # To log in or out nobody needs to be logged in. What a login needs besides, it checks itself.
            self._check_page(request, is_safe=is_safe, needs_field=request.method != "POST")
            return None
        operator = self.identify(request)
        if not is_safe and not operator.may_operate:
            # For the line.
            request[OPERATOR] = operator
            raise InsufficientScopeError("This needs the role `operate`; yours is `view`.")
        return operator

    def identify(self, request: web.Request) -> Operator:
        """Who asks, by token or by session.

        Raises:
            ProxyError: as of `admit`.
        """
        if not self.rules.needs_credential:
            self._check_page(request, is_safe=request.method in _SAFE)
            return self.operators.anyone()
        token = _bearer_token(request)
        if token is not None:
            with self._guessing(request):
                return self.operators.authenticate(token)
        self._check_page(request, is_safe=request.method in _SAFE)
        session = session_cookie(request)
        if session is None:
            raise MissingTokenError("An operator's token is required.")
        return self.operators.resume_session(session)

    def open_session(self, request: web.Request, token: str) -> str:
        """Log an operator in, and return the cookie's value.

        Raises:
            InvalidTokenError, TooManyFailuresError: it is nobody's token, or the client has tried too often.
        """
        with self._guessing(request):
            request[OPERATOR], session = self.operators.open_session(token)
        return session

    def log(self, request: web.Request, action: str, error: ProxyError | None, *, has_failed: bool = False) -> None:
        """Write the one line of an action, or of a try that was refused.

        What an action is about stands in it once it is known who asks. Of all others there are only so many lines.
        """
        operator = request.get(OPERATOR)
        fields: dict[str, Any] = {"operator": None, "action": action, "target": None}
        if operator is not None:
            fields |= {"operator": operator.name} | request.get(_ACT, {})
        else:
            unlogged = self._lines.take()
            if unlogged is None:
                return
            fields |= {"unlogged": unlogged} if unlogged else {}
        result = "failed" if has_failed else "ok" if error is None else error.code
        client = self._client(request)
        is_warning = has_failed or (error is not None and error.status in {401, 403, 429})
        log = structlog.get_logger()
        (log.warning if is_warning else log.info)(
            "operator.acted", **fields, result=result, client=None if client is None else str(client)
        )

    @contextmanager
    def _guessing(self, request: web.Request) -> Iterator[None]:
        """A look at a token, which may be a guess: counted where it was one.

        Raises:
            TooManyFailuresError: too many came from the address; then no token is looked at, not even a good one.
        """
        client = self._client(request)
        self._failures.check(client)
        try:
            yield
        except InvalidTokenError:
            self._failures.count(client)
            raise

    def _client(self, request: web.Request) -> IPv4Address | IPv6Address | None:
        return self.rules.clients.of(request.remote, FieldIndex(request.raw_headers))

    @staticmethod
    def _check_page(request: web.Request, *, is_safe: bool, needs_field: bool = True) -> None:
        """Check that no page of another origin asks; with a cookie, by the field that no form can send.

        Raises:
            OriginNotAllowedError: one does, or may.
        """
        headers = request.headers
        is_own = is_own_page(
            headers.get(hdrs.HOST),
            headers.getall(hdrs.ORIGIN, []),
            headers.getall("Sec-Fetch-Site", []),
            is_safe=is_safe,
        )
        if not is_own:
            raise OriginNotAllowedError
        if needs_field and not is_safe and _session_cookies(request) and headers.get(PAGE_FIELD) != PAGE_VALUE:
            raise OriginNotAllowedError(f"With the console's cookie this needs {PAGE_FIELD}: {PAGE_VALUE}.")


class _Window:
    """Lets through so many in a window of time, and counts the others."""

    def __init__(self, most: int, window_s: float, now: Callable[[], float]) -> None:
        self._most = most
        self._window_s = window_s
        self._now = now
        self._begun_s = now()
        self._taken = 0
        self._left_out = 0

    def take(self) -> int | None:
        """Take a place, and return how many were left out since the last one; None where there is none left."""
        if self._now() - self._begun_s >= self._window_s:
            self._begun_s = self._now()
            self._taken = 0
        if self._taken >= self._most:
            self._left_out += 1
            return None
        self._taken += 1
        left_out, self._left_out = self._left_out, 0
        return left_out


ACCESS: Final = web.AppKey("access", Access)


@web.middleware
async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let an operator in, or refuse; and write one line where they do more than read."""
    access = request.app[ACCESS]
    path = _route_of(request)
    action = _ACTIONS.get((request.method, path))
    is_safe = request.method in _SAFE
    try:
        operator = access.admit(request, path)
    except ProxyError as error:
        # Of who only reads, what cannot be an honest mistake of the moment.
        if not is_safe or not isinstance(error, MissingTokenError | ExpiredTokenError):
            access.log(request, action or ("read" if is_safe else "other"), error)
        raise
    if operator is not None:
        request[OPERATOR] = operator
    if action is None:
        return await handler(request)
    try:
        response = await handler(request)
    except ProxyError as error:
        access.log(request, action, error)
        raise
    except BaseException:
        access.log(request, action, None, has_failed=True)
        raise
    access.log(request, action, None)
    return response


def note(request: web.Request, target: str, **more: object) -> None:
    """Note what an action is about, for its line."""
    request[_ACT] = {"target": cut_redacted(target, _MAX_TARGET, request.app[ACCESS].redact), **more}


def note_more(request: web.Request, **more: object) -> None:
    """Note what an action has come to, for its line."""
    request[_ACT] = {**request.get(_ACT, {}), **more}


def session_cookie(request: web.Request) -> str | None:
    """The console's cookie; None where it is not sent.

    Another service on the same host may set one of this name with a longer path or for a whole domain. The browser then
    sends both, and nobody can tell which is whose.

    Raises:
        InvalidRequestError: there are several.
    """
    values = _session_cookies(request)
    if len(values) > 1:
        raise InvalidRequestError(f"There are several cookies {COOKIE}: remove this host's cookies from the browser.")
    return values[0] if values else None


def _session_cookies(request: web.Request) -> list[str]:
    """The values of all cookies of that name (RFC 6265 §5.4); aiohttp reads one field, and keeps one of each name."""
    pairs = (pair.partition("=") for field in request.headers.getall(hdrs.COOKIE, []) for pair in field.split(";"))
    return [value.strip() for name, _, value in pairs if name.strip() == COOKIE]


def _route_of(request: web.Request) -> str:
    """The path of the request's route; of what no route is for, the one that refuses it."""
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical.removesuffix("/")


def _bearer_token(request: web.Request) -> str | None:
    """The token in `Authorization` (RFC 6750 §2.1); None where the field is not sent.

    Raises:
        InvalidRequestError: it is sent twice.
        InvalidTokenError: it holds something else.
    """
    values = request.headers.getall(hdrs.AUTHORIZATION, [])
    if not values:
        return None
    if len(values) > 1:
        raise InvalidRequestError("There are several Authorization fields.")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise InvalidTokenError("Authorization must be `Bearer` and an operator's token.")
    return token.strip()
