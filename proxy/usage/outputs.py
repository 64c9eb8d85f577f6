"""How much a model usually writes: the last outputs that it was seen to write."""

from __future__ import annotations

from array import array
from typing import Final

# So many are kept of each model: 512 bytes, and enough that one long answer does not decide for all.
KEPT: Final = 64
_PERCENT: Final = 95


class RecentOutputs:
    """The last `KEPT` outputs of a model, in tokens. Sorted only when asked for, once for what is there."""

    __slots__ = ("_next", "_outputs", "_percentile")

    def __init__(self) -> None:
        self._outputs = array("q")
        self._next = 0
        self._percentile: int | None = None

    def add(self, tokens: int) -> None:
        """Take one more, in place of the oldest."""
        if len(self._outputs) < KEPT:
            self._outputs.append(tokens)
        else:
            self._outputs[self._next] = tokens
            self._next = (self._next + 1) % KEPT
        self._percentile = None

    def percentile(self) -> int | None:
        """Return what 95 of 100 outputs do not exceed (of fewer than 20 the largest); None where none was seen."""
        if self._percentile is None and self._outputs:
            # By the nearest rank: a value that was seen, rounded up.
            rank = -(-len(self._outputs) * _PERCENT // 100)
            self._percentile = sorted(self._outputs)[rank - 1]
        return self._percentile
