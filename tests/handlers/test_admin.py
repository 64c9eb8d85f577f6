"""The operator's application, against a view that a test fills."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from proxy.app import make_admin_app
from proxy.console import Parts
from proxy.handlers.admin import Stopped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from pytest_aiohttp.plugin import AiohttpClient

    from proxy.console import Choice
    from proxy.handlers.admin import Stream, UpstreamReport
    from proxy.handlers.service import Problems
    from proxy.ledger import Query
    from tests.handlers.conftest import Client


@dataclass
class Fake:
    """What workers would tell."""

    reasons: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    asked: list[Query] = field(default_factory=list)
    off: bool = False
    whose: list[Mapping[str, str]] = field(default_factory=list)
    ended: Stopped = field(default_factory=lambda: Stopped(2))

    async def metrics(self, *, is_openmetrics: bool = False) -> bytes:
        return b"forward_sse_active_streams 1.0\n"

    async def streams(self) -> list[Stream]:
        return [{"id": "one", "user": "alice"}]

    async def stop(self, id_: str) -> bool:
        self.stopped.append(id_)
        return id_ == "one"

    async def stop_all(self, whose: Mapping[str, str]) -> Stopped:
        self.whose.append(whose)
        return self.ended

    async def configuration(self) -> dict[str, Any]:
        return {"config": {"workers": 1}, "loaded_at": "2026-01-01T00:00:00Z", "last_reload": None}

    async def usage(self, asked: Query) -> tuple[str, bytes]:
        self.asked.append(asked)
        return "2026-01-01T00:00:00Z", b'[{"user": "alice", "requests": 1}]'

    async def upstreams(self) -> list[UpstreamReport]:
        return [{"name": "main", "state": "off" if self.off else "on", "keys": []}]

    async def switch(self, name: str, *, is_off: bool) -> bool:
        self.off = is_off
        return name == "main"

    async def problems(self) -> Problems:
        return {"reasons": self.reasons, "limping": []}

    async def console(self, choices: Sequence[Choice]) -> Parts:
        return Parts({}, frozenset(), [])

    async def spend(self) -> None:
        return None


@pytest.fixture
def view() -> Fake:
    return Fake()


@pytest.fixture
async def admin(aiohttp_client: AiohttpClient, view: Fake) -> Client:
    return await aiohttp_client(make_admin_app(view))


@pytest.mark.parametrize("slash", ["", "/"])
async def test_admin_pages(admin: Client, slash: str) -> None:
    """Metrics are Prometheus' text, streams are JSON; a slash at the end changes nothing."""
    async with admin.get("/metrics" + slash) as response:
        assert (response.status, response.content_type) == (200, "text/plain")
        assert await response.read() == b"forward_sse_active_streams 1.0\n"
    async with admin.get("/admin/streams" + slash) as response:
        assert await response.json() == {"streams": [{"id": "one", "user": "alice"}]}


async def test_admin_upstreams(admin: Client) -> None:
    """The upstreams are a list; one is turned off and on by its name, and the answer is what it is then."""
    async with admin.get("/admin/upstreams") as response:
        assert [one["state"] for one in await response.json()] == ["on"]
    seen = []
    for name, state in (("main", "off"), ("main", "on"), ("other", "off"), ("main", "out")):
        async with admin.put(f"/admin/upstreams/{name}", json={"state": state}) as response:
            seen.append((response.status, (await response.json()).get("state")))
    assert seen == [(200, "off"), (200, "on"), (404, None), (400, None)]


async def test_admin_upstream_body(admin: Client) -> None:
    """A body in pieces is read whole; one that is too long is refused, not read."""

    async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
        for part in parts:
            yield part
            await asyncio.sleep(0.01)

    seen = []
    for parts in ((b'{"sta', b'te":"off"}'), (b" " * 2000, b'{"state":"off"}'), ()):
        async with admin.put("/admin/upstreams/main", data=pieces(*parts)) as response:
            seen.append(response.status)
    assert seen == [200, 400, 400]


