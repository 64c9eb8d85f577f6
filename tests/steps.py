"""Runs computations in steps, as the loop does, and counts the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator

_T = TypeVar("_T")


def finish(steps: Generator[None, None, _T]) -> _T:
    """The result of a computation."""
    return counted(steps)[0]


def counted(steps: Generator[None, None, _T]) -> tuple[_T, int]:
    """The result of a computation, and how often it gave the loop a turn."""
    turns = 0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value, turns
        turns += 1
