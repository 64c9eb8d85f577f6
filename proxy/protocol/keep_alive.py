"""Parses `Keep-Alive`: the idle timeout that a server announces for a connection.

The field is in no current standard. RFC 2068 §19.7.1.1 reserved the name, and servers (Node.js, Apache, gunicorn) send
`timeout=5, max=100` to clients of HTTP/1.1 as well.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# Nine digits are thirty years.
_TIMEOUT: Final = re.compile(rb"[ \t]*timeout[ \t]*=[ \t]*([0-9]{1,9})[ \t]*", re.IGNORECASE)


def keep_alive_s(values: Iterable[bytes]) -> int | None:
    """Return the smallest `timeout` in the values of `Keep-Alive`, in seconds; None if there is none.

    A `timeout` that is not a decimal whole number is ignored.
    """
    found = [
        int(match[1])
        for value in values
        for part in value.split(b",")
        if (match := _TIMEOUT.fullmatch(part)) is not None
    ]
    return min(found, default=None)
