"""Who asks: from the head of a request, or from the envelope in its body.

Which upstreams and paths exist is told only to those who have authenticated, so what is wrong with the head's route is
said after what is wrong with its credential.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.auth import find_credential
from proxy.dialects import DIALECTS
from proxy.errors import InvalidRequestError, MissingTokenError, PathNotAllowedError, ProxyError, UnknownUpstreamError

if TYPE_CHECKING:
    from proxy.exchange.exchange import Exchange
    from proxy.model import Principal, RequestHead
    from proxy.protocol.envelope import RoutingMembers
    from proxy.routing import Destination, Rules

# What is wrong with a route is said to those who may know; that nothing is served at all, to everybody.
_SAID_LATER: Final = (UnknownUpstreamError, PathNotAllowedError, InvalidRequestError)


async def authenticate(exchange: Exchange, head: RequestHead) -> tuple[Destination, Principal | None]:
    """Who asks, and what the head says about where to; no principal where an envelope's passcode may still name one.

    Waits only for a key set that has not been loaded yet.

    Raises:
        AuthenticationError, InsufficientScopeError, AuthUnavailableError: as the authenticator says.
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
    principal = exchange.known
    if principal is None:
        query_key = head.query is not None and DIALECTS[exchange.dialect].query_credential
        token, principal = _cached_principal(exchange, head, query_key=query_key)
        principal = principal or await _authenticate(rules, token)
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
    """
    principal = exchange.known
    if principal is None:
        token, principal = _cached_principal(exchange, head, query_key=False)
        principal = principal or await _authenticate(exchange.rules, token)
    if principal is None:
        raise MissingTokenError
    exchange.principal = principal
    return principal


def authenticate_body(exchange: Exchange, members: RoutingMembers) -> Principal:
    """Who asks, where only an envelope names them.

    Raises:
        MissingTokenError, InvalidRequestError: the body is no envelope with a passcode, or a malformed one.
        InvalidTokenError: the passcode is no API key.
    """
    rules = exchange.rules
    if rules.authenticator is None:
        raise MissingTokenError
    principal = rules.authenticator.authenticate_api_key(rules.router.passcode(members))
    exchange.principal = principal
    return principal


def _cached_principal(exchange: Exchange, head: RequestHead, *, query_key: bool) -> tuple[str | None, Principal | None]:
    """The request's token, and whose it is where it was verified before, as nearly all were; without waiting."""
    rules = exchange.rules
    token = find_credential(head, query_key=query_key, query_token=rules.query_token)
    if token is None:
        return None, None
    if token in exchange.path or token in exchange.id:
        exchange.redact(token)
    return token, None if rules.authenticator is None else rules.authenticator.cached_principal(token)


async def _authenticate(rules: Rules, token: str | None) -> Principal | None:
    if rules.authenticator is None:
        return rules.anonymous
    return None if token is None else await rules.authenticator.authenticate(token)
