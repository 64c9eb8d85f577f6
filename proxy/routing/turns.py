"""Turns: long computations in the event loop, one piece at a time.

Reading a large body costs seconds of a worker where its sender wants that. Cut in pieces of a few milliseconds it
delays everybody else by one piece, however many such bodies there are: the pieces of all of them take turns.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator

_T = TypeVar("_T")


class Turns:
    """Runs computations that yield after each piece. One a worker."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def run(self, steps: Generator[None, None, _T]) -> _T:
        """Run a computation to its end, and return its result.

        A computation of one piece is run at once, without giving up the loop. Of all others, one piece is run in an
        iteration of the loop, in the order of asking. Cancelling is safe: the computation is closed between two pieces.
        """
        try:
            next(steps)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # typeshed has Any here
        try:
            while True:
                # A lock is given to its waiters in order, so that every computation gets its turn.
                async with self._turn:
                    await asyncio.sleep(0)
                    next(steps)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        finally:
            steps.close()
