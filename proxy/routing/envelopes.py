"""Envelopes: from what an envelope asks for to the route that it gets, if any.

The target is the caller's, so nothing goes there that the operator did not allow, and the address is checked again when
it is connected to. What an envelope looks like is `protocol.envelope`'s to know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.auth import repeats_credential, strip_query
from proxy.errors import InvalidRequestError, TargetNotAllowedError
from proxy.model import DIRECT, FieldIndex, Route, Timeouts
from proxy.protocol.envelope import DEFAULT_METHODS, parse_envelope
from proxy.protocol.header_fields import SERVER_CREDENTIALS, Added, fold, is_loop, to_upstream
from proxy.protocol.paths import is_query, parse_target, with_query
from proxy.routing.upstream_routes import NOT_READABLE, check_plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.errors import Field
    from proxy.model import EgressProxy, Principal, RequestHead
    from proxy.protocol.envelope import Envelope
    from proxy.protocol.json_members import JsonMembers
    from proxy.protocol.json_text import Steps
    from proxy.protocol.paths import Target, TargetPattern
    from proxy.routing.upstream_routes import UpstreamRoute

# The label of logs and metrics for targets that belong to no upstream; a plan that names its upstreams must name it.
ENVELOPE: Final = "envelope"
_ACCEPT: Final[Field] = (b"Accept", b"text/event-stream")
_JSON: Final[Field] = (b"Content-Type", b"application/json")


class EnvelopeTarget(NamedTuple):
    """One entry of the targets; `methods` are in upper case, `upstream` is None where the own header goes.

    `proxy` is the egress proxy that may look up the target's name, where the operator allows that; else None.
    """

    pattern: TargetPattern
    upstream: str | None
    methods: frozenset[str] = DEFAULT_METHODS
    proxy: EgressProxy | None = None


@dataclass(frozen=True, slots=True)
class EnvelopeRules:
    """Which targets an envelope may name, in the file's order, and the clocks of those without an upstream."""

    targets: tuple[EnvelopeTarget, ...]
    timeouts: Timeouts = field(default_factory=Timeouts)


def route_envelope(
    rules: EnvelopeRules | None,
    upstream_routes: Mapping[str, UpstreamRoute],
    head: RequestHead,
    members: JsonMembers,
    principal: Principal,
    *,
    is_typed: bool,
) -> Steps[Route]:
    """Make the route of an envelope whose members these are; `head` is that of the request which carries it.

    Raises:
        TargetNotAllowedError: no entry allows the target, or envelopes are not configured.
        InvalidRequestError: the envelope is malformed, or repeats a credential that is meant for the proxy.
        UpstreamNotAllowedError: the plan does not include it.
    """
    if rules is None:
        raise TargetNotAllowedError
    envelope = yield from parse_envelope(members)
    target = parse_target(envelope.target_url)
    if target.query is not None and not is_query(target.query):
        raise InvalidRequestError("targetUrl is malformed.")
    index = FieldIndex(envelope.fields)
    if is_loop(index):
        raise InvalidRequestError("The request has been through this proxy before.")
    entry = next((entry for entry in rules.targets if entry.pattern.matches(target)), None)
    if entry is None:
        raise TargetNotAllowedError
    if envelope.method not in entry.methods:
        raise InvalidRequestError(f"method must be {' or '.join(sorted(entry.methods)).lower()} for this target.")
    plain: tuple[Field, ...] = (_ACCEPT,)
    if envelope.has_json_body and b"content-type" not in index:
        plain = (_ACCEPT, _JSON)
    if entry.upstream is None:
        check_plan(ENVELOPE, principal)
        if is_typed:
            raise InvalidRequestError(NOT_READABLE)
        route = _own_route(rules, target, head, envelope, index, plain)
        return route._replace(way=DIRECT._replace(proxy=entry.proxy), is_pinned=entry.proxy is None)
    check_plan(entry.upstream, principal)
    upstream_route = upstream_routes[entry.upstream]
    # Its key goes to the targets that the operator gave it, and nothing of the envelope's own beside it.
    added = upstream_route.added(head).under(plain)
    query = strip_query(target.query, query_key=upstream_route.dialect.query_credential)
    route = upstream_route.route(
        envelope.method,
        with_query(target.path, query),
        to_upstream(envelope.fields, index, added),
        envelope.body,
        upstream_route.typed_names() if is_typed else upstream_route.unasked_names,
    )
    route = route._replace(
        origin=target.origin,
        host=target.origin.host_field,
        way=route.way._replace(proxy=entry.proxy),
        is_pinned=entry.proxy is None,
    )
    return (yield from upstream_route.asking_usage(route)) if upstream_route.asks_usage else route


def _own_route(
    rules: EnvelopeRules,
    target: Target,
    head: RequestHead,
    envelope: Envelope,
    index: FieldIndex,
    plain: tuple[Field, ...],
) -> Route:
    """To a target without an upstream goes the envelope's own header, with its credential for that server."""
    if repeats_credential((value for _, value in envelope.fields), head, envelope.passcode):
        raise InvalidRequestError("The envelope's header repeats the credential that is meant for the proxy.")
    own = (own_field for own_field in envelope.fields if fold(own_field[0]) in SERVER_CREDENTIALS)
    return Route(
        upstream=ENVELOPE,
        dialect="raw",
        origin=target.origin,
        host=target.origin.host_field,
        timeouts=rules.timeouts,
        heartbeat_s=None,
        way=DIRECT,
        has_operators_key=False,
        method=envelope.method,
        target=with_query(target.path, target.query),
        fields=to_upstream(envelope.fields, index, Added((*plain, *own))),
        body=envelope.body,
        is_pinned=True,
    )