async def test_admin_stop(admin: Client, view: Fake) -> None:
    """A stream is stopped by its id; where there is none, that is said."""
    statuses = []
    for id_ in ("one", "two"):
        async with admin.delete(f"/admin/streams/{id_}") as response:
            statuses.append(response.status)
    assert statuses == [204, 404]
    assert view.stopped == ["one", "two"]


async def test_admin_stop_all(admin: Client, view: Fake) -> None:
    """All streams of a user, of one issuer's or of any, or of an upstream are stopped, and their number is told."""
    told = []
    for query in ("user=a%20b", "user=alice&issuer=tests", "upstream=main"):
        async with admin.delete(f"/admin/streams?{query}") as response:
            told.append((response.status, await response.json()))
    view.ended = Stopped(0, silent=1)
    async with admin.delete("/admin/streams/?upstream=main") as response:
        told.append((response.status, await response.json()))
    assert told == [(200, {"stopped": 2})] * 3 + [(200, {"stopped": 0, "silent": 1})]
    assert view.whose == [
        {"user": "a b"},
        {"user": "alice", "issuer": "tests"},
        *[{"upstream": "main"}] * 2,
    ]


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?user=a&upstream=main",
        "?issuer=tests",
        "?upstream=main&issuer=tests",
        "?user=",
        "?user=a&user=b",
        "?id=one",
    ],
)
async def test_admin_stop_all_refused(admin: Client, view: Fake, query: str) -> None:
    """What does not say exactly whose streams stops none."""
    async with admin.delete(f"/admin/streams{query}") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (400, "invalid_request")
    assert view.whose == []


async def test_admin_config(admin: Client) -> None:
    """The configuration is told as the view has it."""
    async with admin.get("/admin/config") as response:
        assert (response.status, (await response.json())["config"]) == (200, {"workers": 1})


async def test_admin_usage(admin: Client, view: Fake) -> None:
    """Usage is asked for by columns and since when, of one user or of all."""
    async with admin.get("/admin/usage/?since=24h&by=day,ending&user=a%20b&issuer=tests") as response:
        rows = [{"user": "alice", "requests": 1}]
        assert await response.json() == {"since": "2026-01-01T00:00:00Z", "rows": rows}
    async with admin.get("/admin/usage") as response:
        assert response.status == 200
    one, all_ = view.asked
    assert (one.by, one.user, one.issuer) == (("day", "ending"), "a b", "tests")
    assert (all_.by, all_.user, all_.issuer) == (("user", "model"), None, None)
    assert abs(one.since_ms / 1000 - time.time() + 86_400) < 60
    assert abs(all_.since_ms / 1000 - time.time() + 7 * 86_400) < 60


@pytest.mark.parametrize("query", ["by=prompt", "by=day&by=model", "since=7", "since=0d", "who=me", "user=a&user=b"])
async def test_admin_usage_refused(admin: Client, view: Fake, query: str) -> None:
    """What is not understood is not answered as something else."""
    async with admin.get(f"/admin/usage?{query}") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (400, "invalid_request")
    assert not view.asked


async def test_admin_ready(admin: Client, view: Fake) -> None:
    """The service is ready as long as nothing stands against it."""
    seen = []
    for reasons in ([], ["draining"]):
        view.reasons = reasons
        async with admin.get("/readyz") as response:
            seen.append((response.status, (await response.json())["reasons"]))
    assert seen == [(200, []), (503, ["draining"])]


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("POST", "/metrics", 405, "GET, HEAD"),
        ("PUT", "/admin/streams", 405, "GET, HEAD, DELETE"),
        ("POST", "/admin/config", 405, "GET, HEAD"),
        ("PUT", "/console/session", 405, "GET, HEAD, POST, DELETE"),
        ("POST", "/admin/usage", 405, "GET, HEAD"),
        ("GET", "/admin/streams/one", 405, "DELETE"),
        ("GET", "/", 404, None),
        ("GET", "/forward-sse", 404, None),
    ],
)
async def test_admin_refused(admin: Client, view: Fake, method: str, path: str, status: int, allow: str | None) -> None:
    """What the operator's listener does not serve is refused with a code."""
    async with admin.request(method, path) as response:
        assert (response.status, response.headers.get("Allow")) == (status, allow)
        assert (await response.json())["error"]["code"]
    assert not view.stopped
