"""`GET /forward-sse/usage`: a user's own rows and limits, and nobody else's."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from proxy.app import SERVICE
from proxy.errors import LedgerUnavailableError, LimitsUnavailableError
from proxy.handlers.service import MAX_ASKING
from proxy.ledger import Query, Row, Sums
from proxy.ledger.row import LedgerCounts
from proxy.limits import LimitState
from proxy.limits.memory import MemoryStore
from tests.handlers.conftest import CHAT, as_user
from tests.peers import WAIT_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.handlers.service import Service
    from proxy.model import Amounts, Principal
    from tests.handlers.conftest import Client, Serve

PATH = "/forward-sse/usage"
DAY_S = 86_400
SUMS = Sums({"day": "2026-01-31", "model": "gpt-x"}, 3, 100, 50, 40, 7, 1_500_000, 1)


@dataclass
class FakeLedger:
    """Gives the same sums to every query, and remembers them; `is_away` is a database that does not answer."""

    sums_of_all: Sequence[Sums] = (SUMS,)
    asked: list[Query] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    is_away: bool = False
    start_s: float = 0.0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    is_holding: bool = False

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    def append(self, row: Row) -> None:
        self.rows.append(row)

    async def sums(self, query: Query) -> Sequence[Sums]:
        self.asked.append(query)
        if self.is_away:
            raise LedgerUnavailableError
        if self.is_holding:
            async with asyncio.timeout(WAIT_S):
                await self.go_on.wait()
        return self.sums_of_all

    async def used(self, issuer: str, user: str, since_ms: int) -> Amounts:
        raise NotImplementedError

    def set_retention(self, retention_s: float) -> None:
        """Nothing to do."""

    def counts(self) -> LedgerCounts:
        return LedgerCounts(0, 0, 0)


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


@pytest.fixture
async def asking(serve: Serve, ledger: FakeLedger) -> Client:
    """A client of an application with that ledger, and a user who is limited to 60 requests in 10 s."""
    client = await serve()
    service_of(client).ledger = ledger
    return client


def service_of(client: Client) -> Service:
    assert client.app is not None
    return client.app[SERVICE]


class ToldStore(MemoryStore):
    """A store in which everybody stands in the same way; one that is away where nobody stands in any."""

    states: tuple[LimitState, ...] = ()

    async def limits(self, principal: Principal) -> tuple[LimitState, ...]:
        if not self.states:
            raise LimitsUnavailableError
        return self.states


def count_by(service: Service, *states: LimitState) -> None:
    store = ToldStore()
    store.states = states
    service.rules = replace(service.rules, store=store)


def at(moment: str) -> float:
    """The Unix time of a moment that is told in UTC."""
    return datetime.strptime(moment, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize("slash", ["", "/"])
async def test_usage_rows(asking: Client, ledger: FakeLedger, slash: str) -> None:
    """The rows are the ledger's sums of that user since that moment, with amounts of money as decimals."""
    async with asking.get(f"{PATH}{slash}?since=24h&by=day%2Cmodel", headers=as_user()) as response:
        told = await response.json()
        assert (response.status, response.content_type) == (200, "application/json")
        assert response.headers["Cache-Control"] == "no-store"
    assert (told["user"], told["plan"]) == ("alice", "default")
    (row,) = told["rows"]
    assert row == {
        "day": "2026-01-31",
        "model": "gpt-x",
        "requests": 3,
        "input_tokens": 100,
        "output_tokens": 50,
        "cached_tokens": 40,
        "reasoning_tokens": 7,
        "unpriced": 1,
        "cost_usd": "0.0015",
    }
    (query,) = ledger.asked
    assert (query.issuer, query.user, query.by) == ("tests", "alice", ("day", "model"))
    assert query.since_ms == at(told["since"]) * 1000
    assert abs(at(told["since"]) - time.time() + DAY_S) < 60


