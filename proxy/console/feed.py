"""The feed: one collector of a worker's consoles, which asks all workers about once a second while somebody watches.

Consoles with the same choice are told the same bytes. Each is told at its own pace: one that does not read in time
misses what came meanwhile and is told the whole picture next, so that nothing waits for it anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from proxy import __version__
from proxy.console.picture import Parts, Picture, Tally, common_of
from proxy.errors import DrainingError, LedgerUnavailableError, TooManyConsolesError
from proxy.observability.logging import log_failure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.console.choice import Choice

# A picture is some 200 KB, and asking costs each worker some milliseconds.
MAX_CONSOLES: Final = 16
INTERVAL_S: Final = 1.0
# Another choice is looked for at once, but not more often than that.
_LEAST_INTERVAL_S: Final = 0.1
# The ledger sums up rows by the thousand.
SPEND_EVERY_S: Final = 10.0
# Without a picture for so long, a comment shows that the connection is alive.
HEARTBEAT_S: Final = 5.0
# A reader that takes nothing for so long is disconnected: a picture may be larger than what sockets hold.
WRITE_S: Final = 10.0
_PING: Final = b": waiting\n\n"


class Source(Protocol):
    """Who is asked what a console shows."""

    async def console(self, choices: Sequence[Choice]) -> Parts:
        """What every worker shows of these choices; soon, whatever the state of other workers."""
        ...

    async def spend(self) -> dict[str, Any] | None:
        """Who has spent most today; None where there is no ledger.

        Raises:
            LedgerUnavailableError: the ledger cannot be read right now.
        """
        ...


class _Channel:
    """What the consoles of one choice are told."""

    def __init__(self) -> None:
        self.number = 0
        self.picture: Picture | None = None
        self.delta = b""
        self._snapshot = b""

    def show(self, picture: Picture) -> None:
        """Another picture, a second later."""
        self.delta = b"" if self.picture is None else picture.delta(self.picture)
        self._snapshot = b""
        self.picture = picture
        self.number += 1

    def since(self, number: int) -> bytes:
        """What brings a console that has seen that picture up to date; the whole picture where it missed one."""
        if number and number == self.number - 1:
            return self.delta
        if not self._snapshot and self.picture is not None:
            self._snapshot = self.picture.snapshot()
        return self._snapshot


class Console:
    """One console that is connected, a context manager; leaving it frees its place."""

    def __init__(self, feed: Feed, channel: _Channel) -> None:
        self._feed = feed
        self._channel = channel
        self._seen = 0
        self._wake = asyncio.Event()
        self.is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._feed.leave(self)

    async def next(self) -> bytes | None:
        """The next event, or a comment where there was none for a while; None when the feed ends it."""
        while not self.is_over and self._seen == self._channel.number:
            self._wake.clear()
            try:
                async with asyncio.timeout(self._feed.heartbeat_s):
                    await self._wake.wait()
            except TimeoutError:
                return _PING
        if self.is_over:
            return None
        told = self._channel.since(self._seen)
        self._seen = self._channel.number
        return told

    def wake(self) -> None:
        """Look again whether there is something to tell."""
        self._wake.set()


class Feed:
    """The consoles of one worker. Without any, no task runs and nobody is asked.

    Attributes:
        write_s: How long a console may take to read what it is told.
        heartbeat_s: After how long without a picture a comment is written.
        spend_every_s: How often the ledger is asked at most.
    """

    def __init__(self, source: Source) -> None:
        self.write_s = WRITE_S
        self.heartbeat_s = HEARTBEAT_S
        self.spend_every_s = SPEND_EVERY_S
        self._source = source
        self._consoles: dict[Console, Choice] = {}
        self._channels: dict[Choice, _Channel] = {}
        self._wanted = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._tally = Tally()
        self._spend: dict[str, Any] | None = None
        self._spend_asked_s = float("-inf")
        self._is_closed = False

    @property
    def consoles(self) -> int:
        """How many are connected."""
        return len(self._consoles)

    @property
    def is_running(self) -> bool:
        """Whether workers are being asked."""
        return self._running is not None

    def open(self, choice: Choice) -> Console:
        """Connect another console.

        Raises:
            TooManyConsolesError: `MAX_CONSOLES` are connected.
            DrainingError: the worker ends.
        """
        if self._is_closed:
            raise DrainingError
        if len(self._consoles) >= MAX_CONSOLES:
            raise TooManyConsolesError
        channel = self._channels.get(choice)
        if channel is None:
            channel = self._channels[choice] = _Channel()
            self._wanted.set()
        console = Console(self, channel)
        self._consoles[console] = choice
        if self._running is None:
            self._running = asyncio.create_task(self._run())
            self._running.add_done_callback(self._stopped)
        return console

    def leave(self, console: Console) -> None:
        """Disconnect a console; idempotent. The last one ends what runs for them."""
        choice = self._consoles.pop(console, None)
        if choice is not None and choice not in self._consoles.values():
            del self._channels[choice]
        if not self._consoles and self._running is not None:
            self._running.cancel()
            self._running = None
            self._tally = Tally()

    def end(self) -> None:
        """End every console's stream; each may connect again, to whichever worker takes it."""
        for console in self._consoles:
            console.is_over = True
            console.wake()

    async def close(self) -> None:
        """End every console's stream, and take no more."""
        self._is_closed = True
        self.end()
        tasks = [task for task in (self._running, self._asking) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self) -> None:
        try:
            await self._show_regularly()
        except Exception:  # noqa: BLE001 - a defect of ours: the log is told where, and the consoles end
            log_failure("")

    async def _show_regularly(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            self._wanted.clear()
            await self._show()
            await asyncio.sleep(_LEAST_INTERVAL_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(began_s + INTERVAL_S):
                    await self._wanted.wait()

    async def _show(self) -> None:
        choices = list(self._channels)
        self._ask_for_spend()
        parts = await self._source.console(choices)
        # Choosing the rows has taken some milliseconds already.
        await asyncio.sleep(0)
        self._tally.add(parts)
        at_ms = time.time_ns() // 1_000_000
        common: Mapping[str, Any] = common_of(parts) | {
            "counters": self._tally.as_json(),
            "spend": self._spend,
            "version": __version__,
        }
        for index, choice in enumerate(choices):
            channel = self._channels.get(choice)
            if channel is not None:
                channel.show(Picture.of(choice, index, parts, at_ms=at_ms, common=common))
                for console, own in self._consoles.items():
                    if own == choice:
                        console.wake()
                await asyncio.sleep(0)

    def _ask_for_spend(self) -> None:
        """Ask the ledger anew, if it is time; nothing waits for it."""
        now_s = asyncio.get_running_loop().time()
        if self._asking is None and now_s - self._spend_asked_s >= self.spend_every_s:
            self._spend_asked_s = now_s
            self._asking = asyncio.create_task(self._ask_ledger())

    async def _ask_ledger(self) -> None:
        try:
            self._spend = await self._source.spend()
        except LedgerUnavailableError as error:
            self._spend = {"since": None, "users": [], "models": []} | (self._spend or {}) | {"problem": error.message}
        finally:
            self._asking = None

    def _stopped(self, running: asyncio.Task[None]) -> None:
        """A defect ends every console's stream, visibly; whoever comes then begins anew."""
        if self._running is running:
            self._running = None
            self.end()
