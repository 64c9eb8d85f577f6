"""The mixed load: what frontends do, well and badly, each of it a short function that ends by itself."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.conftest import token
from tests.peers import Message, Peer, connect, request
from tests.whole.leavers import LONGEST_STAY_S, Leaver

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.soak.ledger import Ledger, Sent

USERS = 60
CHAT = "/mock/v1/chat/completions"
BODY = {"model": "gpt-x", "stream": True, "messages": [{"role": "user", "content": "hello there"}]}
# What no answer may take: longer than any of these lasts on a machine that is busy with other things too.
PATIENCE_S = 60.0
FAULTS = ("reset", "truncate", "garbage", "split", "slow_headers", "error_event")
NARROW_QUOTA, NARROW_WINDOW_S = 5, 10


@dataclass
class Admitted:
    """How often the users of the narrow plan were let in, and since when."""

    count: int = 0
    since_s: float = 0.0


class Load:
    """Clients that come one after another until told otherwise."""

    def __init__(self, address: tuple[str, int], ledger: Ledger, seed: int) -> None:
        self.address = address
        self.ledger = ledger
        self.narrow = Admitted(since_s=time.monotonic())
        self.is_over = False
        self._random = random.Random(seed)
        self._leavers = 0
        exp = int(time.time()) + 10**6
        self._users = [token(f"user-{number}", exp=exp) for number in range(USERS)]
        self._narrow_user = token("narrow", plan="narrow", exp=exp)

    async def run(self, clients: int) -> None:
        """Keep so many clients busy until `is_over`."""
        await asyncio.gather(*(self._client() for _ in range(clients)))

    async def each(self) -> None:
        """Do everything once, so that whatever is made once is made."""
        for scene, _ in SCENES:
            await self._play(scene)

    async def _client(self) -> None:
        scenes, weights = zip(*SCENES, strict=True)
        while not self.is_over:
            await self._play(self._random.choices(scenes, weights)[0])

    async def _play(self, scene: Callable[[Load], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await scene(self)
        except TimeoutError:
            self.ledger.wrong("no end", scene.__name__)
        except (OSError, asyncio.IncompleteReadError, ValueError, IndexError) as exc:
            # A connection that a worker took along in its death; else somebody is wrong.
            now_s = time.monotonic()
            if not any(now_s - PATIENCE_S < death_s for death_s in self.ledger.deaths_s):
                self.ledger.wrong("broken off", f"{scene.__name__}: {exc!r}")

    def user(self) -> str:
        return self._random.choice(self._users)

    async def ask(
        self,
        client: Peer,
        kind: str,
        path: str,
        *,
        user: str | None = None,
        method: str = "POST",
        body: bytes | None = None,
    ) -> tuple[Sent, Message]:
        """Send a request, and read the head of its answer."""
        sent = self.ledger.begin(kind)
        what = body if body is not None else BODY if method == "POST" else None
        fields = (("X-Request-Id", sent.id),)
        client.write(request(path, what, method=method, token=user or self.user(), fields=fields))
        try:
            head = await client.read_head()
            sent.status = head.status
        finally:
            sent.ended_s = time.monotonic()
        return sent, head

    async def stream(self, kind: str, path: str, mark: bytes, *, user: str | None = None) -> Sent:
        """A stream to its end, which must hold the mark."""
        async with await connect(self.address) as client:
            sent, head = await self.ask(client, kind, path, user=user)
            rest = await _rest(client, head)
            sent.ended_s = time.monotonic()
            if sent.status not in {429, 503}:
                sent.is_whole = rest.endswith(b"0\r\n\r\n") and mark in rest
                if not sent.is_whole and not self.ledger.may_be_lost(sent):
                    self.ledger.wrong("not whole", f"{sent}: ...{rest[-200:]!r}")
            return sent


async def _rest(client: Peer, head: Message) -> bytes:
    """The body as it comes, with its last chunk; what came of it where it breaks off."""
    length = head.get("content-length")
    if length is not None:
        return await client.read_exactly(int(length))
    rest = b""
    while not rest.endswith(b"0\r\n\r\n"):
        piece = await client.reader.read(65536)
        if not piece:
            break
        rest += piece
    return rest


async def whole(load: Load) -> None:
    events, interval_ms = load._random.randint(1, 30), load._random.randint(0, 20)
    await load.stream("whole", f"{CHAT}?events={events}&interval_ms={interval_ms}", b"[DONE]")


async def kept(load: Load) -> None:
    async with await connect(load.address) as client:
        for _ in range(5):
            sent, head = await load.ask(client, "kept", f"{CHAT}?events=2")
            if head.get("transfer-encoding") is None:
                return
            sent.is_whole = (await _rest(client, head)).endswith(b"0\r\n\r\n")
            sent.ended_s = time.monotonic()


async def typed(load: Load) -> None:
    await load.stream("typed", f"{CHAT}?interval_ms=5&events=typed", b'"End"')


async def ticket(load: Load) -> None:
    async with await connect(load.address) as client:
        sent, head = await load.ask(client, "ticket", "/forward-sse/tickets?upstream=mock")
        body = await client.read_exactly(int(head.get("content-length") or 0))
        if head.status != 201:
            return
        sent.is_whole = True
        name = body.partition(b"ticket=")[2].partition(b'"')[0].decode()
        used, head = await load.ask(client, "used", f"/forward-sse?ticket={name}", method="GET")
        rest = await _rest(client, head)
        used.ended_s = time.monotonic()
        if b"event: end" not in rest and not load.ledger.may_be_lost(used):
            load.ledger.wrong("no end of a ticket", f"{used}: ...{rest[-200:]!r}")


async def leaver(load: Load) -> None:
    load._leavers += 1
    await Leaver(load._leavers, load.address).run()
    await asyncio.sleep(load._random.uniform(0, LONGEST_STAY_S / 4))


async def slow_reader(load: Load) -> None:
    async with await connect(load.address, receive_buffer=8192) as client:
        sent, head = await load.ask(client, "slow", f"{CHAT}?events=150&size=5000")
        if head.status != 200:
            return
        for _ in range(8):
            await client.reader.read(8192)
            await asyncio.sleep(0.1)
        rest = await _rest(client, head)
        sent.ended_s = time.monotonic()
        sent.is_whole = rest.endswith(b"0\r\n\r\n")
        if not sent.is_whole and not load.ledger.may_be_lost(sent):
            load.ledger.wrong("not whole", f"{sent}")


async def faulty_vendor(load: Load) -> None:
    fault = load._random.choice(FAULTS)
    after = load._random.choice((0, 1, 3))
    path = f"{CHAT}?events=5&interval_ms=1&fault={fault}&fault_after={after}"
    async with await connect(load.address) as client:
        await load.ask(client, f"fault-{fault}", path)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await client.reader.read(65536)
                await client.reader.read(65536)


async def failing_vendor(load: Load) -> None:
    status = load._random.choice((400, 401, 429, 500, 503))
    async with await connect(load.address) as client:
        sent, head = await load.ask(client, "status", f"{CHAT}?status={status}")
        await client.read_exactly(int(head.get("content-length") or 0))
        if head.status not in {status, 429, 503}:
            load.ledger.wrong("vendor's status", f"{sent} for {status}")


async def stalled_vendor(load: Load) -> None:
    async with await connect(load.address) as client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(load._random.uniform(0.1, 0.6)):
                await load.ask(client, "stall", f"{CHAT}?events=5&fault=stall&fault_after=2")
                await client.reader.read(65536)
                await asyncio.Event().wait()


async def refused(load: Load) -> None:
    async with await connect(load.address) as client:
        for path, user, body in (
            (CHAT, "no.such.token", None),
            ("/forward-sse", None, b"{"),
            ("/nobody/v1/chat/completions", None, None),
        ):
            sent, head = await load.ask(client, "refused", path, user=user, body=body)
            await client.read_exactly(int(head.get("content-length") or 0))
            if head.status not in {400, 401, 404, 429, 503}:
                load.ledger.wrong("refusal", f"{sent}")


async def narrow(load: Load) -> None:
    sent = await load.stream("narrow", f"{CHAT}?events=1", b"[DONE]", user=load._narrow_user)
    load.narrow.count += sent.status == 200


async def stopped(load: Load) -> None:
    user = load.user()
    async with await connect(load.address) as client, await connect(load.address) as other:
        sent, head = await load.ask(client, "stop", f"{CHAT}?events=1000&interval_ms=50", user=user)
        if head.status != 200:
            return
        _, answer = await load.ask(other, "stopping", f"/forward-sse/streams/{sent.id}", user=user, method="DELETE")
        if answer.status != 204 and not load.ledger.may_be_lost(sent):
            load.ledger.wrong("not stopped", f"{sent}: {answer.status}")
            return
        await client.read_to_end()


SCENES: tuple[tuple[Callable[[Load], Awaitable[None]], int], ...] = (
    (whole, 30),
    (kept, 15),
    (typed, 10),
    (ticket, 10),
    (leaver, 25),
    (slow_reader, 3),
    (faulty_vendor, 12),
    (failing_vendor, 8),
    (stalled_vendor, 5),
    (refused, 8),
    (narrow, 10),
    (stopped, 5),
)
