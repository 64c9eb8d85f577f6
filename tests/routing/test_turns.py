"""Long computations in the loop: in turns, one piece at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.errors import InvalidRequestError
from proxy.routing.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Generator


def steps(name: str, count: int, seen: list[str]) -> Generator[None, None, str]:
    """A computation that notes each of its pieces."""
    try:
        for _ in range(count):
            seen.append(name)
            yield
        return name
    finally:
        seen.append(f"{name} closed")


async def test_turns_of_one_piece() -> None:
    """What takes one piece is done at once, without giving up the loop."""
    seen: list[str] = []
    asyncio.get_running_loop().call_soon(seen.append, "the loop")

    assert await Turns().run(steps("a", 0, seen)) == "a"

    assert seen == ["a closed"]


async def test_turns_alternate() -> None:
    """Of several computations one piece is run in an iteration of the loop, each in its turn."""
    turns, seen = Turns(), list[str]()
    loop = asyncio.get_running_loop()

    def note_iteration() -> None:
        seen.append("|")
        if len(seen) < 60:
            loop.call_soon(note_iteration)

    running = [asyncio.create_task(turns.run(steps(name, 6, seen))) for name in "abc"]
    loop.call_soon(note_iteration)
    assert await asyncio.gather(*running) == ["a", "b", "c"]

    # The first piece of each is run when it is asked for.
    iterations = "".join(mark for mark in seen if len(mark) == 1)[3:].split("|")
    assert max(map(len, iterations)) == 1
    order = "".join(iterations)
    assert order == "abc" * 5


async def test_turns_cancelled() -> None:
    """Cancelling closes the computation, and the others go on."""
    turns, seen = Turns(), list[str]()
    endless = asyncio.create_task(turns.run(steps("endless", 10**9, seen)))
    other = asyncio.create_task(turns.run(steps("other", 5, seen)))
    asyncio.get_running_loop().call_soon(endless.cancel)

    with pytest.raises(asyncio.CancelledError):
        await endless
    assert "endless closed" in seen
    assert await other == "other"


async def test_turns_error() -> None:
    """An error of a computation is its own, and its turn is given back."""
    turns = Turns()

    def failing() -> Generator[None, None, None]:
        yield
        yield
        raise InvalidRequestError

    with pytest.raises(InvalidRequestError):
        await turns.run(failing())
    assert await turns.run(steps("a", 3, [])) == "a"
