"""Accept: a request's head as plain values, judged before anything acts on it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from proxy.errors import InvalidRequestError
from proxy.exchange import Ending, FieldIndex, RequestHead
from proxy.protocol.heads import Framing, check_request, origin_form
from proxy.protocol.paths import own_path

if TYPE_CHECKING:
    import asyncio

    from proxy.errors import Field
    from proxy.request_body import RequestBody


class Relay(Protocol):
    """What the server's connection needs of a running answer."""

    ending: Ending | None

    @property
    def sent(self) -> int:
        """How much of the body has passed."""
        ...

    @property
    def events(self) -> int:
        """How many events have passed."""
        ...

    def pause(self) -> None:
        """The client does not keep up."""
        ...

    def resume(self) -> None:
        """It does again."""
        ...

    def finish(self, ending: Ending) -> None:
        """End it before its end."""
        ...


@dataclass(slots=True, eq=False)
class Incoming:
    """A request as the server's parser leaves it: the head raw, the body still to be read.

    `is_last` says that the client wants no further answer on this connection.
    """

    method: str
    target: bytes
    version: tuple[int, int]
    fields: tuple[Field, ...]
    is_last: bool
    content: RequestBody
    client: ClientConnection
    index: FieldIndex

    def let_head_go(self) -> None:
        """Forget the fields: streams are held by the thousand."""
        self.fields = ()
        self.index = _NO_FIELDS


class ClientConnection(Protocol):
    """What the phases need of the server's connection to a client."""

    transport: asyncio.Transport | None
    relay: Relay | None
    # Whether it has been used for a request before.
    has_answered: bool

    def cancel(self) -> None:
        """Cancel the task in which the connection's requests are served."""
        ...

    def discard_rest(self, *, linger: bool) -> None:
        """Read no further request: the answer is the last. With `linger` what the client still sends is read away."""
        ...


_NO_FIELDS = FieldIndex(())
_ID_BYTES = 12
_IDS_AT_ONCE = 64
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_METHOD = re.compile(r"[A-Z]{1,16}")


def accept(
    method: str, target: bytes, version: tuple[int, int], fields: tuple[Field, ...], index: FieldIndex
) -> tuple[RequestHead, Framing, int | None]:
    """Check the head and split its target; give also how the body is framed, and its length where that is known.

    One slash at the end of an own path is dropped.

    Raises:
        InvalidRequestError: the framing, the target or the method is malformed; the connection must be closed.
    """
    framing, length = check_request(version, index)
    path, query = origin_form(target)
    if method not in _METHODS and _METHOD.fullmatch(method) is None:
        raise InvalidRequestError("The request method is malformed.")
    if path[-1:] == b"/":
        path = own_path(path)
    return RequestHead(method, path, query, fields, index), framing, length


class Ids:
    """Makes the ids of exchanges. One a worker, made in its own process: what it has drawn must not be drawn twice."""

    def __init__(self) -> None:
        self._drawn = ""
        self._position = 0

    def of(self, index: FieldIndex) -> str:
        """The client's `X-Request-Id` where it is a safe one (contract §5), else a new random id."""
        given = index.single(b"x-request-id")
        return given.decode() if given is not None and _ID.fullmatch(given) else self.new()

    def new(self) -> str:
        """A new random id: 96 bits, drawn from the system for many ids at once."""
        if self._position == len(self._drawn):
            self._drawn = os.urandom(_ID_BYTES * _IDS_AT_ONCE).hex()
            self._position = 0
        begin = self._position
        self._position = end = begin + 2 * _ID_BYTES
        return self._drawn[begin:end]
