"""The console's page and its event stream, against workers that a test makes up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from proxy.app import make_admin_app
from proxy.auth.operators import Operators
from proxy.console import feed as feed_module
from proxy.console.choice import MAX_ROWS
from proxy.console.feed import MAX_CONSOLES
from proxy.errors import LedgerUnavailableError
from proxy.handlers.console import FEED
from proxy.handlers.operators import COOKIE, PAGE_FIELD, PAGE_VALUE
from tests.console.known import OPERATE, RULES, VIEW
from tests.console.made_up import MadeUp, made_up
from tests.console.watching import watch
from tests.peers import WAIT_S, connect, request

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.test_utils import TestClient
    from pytest_aiohttp.plugin import AiohttpClient

    Client = TestClient[web.Request, web.Application]


@pytest.fixture
def view() -> MadeUp:
    return MadeUp([made_up(number) for number in range(3)])


@pytest.fixture
async def admin(aiohttp_client: AiohttpClient, view: MadeUp) -> Client:
    return await aiohttp_client(make_admin_app(view))


def address(client: Client) -> tuple[str, int]:
    assert client.port is not None
    return client.host, client.port


async def idle(client: Client) -> None:
    """Wait until no console is connected."""
    feed = client.app[FEED] if client.app is not None else None
    assert feed is not None
    async with asyncio.timeout(WAIT_S):
        while feed.consoles:  # noqa: ASYNC110 - a reader's leaving is announced to nobody
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("slash", ["", "/"])
async def test_console_page(admin: Client, slash: str) -> None:
    """The page is one document: everything inline by its digest, in no frame, never guessed at; and 304 where known."""
    async with admin.get("/console" + slash) as response:
        policy = response.headers["Content-Security-Policy"]
        text = await response.text()
    assert (response.status, response.content_type) == (200, "text/html")
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "img-src data:;" in policy
    assert "unsafe" not in policy
    assert "<script src" not in text
    assert " style=" not in text
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    async with admin.get("/console", headers={"If-None-Match": response.headers["ETag"]}) as again:
        assert again.status == 304


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/console", 405),
        ("POST", "/admin/events", 405),
        ("HEAD", "/admin/events", 405),
        ("GET", "/admin/events?phase=sleeping", 400),
        ("GET", "/admin/events?sort=prompt", 400),
        ("GET", "/admin/events?order=up", 400),
        ("GET", "/admin/events?filter=a&filter=b", 400),
        ("GET", "/admin/events?token=a", 400),
        ("GET", "/admin/events?filter=" + 129 * "a", 400),
        ("GET", "/admin/events?filter=%00", 400),
    ],
)
async def test_console_refused(admin: Client, view: MadeUp, method: str, path: str, status: int) -> None:
    """What is not understood is refused, and nobody is asked."""
    async with admin.request(method, path) as response:
        assert response.status == status
    assert view.asked == 0


async def test_events(admin: Client, view: MadeUp) -> None:
    """A whole picture comes first, then what has changed; together they are what the workers say."""
    async with watch(address(admin)) as watching:
        assert watching.response.headers["Content-Type"] == "text/event-stream"
        assert watching.response.headers["Cache-Control"] == "no-store"
        assert await watching.next() == "snapshot"
        assert len(watching.rows) == 3
        assert watching.members["streams_running"] == 3
        assert set(watching.rows["7-1-1"]) == {
            *("key", "worker", "id", "user", "issuer", "plan", "upstream", "model", "phase", "attempts"),
            *("started_ms", "first_byte_ms", "events", "events_per_s", "bytes", "unsent"),
            *("tokens_in", "tokens_out", "cost_usd", "usage"),
        }

        view.rows = [*view.rows[1:], made_up(9)]
        view.ended = 7
        assert await watching.next() == "delta"
        assert watching.last["gone"] == ["7-1-0"]
        assert set(watching.rows) == {"7-1-1", "7-1-2", "7-1-9"}
        assert watching.members["counters"]["endings"]["complete"] == 7
        assert watching.rows["7-1-1"]["bytes"] == view.rows[0]["bytes"]
        assert "user" not in next(row for row in watching.last["streams"] if row["key"] == "7-1-1")
    await idle(admin)


async def test_events_cap_and_filter(admin: Client, view: MadeUp) -> None:
    """Of many streams the first are sent, with the number and the sums of all; a filter finds any of them."""
    view.rows = [made_up(number) for number in range(2000)]
    async with watch(address(admin), "?sort=tokens") as watching:
        await watching.next()
        assert len(watching.rows) == MAX_ROWS
        assert watching.members["totals"]["count"] == 2000
        assert watching.members["totals"]["tokens_out"] == sum(row["tokens_out"] for row in view.rows)
        assert (
            min(row["tokens_out"] for row in watching.rows.values())
            >= sorted(row["tokens_out"] for row in view.rows)[-MAX_ROWS]
        )
    for query in ("?filter=bob-0&upstream=anthropic", "?user=bob-0&issuer=https%3A%2F%2Fid.example.com"):
        async with watch(address(admin), query) as watching:
            await watching.next()
            assert [row["user"] for row in watching.rows.values()] == ["bob-0"]
            assert watching.members["totals"]["count"] == 1
            assert watching.members["streams_running"] == 2000


async def test_events_bound(admin: Client, view: MadeUp) -> None:
    """So many consoles and no more, of which each takes its place while it is connected only; all share one asking."""
    watched = [await connect(address(admin)) for _ in range(MAX_CONSOLES)]
    for peer in watched:
        peer.write(request("/admin/events", method="GET"))
        await peer.read_until(b"event: snapshot")
    async with admin.get("/admin/events") as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "too_many_consoles"
        assert "Retry-After" in response.headers
    asked = view.asked
    await asyncio.gather(*(peer.read_until(b"event: delta") for peer in watched))
    # All were told another picture; the workers were asked once or, where a second began meanwhile, twice.
    assert view.asked - asked <= 2

    await watched[0].gone()
    async with asyncio.timeout(WAIT_S):
        while True:
            async with admin.get("/admin/events") as response:
                if response.status == 200:
                    break
            await asyncio.sleep(0.05)
    for peer in watched[1:]:
        await peer.gone()
    await idle(admin)


async def test_events_nobody_watches(admin: Client, view: MadeUp) -> None:
    """Nobody is asked before a console is connected, and nothing runs after the last one has left."""
    assert admin.app is not None
    feed = admin.app[FEED]
    assert (view.asked, feed.is_running) == (0, False)
    async with watch(address(admin)) as watching:
        await watching.next()
        assert feed.is_running
    await idle(admin)
    assert not feed.is_running


async def test_events_slow_reader(admin: Client, view: MadeUp) -> None:
    """A reader that takes nothing is disconnected after a while, and until then keeps nobody waiting."""
    assert admin.app is not None
    feed = admin.app[FEED]
    feed.write_s = 0.2
    # More than sockets hold.
    view.rows = [made_up(number, model="m" * 20_000) for number in range(MAX_ROWS)]
    slow = await connect(address(admin), receive_buffer=4096)
    slow.write(request("/admin/events", method="GET"))
    await slow.read_until(b"event: snapshot")
    async with watch(address(admin), "?filter=alice-0") as watching:
        for _ in range(3):
            assert await watching.next() is not None
        assert watching.names == ["snapshot", "delta", "delta"]
        # The other one has gone, without having left.
        assert feed.consoles == 1
    await slow.gone()


async def test_events_end_of_the_server(aiohttp_client: AiohttpClient, view: MadeUp) -> None:
    """The end of the worker ends every console's stream at once, in order, and no more are taken."""
    client = await aiohttp_client(make_admin_app(view))
    async with watch(address(client)) as watching:
        await watching.next()
        began = asyncio.get_running_loop().time()
        closing = asyncio.create_task(client.close())
        while await watching.next() is not None:
            pass
        await closing
    # Not after the minute that connections are waited for: nobody waits for a reader.
    assert asyncio.get_running_loop().time() - began < WAIT_S


