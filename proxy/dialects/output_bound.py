"""How much output a request asks for at most: by a member of its body, which each vendor calls otherwise.

For a forecast, not for a decision: nothing is refused for what stands here, and a body that cannot be read has no
bound. A client that names a bound which the vendor does not know is charged for what it took all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.dialects.typed.reader import mapping

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.errors import Field

# Of a larger body nothing is read: parsing so much of ordinary text takes half a millisecond.
_MOST_READ: Final = 256 * 1024
# No model writes more, and no product of two such numbers is a large one.
_MOST: Final = 10**12


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

    def read(self, fields: Iterable[Field], body: bytes | bytearray) -> int | None:
        """Return the most tokens that a request asks for; None where its body sets no bound, or cannot be read."""
        if len(body) > _MOST_READ or not any(mark in body for mark in self._marks):
            return None
        if any(name.lower() == b"content-encoding" for name, _ in fields):
            return None
        try:
            members = mapping(orjson.loads(body))
        except orjson.JSONDecodeError:
            # The vendor's to judge.
            return None
        if self._within:
            members = next((inner for name in self._within if (inner := mapping(members.get(name)))), {})
        bounds = _positive(members, self._bounds)
        return min(bounds) * next(iter(_positive(members, self._answers)), 1) if bounds else None


def _positive(members: dict[str, Any], names: tuple[str, ...]) -> list[int]:
    """The values of those of the members that are positive integers."""
    values = [members.get(name) for name in names]
    return [value for value in values if type(value) is int and 0 < value <= _MOST]
