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

# Of a larger body nothing is read: scanning so much of ordinary text takes some milliseconds, in pieces.
_MOST_READ: Final = 256 * 1024
# No model writes more, and no product of two such numbers is a large one.
_MOST: Final = 10**12
_POSITIVE: Final = re.compile(rb"[1-9][0-9]{0,12}")


class BoundMembers:
    """The members of a dialect's requests that bound the output, and the one that asks for several answers.

    Args:
        bounds: Each bounds the tokens of one answer; where there are several, the smallest counts.
        answers: How many answers are asked for; the first that says so counts.
        within: The members in whose object they stand; the body itself where there is none.
    """

    def __init__(self, bounds: tuple[str, ...], answers: tuple[str, ...] = (), *, within: tuple[str, ...] = ()) -> None:
        self._bounds = bounds
        self._answers = answers
        self._within = within
        self._marks = tuple(b'"' + name.encode() + b'"' for name in bounds)
        self._scanner = MemberScanner(bounds + answers)
        self._outer = MemberScanner(within) if within else None

    def read(self, fields: Iterable[Field], body: JsonText) -> Steps[int | None]:
        """Return the most tokens that a request asks for; None where its body sets no bound, or cannot be read.

        No document is built: objects by the ten thousand would hold the loop for longer than their text.
        """
        # `in` would first try whether the mark is a number, and fail at some cost.
        if len(body) > _MOST_READ or not any([body.find(mark) >= 0 for mark in self._marks]):  # noqa: C419 - faster
            return None
        if any(name.lower() == b"content-encoding" for name, _ in fields):
            return None
        try:
            if self._outer is not None:
                members = yield from self._outer.scan(body)
                values = map(members.last, self._within)
                body = next((value for value in values if value is not None and value[:1] == b"{"), b"{}")
            members = yield from self._scanner.scan(body)
        except InvalidRequestError:
            # The vendor's to judge.
            return None
        bounds = _positive(members, self._bounds)
        return min(bounds) * next(iter(_positive(members, self._answers)), 1) if bounds else None


def _positive(members: JsonMembers, names: tuple[str, ...]) -> list[int]:
    """The values of those of the members that are positive integers."""
    texts = [text for name in names if (text := members.last(name)) is not None and _POSITIVE.fullmatch(text)]
    return [value for text in texts if (value := int(text)) <= _MOST]