@pytest.mark.parametrize(
    ("query", "by", "since_s"),
    [
        ("", ("day", "model"), 7 * DAY_S),
        ("?by=", (), 7 * DAY_S),
        ("?by=plan,upstream,model,day,ending,code", ("plan", "upstream", "model", "day", "ending", "code"), 7 * DAY_S),
        ("?%73ince=90m", ("day", "model"), 5400),
        # No further than rows are kept.
        ("?since=9999d", ("day", "model"), 90 * DAY_S),
    ],
)
async def test_usage_query(asking: Client, ledger: FakeLedger, query: str, by: tuple[str, ...], since_s: float) -> None:
    """Without a query it is the last week by day and model; never more than the ledger keeps."""
    async with asking.get(PATH + query, headers=as_user()) as response:
        assert response.status == 200
    (asked,) = ledger.asked
    assert asked.by == by
    assert abs(asked.since_ms / 1000 - time.time() + since_s) < 60


@pytest.mark.parametrize(
    "query",
    [
        "?by=user",
        "?by=issuer,day",
        "?by=prompt",
        "?by=day,day",
        "?by=day,",
        "?since=",
        "?since=0s",
        "?since=7",
        "?since=-1d",
        "?since=1d&since=2d",
        "?by=day&by=model",
        "?user=bob",
        "?issuer=tests",
        "?sinse=30d",
        "?by=%ff",
    ],
)
async def test_usage_query_refused(asking: Client, ledger: FakeLedger, query: str) -> None:
    """What is not understood is refused, and so is asking after somebody else."""
    async with asking.get(PATH + query, headers=as_user()) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (400, "invalid_request")
    assert not ledger.asked


async def test_usage_limits(asking: Client) -> None:
    """Limits are told as the store counts them: dollars as decimals, moments in UTC and never too early."""
    count_by(
        service_of(asking),
        LimitState("requests", "60-per-10s", 60, 3, 0, 1_769_904_000.2),
        LimitState("usd", "50-usd-per-month", 50_000_000_000, 1_250_000_000, 40_000, 1_769_904_000.0),
    )
    async with asking.get(PATH, headers=as_user()) as response:
        told = (await response.json())["limits"]
    assert told == [
        {
            "kind": "requests",
            "name": "60-per-10s",
            "limit": 60,
            "used": 3,
            "reserved": 0,
            "resets_at": "2026-02-01T00:00:01Z",
        },
        {
            "kind": "usd",
            "name": "50-usd-per-month",
            "limit": "50",
            "used": "1.25",
            "reserved": "0.00004",
            "resets_at": "2026-02-01T00:00:00Z",
        },
    ]


async def test_usage_charges_nothing(serve: Serve, ledger: FakeLedger) -> None:
    """It has its id and its rate-limit fields, and takes neither a request nor a stream of the plan."""
    client = await serve(plans={"default": {"requests": ["1/1d"], "concurrent_streams": 1}})
    service = service_of(client)
    service.ledger = ledger
    for _ in range(3):
        async with client.get(PATH, headers=as_user()) as response:
            assert (response.status, response.headers["x-ratelimit-remaining-requests"]) == (200, "1")
            assert response.headers["X-Forward-Sse-Id"]
    assert service.store.leases_held == 0
    async with client.post("/forward-sse", json=CHAT, headers=as_user()) as response:
        assert response.status == 200


async def test_usage_of_many_groups(asking: Client, ledger: FakeLedger) -> None:
    """However many groups there are, every row is told, in order, and others are served meanwhile."""
    ledger.sums_of_all = [SUMS._replace(by={"model": f"m-{number}"}) for number in range(10_000)]
    async with asking.get(f"{PATH}?by=model", headers=as_user()) as response:
        rows = (await response.json())["rows"]
    assert [row["model"] for row in rows] == [f"m-{number}" for number in range(10_000)]
    assert all(row["cost_usd"] == "0.0015" for row in rows)


async def test_usage_without_a_ledger(client: Client) -> None:
    """Where no ledger is kept there are no rows, and the limits are still told."""
    async with client.get(PATH, headers=as_user()) as response:
        told = await response.json()
    assert (response.status, told["rows"]) == (200, [])
    assert isinstance(told["limits"], list)