async def test_events_end_and_come_back(admin: Client) -> None:
    """A drain ends the streams; whoever comes back is served."""
    async with watch(address(admin)) as watching:
        await watching.next()
        assert admin.app is not None
        admin.app[FEED].end()
        while await watching.next() is not None:
            pass
    async with watch(address(admin)) as again:
        assert await again.next() == "snapshot"


async def test_events_of_a_failing_source(admin: Client, view: MadeUp) -> None:
    """A defect ends the stream instead of leaving it silent, and whoever comes back begins anew."""
    async with watch(address(admin)) as watching:
        await watching.next()
        rows, view.rows = view.rows, [{"key": "broken"}]
        while await watching.next() is not None:
            pass
    view.rows = rows
    async with watch(address(admin)) as again:
        assert await again.next() == "snapshot"


async def test_events_spend(admin: Client, view: MadeUp) -> None:
    """Spend is told where there is a ledger; while it cannot be read, what was known stays, and that is said."""
    spent: dict[str, Any] = {"since": "2026-01-01T00:00:00Z", "users": [], "models": [], "problem": None}
    view.spent = spent
    async with watch(address(admin)) as watching:
        await watching.until(lambda told: told.members.get("spend") == spent)

    async def fails() -> None:
        raise LedgerUnavailableError

    view.spend = fails  # type: ignore[method-assign]
    assert admin.app is not None
    admin.app[FEED].spend_every_s = 0.0
    async with watch(address(admin)) as watching:
        await watching.until(lambda told: bool((told.members.get("spend") or {}).get("problem")))
        assert watching.members["spend"]["since"] == spent["since"]


