"""Who asks: from the head of a request, or from the envelope in its body.

Which upstreams and paths exist is told only to those who have authenticated, so what is wrong with the head's route is
said after what is wrong with its credential.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.auth import find_credential, only_bearer
from proxy.dialects import DIALECTS
from proxy.errors import (
    InvalidRequestError,
    InvalidTokenError,
    MissingTokenError,
    PathNotAllowedError,
    ProxyError,
    UnknownUpstreamError,
)

if TYPE_CHECKING:
    from proxy.auth import Authenticator
    from proxy.exchange.exchange import Exchange
    from proxy.model import Principal, RequestHead
    from proxy.protocol.envelope import RoutingMembers
    from proxy.routing import Destination

# What is wrong with a route is said to those who may know; that nothing is served at all, to everybody.
_SAID_LATER: Final = (UnknownUpstreamError, PathNotAllowedError, InvalidRequestError)


async def authenticate(exchange: Exchange, head: RequestHead) -> tuple[Destination, Principal | None]:
    """Who asks, and what the head says about where to; no principal where an envelope's passcode may still name one.

    Waits only for a key set that has not been loaded yet.

    Raises:
        AuthenticationError, InsufficientScopeError, AuthUnavailableError: as the authenticator says.
        TooManyFailuresError: too many bad credentials came from the client's address.
        ProxyError: what the router refuses by the head.
    """
    rules = exchange.rules
    destination: Destination | None = None
    fault: ProxyError | None = None
    try:
        destination = rules.router.by_head(head)
        exchange.dialect = destination.dialect_name
    except ProxyError as error:
        exchange.dialect = rules.router.dialect_name(head)
        if not isinstance(error, _SAID_LATER):
            raise
        fault = error
    principal = exchange.known or _remembered(exchange, head)
    if principal is None:
        query_key = head.query is not None and DIALECTS[exchange.dialect].query_credential
        principal = await _authenticate(exchange, head, query_key=query_key)
    may_be_in_body = rules.envelope_passcode and destination is not None and destination.may_be_envelope
    if principal is None and not may_be_in_body:
        raise MissingTokenError
    exchange.principal = principal
    if fault is not None or destination is None:
        raise fault or MissingTokenError()
    if destination.upstream is not None:
        exchange.upstream = destination.upstream.name
        if principal is not None:
            rules.router.check_plan(destination, principal)
    return destination, principal


async def authenticate_head(exchange: Exchange, head: RequestHead) -> Principal:
    """Who asks, where nothing but the head can name them.

    Raises:
        AuthenticationError, InsufficientScopeError, AuthUnavailableError: as the authenticator says.
        TooManyFailuresError: too many bad credentials came from the client's address.
    """
    principal = exchange.known or _remembered(exchange, head)
    if principal is None:
        principal = await _authenticate(exchange, head, query_key=False)
    if principal is None:
        raise MissingTokenError
    exchange.principal = principal
    return principal


def authenticate_body(exchange: Exchange, members: RoutingMembers) -> Principal:
    """Who asks, where only an envelope names them.

    Raises:
        MissingTokenError, InvalidRequestError: the body is no envelope with a passcode, or a malformed one.
        InvalidTokenError: the passcode is no API key.
        TooManyFailuresError: too many bad credentials came from the client's address.
    """
    rules = exchange.rules
    if rules.authenticator is None:
        raise MissingTokenError
    passcode = rules.router.passcode(members)
    _check_failures(exchange, rules.authenticator, passcode)
    try:
        principal = rules.authenticator.authenticate_api_key(passcode)
    except InvalidTokenError:
        _count_failure(exchange)
        raise
    exchange.principal = principal
    return principal


def _remembered(exchange: Exchange, head: RequestHead) -> Principal | None:
    """Whose token the head carries, where it is in its usual place and was verified before, as most are; else None."""
    token, authenticator = only_bearer(head), exchange.rules.authenticator
    if token is None or authenticator is None:
        return None
    principal = authenticator.cached_principal(token)
    # Nothing that is shorter can hold it.
    if principal is not None and (len(token) <= len(exchange.path) or len(token) <= len(exchange.id)):
        exchange.redact(token.decode("ascii"))
    return principal


async def _authenticate(exchange: Exchange, head: RequestHead, *, query_key: bool) -> Principal | None:
    """Whose credential the head carries; None without one. Waits for nothing where it was verified before."""
    rules = exchange.rules
    try:
        token = find_credential(head, query_key=query_key, query_token=rules.query_token)
        if token is not None and (token in exchange.path or token in exchange.id):
            exchange.redact(token)
        authenticator = rules.authenticator
        if authenticator is None:
            return rules.anonymous
        if token is None:
            return None
        principal = authenticator.cached_principal(token.encode())
        if principal is not None:
            return principal
        _check_failures(exchange, authenticator, token)
        return await authenticator.authenticate(token)
    except InvalidTokenError:
        _count_failure(exchange)
        raise


def _check_failures(exchange: Exchange, authenticator: Authenticator, token: str) -> None:
    """Refuse a credential before it is parsed, so that a flood of bad ones costs next to nothing.

    Raises:
        TooManyFailuresError: the client's address has used up its rate, and the credential is no API key that was good
            before.
    """
    failures = exchange.rules.failures
    if failures is not None and not authenticator.has_verified_key(token):
        failures.check(exchange.client)


def _count_failure(exchange: Exchange) -> None:
    """Count a bad credential against the client's address; one that has expired is none.

    Raises:
        TooManyFailuresError: the address had used up its rate meanwhile.
    """
    if exchange.rules.failures is not None:
        exchange.rules.failures.count(exchange.client)
