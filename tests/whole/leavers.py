"""Clients that leave, each in its phase of a request and in its own manner; an upstream that swallows connections."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.conftest import token
from tests.peers import Peer, connect, request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

BODY = {"model": "gpt-x", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
# Long enough that a client leaves everywhere between its first byte and well into what it waits for.
LONGEST_STAY_S = 0.3
MOCK = "/mock/v1/chat/completions"


@contextmanager
def blackhole() -> Iterator[str]:
    """The URL of a listener whose queue is full: the system drops who connects, as a firewall does."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class Leaver:
    """One client."""

    def __init__(self, number: int, address: tuple[str, int]) -> None:
        # Its own, so that a run is the same however its clients are scheduled.
        self._random = random.Random(number)
        self.number = number
        self._address = address
        self.user = token(f"user-{number % 20}")
        self.id = f"leaver-{number}"
        names = sorted(PHASES)
        self.phase = names[number % len(names)]

    async def run(self) -> None:
        """Come, ask, stay a while, leave; whatever the proxy does meanwhile."""
        receive_buffer = 4096 if self.phase == "slow" else None
        client = await connect(self._address, receive_buffer=receive_buffer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(self._random.uniform(0, LONGEST_STAY_S)):
                    await PHASES[self.phase](self, client)
                    if self.phase != "slow":
                        await client.read_to_end()
                    await asyncio.Event().wait()
            self._leave(client)
        finally:
            await client.gone()

    def ask(self, path: str, *, method: str = "POST", typed: bool = False) -> bytes:
        path += "&events=typed" if typed else ""
        fields = (("X-Request-Id", self.id),)
        return request(path, BODY if method == "POST" else None, method=method, token=self.user, fields=fields)

    def _leave(self, client: Peer) -> None:
        manner = self._random.choice((Peer.reset, Peer.close, _half_close))
        manner(client)


def _half_close(client: Peer) -> None:
    with contextlib.suppress(OSError):
        client.writer.write_eof()


async def _in_the_head(leaver: Leaver, client: Peer) -> None:
    client.write(leaver.ask(MOCK)[:100])


async def _in_the_body(leaver: Leaver, client: Peer) -> None:
    client.write(leaver.ask(MOCK)[:-20])


async def _connecting(leaver: Leaver, client: Peer) -> None:
    client.write(leaver.ask("/hole/v1/chat/completions"))


async def _before_the_first_byte(leaver: Leaver, client: Peer) -> None:
    client.write(leaver.ask(f"{MOCK}?first_byte_ms=600000"))


async def _between_events(leaver: Leaver, client: Peer) -> None:
    client.write(leaver.ask(f"{MOCK}?events=100000&interval_ms=7"))


async def _slow(leaver: Leaver, client: Peer) -> None:
    client.write(leaver.ask(f"{MOCK}?events=2000&size=10000"))


async def _typed(leaver: Leaver, client: Peer) -> None:
    client.write(leaver.ask(f"{MOCK}?interval_ms=5&size=50", typed=True))


async def _to_the_end(leaver: Leaver, client: Peer) -> None:
    client.write(leaver.ask(f"{MOCK}?events=3"))


async def _with_a_ticket(leaver: Leaver, client: Peer) -> None:
    client.write(leaver.ask("/forward-sse/tickets?upstream=mock"))
    made = await client.read_message()
    if made.status == 201:
        path = "/forward-sse?ticket=" + made.json["url"].partition("ticket=")[2]
        client.write(request(path, method="GET", fields=(("X-Request-Id", f"{leaver.id}-used"),)))


PHASES: dict[str, Callable[[Leaver, Peer], Awaitable[None]]] = {
    "head": _in_the_head,
    "body": _in_the_body,
    "connecting": _connecting,
    "first_byte": _before_the_first_byte,
    "between": _between_events,
    "slow": _slow,
    "typed": _typed,
    "end": _to_the_end,
    "ticket": _with_a_ticket,
}


async def come_and_go(count: int, address: tuple[str, int], *, at_a_time: int, first: int = 0) -> list[Leaver]:
    """Have so many clients come and leave, numbered from `first`, and give them once all have left."""
    slots = asyncio.Semaphore(at_a_time)
    leavers = [Leaver(number, address) for number in range(first, first + count)]

    async def one(leaver: Leaver) -> None:
        async with slots:
            await leaver.run()

    await asyncio.gather(*map(one, leavers))
    return leavers