async def test_usage_ledger_that_is_away(asking: Client, ledger: FakeLedger) -> None:
    """A ledger that does not answer is 503, and says when to come back."""
    ledger.is_away = True
    async with asking.get(PATH, headers=as_user()) as response:
        assert (response.status, response.headers["X-Forward-Sse-Code"]) == (503, "ledger_unavailable")
        assert int(response.headers["Retry-After"]) >= 1


async def test_usage_store_that_is_away(asking: Client) -> None:
    """So is a limits store."""
    count_by(service_of(asking))
    async with asking.get(PATH, headers=as_user()) as response:
        assert (response.status, response.headers["X-Forward-Sse-Code"]) == (503, "limits_unavailable")


async def test_usage_asked_too_often(asking: Client, ledger: FakeLedger) -> None:
    """A user who asks again and again has to wait, while others are told; a client that leaves counts no more."""
    ledger.is_holding = True
    waiting = [asyncio.create_task(asking.get(PATH, headers=as_user())) for _ in range(MAX_ASKING)]
    async with asyncio.timeout(WAIT_S):
        while len(ledger.asked) < MAX_ASKING:  # noqa: ASYNC110 - the fake has no event for it
            await asyncio.sleep(0)
    async with asking.get(PATH, headers=as_user()) as response:
        assert (response.status, response.headers["X-Forward-Sse-Code"]) == (429, "rate_limit_exceeded")
        assert "Retry-After" in response.headers
    ledger.is_holding = False
    async with asking.get(PATH, headers=as_user("bob")) as response:
        assert response.status == 200
    waiting.pop().cancel()
    async with asyncio.timeout(WAIT_S):
        while len(service_of(asking).exchanges.live()) >= MAX_ASKING:  # noqa: ASYNC110 - the same
            await asyncio.sleep(0)
    async with asking.get(PATH, headers=as_user()) as response:
        assert response.status == 200
    ledger.go_on.set()
    for answer in await asyncio.gather(*waiting):
        assert answer.status == 200
        answer.close()


@pytest.mark.parametrize(
    ("method", "headers", "status", "allow"),
    [
        pytest.param("GET", {}, 401, None, id="no token"),
        pytest.param("POST", as_user(), 405, "GET, HEAD", id="method"),
        pytest.param("DELETE", {}, 405, "GET, HEAD", id="method without a token"),
        pytest.param("OPTIONS", as_user(), 405, "GET, HEAD", id="options that is no preflight"),
    ],
)
async def test_usage_refused(
    asking: Client, ledger: FakeLedger, method: str, headers: dict[str, str], status: int, allow: str | None
) -> None:
    """Only a user may ask, and only ask."""
    async with asking.request(method, PATH, headers=headers) as response:
        assert (response.status, response.headers.get("Allow")) == (status, allow)
    assert not ledger.asked


async def test_usage_head(asking: Client) -> None:
    """HEAD is answered as GET, without the body."""
    async with asking.head(PATH, headers=as_user()) as response:
        assert (response.status, await response.read()) == (200, b"")
        assert int(response.headers["Content-Length"]) > 0


async def test_usage_while_draining(asking: Client) -> None:
    """While the proxy drains it answers no more of them."""
    service_of(asking).is_draining = True
    async with asking.get(PATH, headers=as_user()) as response:
        assert (response.status, response.headers["X-Forward-Sse-Code"]) == (503, "draining")


async def test_usage_for_a_page(serve: Serve) -> None:
    """A page of a known origin may ask, and read the fields that tell what is left."""
    client = await serve(cors={"origins": ["https://app.example.com"]})
    asked: dict[str, Any] = {
        "Origin": "https://app.example.com",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization",
    }
    async with client.options(PATH, headers=asked) as response:
        assert response.status == 204
        assert "GET" in response.headers["Access-Control-Allow-Methods"]
    async with client.get(PATH, headers=as_user(Origin=asked["Origin"])) as response:
        exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
    assert response.status == 200
    assert {f"x-ratelimit-{value}-tokens" for value in ("limit", "remaining", "reset")} <= set(exposed)
