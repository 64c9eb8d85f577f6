"""Identity: who asks, from the head of a request or from the envelope in its body.

Which upstreams and paths exist is told only to those who have authenticated, so what is wrong with the head's route is
said after what is wrong with its credential.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from proxy.auth.credentials import find_credential
from proxy.dialects import DIALECTS
from proxy.errors import InvalidRequestError, MissingTokenError, PathNotAllowedError, ProxyError, UnknownUpstreamError

# What is wrong with a route is said to those who may know; that nothing is served at all, to everybody.
_SAID_LATER = (UnknownUpstreamError, PathNotAllowedError, InvalidRequestError)

if TYPE_CHECKING:
    from proxy.call import Call, Rules
    from proxy.exchange import Exchange, Principal, RequestHead
    from proxy.phases.resolve import Destination
    from proxy.protocol.envelope import RoutingMembers


async def identify(call: Call, head: RequestHead) -> tuple[Destination, Principal | None]:
    """Who asks, and what the head says about where to; no principal where an envelope's passcode may still say.

    Waits only for a key set that has not been loaded yet.

    Raises:
        AuthenticationError, InsufficientScopeError, AuthUnavailableError: as the authenticator says.
        ProxyError: what the router refuses by the head.
    """
    rules, exchange = call.rules, call.exchange
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
    has_key = head.query is not None and DIALECTS[exchange.dialect].query_credential
    token, principal = _recall(call, head, gemini=has_key)
    principal = principal or await _authenticate(rules, token)
    if principal is None and not (rules.envelope_passcode and destination is not None and destination.may_be_envelope):
        raise MissingTokenError
    exchange.principal = principal
    if fault is not None:
        raise fault
    assert destination is not None
    if destination.upstream is not None:
        exchange.upstream = destination.upstream.name
        if principal is not None:
            rules.router.check_plan(destination, principal)
    return destination, principal


async def identify_by_head(call: Call, head: RequestHead) -> Principal:
    """Who asks, where nothing but the head can say so.

    Raises:
        MissingTokenError: it does not.
    """
    token, principal = _recall(call, head, gemini=False)
    principal = principal or await _authenticate(call.rules, token)
    if principal is None:
        raise MissingTokenError
    call.exchange.principal = principal
    return principal


def identify_by_body(call: Call, members: RoutingMembers) -> Principal:
    """Who asks, where only an envelope says it.

    Raises:
        MissingTokenError, InvalidRequestError: the body is no envelope with a passcode, or a malformed one.
        InvalidTokenError: the passcode is no API key.
    """
    rules = call.rules
    assert rules.authenticator is not None
    principal = rules.authenticator.authenticate_api_key(rules.router.passcode(members))
    call.exchange.principal = principal
    return principal


def hide(exchange: Exchange, secret: str) -> None:
    """Take a secret out of what the log line repeats of a request: its path, and the id that the client chose."""
    if not secret:
        return
    if secret in exchange.path:
        exchange.path = exchange.path.replace(secret, "[redacted]")
    if secret in exchange.id:
        exchange.id = os.urandom(12).hex()


def _recall(call: Call, head: RequestHead, *, gemini: bool) -> tuple[str | None, Principal | None]:
    """The request's token, and whose it is where it was verified before, as nearly all were; without waiting."""
    rules, exchange = call.rules, call.exchange
    token = find_credential(head, gemini=gemini, query_token=rules.query_token)
    if token is None:
        return None, None
    if token in exchange.path or token in exchange.id:
        hide(exchange, token)
    return token, None if rules.authenticator is None else rules.authenticator.recall(token)


async def _authenticate(rules: Rules, token: str | None) -> Principal | None:
    if rules.authenticator is None:
        return rules.anonymous
    return None if token is None else await rules.authenticator.authenticate(token)
