"""Answer: an answer of our own onto a client's transport, in one piece."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from proxy.protocol.heads import render_response

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from proxy.errors import Field

# RFC 9110 §8.6: no Content-Length on 204; on 304 it would be that of the 200.
_WITHOUT_LENGTH = frozenset({204, 304})


class Settled(NamedTuple):
    """What the server is told of an answer that was written: whether another request may follow.

    `ended_in_words`: the answer breaks off, and its last bytes say why; the client must have the time to read them.
    """

    keep_alive: bool
    ended_in_words: bool = False


def date() -> bytes:
    """The value of `Date` (RFC 9110 §6.6.1), worded once a second."""
    return _date(int(time.time()))


@lru_cache(maxsize=1)
def _date(now_s: int) -> bytes:
    return formatdate(now_s, usegmt=True).encode()


def write_answer(
    transport: asyncio.Transport | None,
    status: int,
    fields: Iterable[Field],
    body: bytes,
    *,
    keep_alive: bool,
    is_head_request: bool,
    cache_control: bytes = b"no-store",
) -> Settled:
    """Write head and body with one call; a transport that is gone is none of our concern."""
    if transport is not None:
        lines = [*fields, (b"Date", date()), (b"Cache-Control", cache_control)]
        if status not in _WITHOUT_LENGTH:
            lines.append((b"Content-Length", b"%d" % len(body)))
        if not keep_alive:
            lines.append((b"Connection", b"close"))
        transport.write(render_response(status, lines) + (b"" if is_head_request else body))
    return Settled(keep_alive)
