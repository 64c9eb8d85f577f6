"""Intake: what a request costs its user before it goes anywhere, and its body."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.errors import InvalidRequestError
from proxy.phases.receive import receive, take

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from proxy.call import Call
    from proxy.clocks import Clocks
    from proxy.model import RequestHead
    from proxy.limits.store import Admission
    from proxy.protocol.heads import Framing

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def take_in(call: Call, admission: Admission) -> None:
    """Note that the request was let in by the limits: charged, and with a lease that whoever made the call releases."""
    call.admission = admission
    call.standing = admission.standing
    call.exchange.limits = admission.fallback


def give_back(call: Call) -> None:
    """Give the charge back: our own judgement of a request costs its user nothing."""
    if call.admission is not None:
        call.admission.refund()
        call.standing = None


def begin_body(call: Call, head: RequestHead, framing: Framing, length: int | None) -> bytes | None:
    """Ask for the body where the client waits for that; give it where all of it is here, as it mostly is.

    Raises:
        BodyTooLargeError, InvalidRequestError: as `receive` says, or the client expects what nobody here does.
    """
    assert call.request is not None
    expectation = head.index.single(b"expect")
    if expectation is not None:
        if expectation.lower() != b"100-continue":
            raise InvalidRequestError("The only expectation understood here is 100-continue.")
        transport = call.client.transport
        # RFC 9110 §15.2: no interim answer to HTTP/1.0.
        if framing != "none" and not call.is_old and transport is not None:
            transport.write(_CONTINUE)
    if framing == "none":
        return b""
    content = call.request.content
    return take(content, length, max_bytes=call.rules.max_body_bytes) if content.is_complete else None


def read_body(call: Call, length: int | None, clocks: Clocks) -> Coroutine[None, None, bytes]:
    """Wait for the body; raises as `receive` does. Not a coroutine of its own: there is one less to go through."""
    rules = call.rules
    assert call.request is not None
    return receive(
        call.request.content, length, max_bytes=rules.max_body_bytes, timeout_s=rules.body_timeout_s, clocks=clocks
    )