@dataclass
class Secured:
    """A listener with operators, and its clock."""

    client: Client
    operators: Operators
    now_s: float = 1_800_000_000.0

    async def cookie(self, text: str) -> tuple[str, str]:
        async with self.client.post("/console/session", json={"token": text}) as response:
            assert response.status == 204
            value = response.cookies[COOKIE].value
        self.client.session.cookie_jar.clear()
        return "Cookie", f"{COOKIE}={value}"


@pytest.fixture
async def secured(aiohttp_client: AiohttpClient, view: MadeUp) -> Secured:
    known = Operators(RULES, secret=b"s" * 32, now=lambda: found.now_s)
    found = Secured(await aiohttp_client(make_admin_app(view, known)), known)
    return found


async def test_events_need_a_credential(secured: Secured, view: MadeUp) -> None:
    """Without a credential there is no event; by a session of the role `view` there is, and nothing is stopped."""
    client = secured.client
    for headers in ({}, {"Authorization": "Bearer fssa_guess"}, {"Cookie": f"{COOKIE}=gone"}):
        async with client.get("/admin/events", headers=headers) as response:
            assert response.status == 401
    assert view.asked == 0
    looks = await secured.cookie(VIEW)
    async with watch(address(client), "", looks) as watching:
        assert await watching.next() == "snapshot"
        for path in ("/admin/streams/" + view.rows[0]["id"], "/admin/streams?user=alice-0"):
            async with client.delete(path, headers=[looks, (PAGE_FIELD, PAGE_VALUE)]) as response:
                assert (response.status, response.headers["X-Forward-Sse-Code"]) == (403, "insufficient_scope")
        assert await watching.next() == "delta"
    assert (view.stopped, view.whose) == ([], [])


@pytest.mark.parametrize("by", ["session", "token"])
async def test_events_end_with_the_token(secured: Secured, by: str) -> None:
    """A stream ends once its token is removed, be it by a session of it or by itself; another operator's goes on."""
    mine = await secured.cookie(OPERATE) if by == "session" else ("Authorization", f"Bearer {OPERATE}")
    where = address(secured.client)
    async with watch(where, "", mine) as ended, watch(where, "", await secured.cookie(VIEW)) as other:
        await asyncio.gather(ended.next(), other.next())
        secured.operators.rules = replace(RULES, tokens=RULES.tokens[1:])
        await ended.end()
        seen = len(other.names)
        await other.until(lambda told: len(told.names) > seen + 1)


async def test_events_end_with_the_session(secured: Secured) -> None:
    """A stream ends when its session expires; one by the token goes on, and by another session it begins anew."""
    where = address(secured.client)
    mine, token = await secured.cookie(OPERATE), ("Authorization", f"Bearer {OPERATE}")
    async with watch(where, "", mine) as ended, watch(where, "", token) as other:
        await asyncio.gather(ended.next(), other.next())
        secured.now_s += secured.operators.session_s
        await ended.end()
        assert await other.next() is not None
        async with secured.client.get("/admin/events", headers=[mine]) as response:
            assert (response.status, response.headers["X-Forward-Sse-Code"]) == (401, "expired_token")
    async with watch(where, "", await secured.cookie(OPERATE)) as again:
        assert await again.next() == "snapshot"


async def test_events_new_choice_is_told_at_once(admin: Client, view: MadeUp) -> None:
    """Another choice is looked for at once, not at the next second."""
    async with watch(address(admin)) as first:
        await first.next()
        loop = asyncio.get_running_loop()
        async with watch(address(admin), "?filter=bob") as second:
            began_s = loop.time()
            await second.next()
            told_after_s = loop.time() - began_s
        assert [row["user"] for row in second.rows.values()] == ["bob-0"]
        assert told_after_s < feed_module.INTERVAL_S
