"""The words of the client suite: what a client is asked, what it heard, and what is known of it beforehand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AsyncExitStack

PROMPT = "say something"


@dataclass(frozen=True, slots=True)
class Call:
    """One streaming call.

    `key` stands where the client carries its vendor's key. `leaves_after` is the pieces of text after which the
    client stops reading, in the way that its documentation gives; `has_own_retries` leaves its retries as they come.
    `version` is the API's in Google's paths, None where the client's own choice does.
    """

    client: str
    base: str
    key: str = field(repr=False)
    model: str
    headers: dict[str, str] = field(default_factory=dict)
    prompt: str = PROMPT
    leaves_after: int | None = None
    has_own_retries: bool = True
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """The error that a client gave its program: its type's name, and what stands in it where the client keeps that."""

    name: str
    status: int | None = None
    code: str | None = None
    retry_after: str | None = None
    message: str = ""


@dataclass(slots=True)
class Heard:
    """What a program got from its client; `usage` is tokens in and tokens out, thoughts included."""

    leaves_after: int | None = None
    text: str = ""
    thought: str = ""
    usage: tuple[int, int] | None = None
    failure: Failure | None = None
    pieces: int = 0

    def add(self, text: str | None) -> None:
        """Take a piece of text; clients give none and empty ones between."""
        if text:
            self.text += text
            self.pieces += 1

    @property
    def is_enough(self) -> bool:
        """True when the program has read as much as it wants."""
        return self.leaves_after is not None and self.pieces >= self.leaves_after


# What a client opens stays open on the stack, so that leaving a stream is not mistaken for closing the client.
Speak: TypeAlias = "Callable[[Call, Heard, AsyncExitStack], Awaitable[None]]"


@dataclass(frozen=True, slots=True)
class Client:
    """A client, and how it tells what went wrong.

    `dialect` names its upstream and `api` what it calls there; `address` is its base URL at the proxy. `refused`,
    `limited`, `broken` (by an error event) and `torn` (without one) are the names of its errors; `retries` is how
    often it documents to try again; `hides` is what it keeps from its program, whatever arrives. `speak` is None
    where the Node process does it.
    """

    name: str
    dialect: str
    api: str
    address: str
    refused: str
    limited: str
    broken: str
    torn: str
    retries: int = 0
    hides: frozenset[str] = frozenset()
    speak: Speak | None = None

    def __str__(self) -> str:
        return self.name


def blocking(use: Callable[[Call, Heard, AsyncExitStack], None]) -> Speak:
    """A blocking client in a thread of its own, which holds nothing up where the client never returns."""

    async def speak(call: Call, heard: Heard, kept: AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        end = loop.create_future()

        def run() -> None:
            error = None
            try:
                use(call, heard, kept)
            except Exception as exc:  # noqa: BLE001 - handed to who waits
                error = exc
            loop.call_soon_threadsafe(end.set_result, error)

        Thread(target=run, daemon=True).start()
        if error := await end:
            raise error

    return speak


def member(value: Any, *names: str | int) -> Any:
    """A member deep in decoded JSON; None where something on the way is missing."""
    for name in names:
        try:
            value = value[name]
        except (KeyError, IndexError, TypeError):
            return None
    return value
