"""How much output a request asks for at most: by a member of its body, which each vendor calls otherwise.

For a forecast, not for a decision: nothing is refused for what stands here, and a body that cannot be read has no
bound. A client that names a bound which the vendor does not know is charged for what it took all the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from proxy.errors import InvalidRequestError
from proxy.protocol.json_members import MemberScanner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.errors import Field
    from proxy.protocol.json_members import JsonMembers
    from proxy.protocol.json_text import JsonText, Steps

# Of a larger body nothing is read: reading a mebibyte takes 3 ms, and no bound is worth more.
_MOST_READ: Final = 1024 * 1024
# A positive integer of JSON; no model writes a million million tokens.
_POSITIVE: Final = re.compile(rb"[1-9][0-9]{0,11}")
_LONGEST: Final = 12


class BoundMembers:
    """The members of a dialect's requests that bound the output, and the one that asks for several answers.

    Args:
        bounds: Each bounds the tokens of one answer; where there are several, the smallest counts.
        answers: How many answers are asked for.
        within: The members whose object they stand in; the body itself where there is none.
    """

    def __init__(self, bounds: tuple[str, ...], answers: tuple[str, ...] = (), *, within: tuple[str, ...] = ()) -> None:
        self._bounds = bounds
        self._answers = answers
        self._within = within
        self._marks = tuple(b'"' + name.encode() + b'"' for name in bounds)
        self._scanner = MemberScanner((*bounds, *answers))
        self._outer = MemberScanner(within) if within else None

    def read(self, fields: Iterable[Field], body: JsonText) -> Steps[int | None]:
        """Return the most tokens that a request asks for; None where its body sets no bound, or cannot be read.

        Yields after each piece of a large body.
        """
        if len(body) > _MOST_READ or not any(mark in body for mark in self._marks):
            return None
        if any(name.lower() == b"content-encoding" for name, _ in fields):
            return None
        text: JsonText | None = body
        try:
            if self._outer is not None:
                outer = yield from self._outer.scan(body)
                text = next((value for name in self._within if (value := outer.value(name)) is not None), None)
            if text is None:
                return None
            members = yield from self._scanner.scan(text)
        except InvalidRequestError:
            # The vendor's to judge.
            return None
        bounds = [bound for name in self._bounds if (bound := _positive(members, name)) is not None]
        answers = next((count for name in self._answers if (count := _positive(members, name)) is not None), 1)
        return min(bounds) * answers if bounds else None


def _positive(members: JsonMembers, name: str) -> int | None:
    """Return a member that is a positive integer; None where it is anything else, or occurs twice."""
    if name in members.repeated or not 0 < members.size(name) <= _LONGEST:
        return None
    value = members.value(name)
    return int(value) if value is not None and _POSITIVE.fullmatch(value) is not None else None
