"""Accept: a request's head as plain values, judged before anything acts on it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from proxy.errors import InvalidRequestError
from proxy.exchange import RequestHead
from proxy.protocol.heads import Framing, check_request, origin_form

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.errors import Field

_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_METHOD = re.compile(r"[A-Z]{1,16}")


def accept(
    method: str, target: bytes, version: tuple[int, int], fields: Sequence[Field]
) -> tuple[RequestHead, Framing, int | None]:
    """Check the head and split its target; give also how the body is framed, and its length where that is known.

    Raises:
        InvalidRequestError: the framing, the target or the method is malformed; the connection must be closed.
    """
    framing, length = check_request(version, fields)
    path, query = origin_form(target)
    if _METHOD.fullmatch(method) is None:
        raise InvalidRequestError("The request method is malformed.")
    return RequestHead(method, path, query, tuple(fields)), framing, length


def exchange_id(fields: Sequence[Field]) -> str:
    """The client's `X-Request-Id` where it is a safe one (contract §5), else a new random id."""
    for name, value in fields:
        if len(name) == 12 and name.lower() == b"x-request-id":  # noqa: PLR2004 - the length of the name
            return value.decode() if _ID.fullmatch(value) else os.urandom(12).hex()
    return os.urandom(12).hex()
