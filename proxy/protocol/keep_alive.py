"""The `Keep-Alive` field: how long a server says that it keeps a connection open while nothing is asked on it.

The field is in no current standard. RFC 2068 §19.7.1.1 reserved the name, and servers (Node.js, Apache, gunicorn) send
`timeout=5, max=100` to clients of HTTP/1.1 as well.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# Nine digits are thirty years; longer numbers are no durations.
_TIMEOUT: Final = re.compile(rb"[ \t]*timeout[ \t]*=[ \t]*([0-9]{1,9})[ \t]*", re.IGNORECASE)


def keep_alive_s(values: Iterable[bytes]) -> int | None:
    """The seconds of the smallest `timeout` in the values of `Keep-Alive`; None where there is none that is a number.

    A parameter that is not a decimal whole number is ignored, as the whole field would be if it were not there.
    """
    found = [
        int(match[1])
        for value in values
        for part in value.split(b",")
        if (match := _TIMEOUT.fullmatch(part)) is not None
    ]
    return min(found, default=None)
