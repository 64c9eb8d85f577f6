"""Upstreams that fail or are turned off: who is asked then, and what operators see of it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from proxy.settings.loading import load
from tests.conftest import token
from tests.failover import vendors as acts
from tests.failover.test_matrix import ask
from tests.failover.vendors import BODY, config, line_of, words
from tests.peers import LAST, STREAM_HEAD, Message, Peer, chunk, event, request
from tests.whole.test_admin_whole import samples

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Running, Start
    from tests.failover.vendors import Vendor

HEALTH = ", health: {failures: 2, out_for: 1m}"
ROUTE = '{models: ["gpt-*"], upstreams: [a, b], retry: {}}'


def text(vendors: list[Vendor], routes: str = ROUTE, upstream: str = HEALTH, **more: str) -> str:
    return config({vendor.name: vendor.url for vendor in vendors}, routes, upstream=upstream, **more)


async def admin(proxy: Running, path: str, method: str = "GET", body: bytes | None = None) -> Message:
    peer = await proxy.admin()
    peer.write(request(path, method=method, body=body))
    return await peer.read_message()


async def state_of(proxy: Running, name: str) -> dict[str, Any]:
    reports = (await admin(proxy, "/admin/upstreams")).json
    (report,) = (report for report in reports if report["name"] == name)
    return report  # type: ignore[no-any-return]  # JSON


def end_outage(proxy: Running, name: str) -> None:
    """Let the time be over for which an upstream is left out."""
    proxy.service.rules.states[name].breaker.out_until_s = 0.0


async def test_out_and_back(start: Start, vendors: list[Vendor]) -> None:
    """What fails is left out, which is no retry; it is tried again by one request, and then it is back."""
    vendors[0].script = [acts.status(500), acts.status(500), acts.answers]
    proxy = await start(config=text(vendors))

    served = [(await ask(proxy)).get("x-forward-sse-upstream") for _ in range(3)]
    out = await state_of(proxy, "a")
    readiness = await admin(proxy, "/readyz")
    metrics = samples((await admin(proxy, "/metrics")).body.decode())

    assert served == ["b", "b", "b"]
    assert len(vendors[0].asked) == 2
    assert (out["state"], out["failures"], 0 < out["out_for_s"] <= 60) == ("out", 2, True)
    assert (readiness.status, readiness.json["limping"]) == (200, ["upstream a: is left out"])
    assert metrics['forward_sse_upstream_out{upstream="a"}'] == 1
    assert metrics['forward_sse_upstream_out{upstream="b"}'] == 0
    assert metrics['forward_sse_upstream_attempts_total{outcome="5xx",upstream="a"}'] == 2
    assert metrics['forward_sse_upstream_attempts_total{outcome="ok",upstream="b"}'] == 3
    assert metrics['forward_sse_upstream_retries_total{upstream="a"}'] == 2
    assert 'forward_sse_upstream_retries_total{upstream="b"}' not in metrics
    last = (await proxy.settled(3))[-1]
    assert [attempt["upstream"] for attempt in last["attempts"]] == ["b"]

    end_outage(proxy, "a")
    assert (await ask(proxy)).get("x-forward-sse-upstream") == "a"
    assert (await state_of(proxy, "a"))["state"] == "on"
    assert (await line_of(proxy, "upstream.out"))["out_for_s"] == 60
    assert (await line_of(proxy, "upstream.back"))["upstream"] == "a"


async def test_one_at_a_time(start: Start, vendors: list[Vendor]) -> None:
    """While one request tries an upstream again, the others do without it."""
    go_on = asyncio.Event()

    async def slow(vendor: Vendor, peer: Peer) -> None:
        await go_on.wait()
        await acts.answers(vendor, peer)

    vendors[0].script = [acts.status(500), acts.status(500), slow]
    proxy = await start(config=text(vendors))
    for _ in range(2):
        await ask(proxy)
    end_outage(proxy, "a")
    trying = asyncio.create_task(ask(proxy))
    await vendors[0].is_asked(3)

    assert (await ask(proxy)).get("x-forward-sse-upstream") == "b"
    go_on.set()
    assert (await trying).get("x-forward-sse-upstream") == "a"
    assert len(vendors[0].asked) == 3


async def test_all_out(start: Start, vendors: list[Vendor]) -> None:
    """When all are out the least recently failed is asked: a breaker alone refuses nobody."""
    for vendor in vendors[:2]:
        vendor.script = [acts.status(500)] * 2 + [acts.answers]
    proxy = await start(config=text(vendors))
    for _ in range(2):
        assert (await ask(proxy)).status == 500

    answer = await ask(proxy)

    assert (answer.status, answer.get("x-forward-sse-upstream"), answer.body) == (200, "a", words("a"))


async def test_named_upstream_is_asked_though_out(start: Start, vendors: list[Vendor]) -> None:
    """A request that names its upstream has no other: it is asked, and a success takes the upstream back."""
    vendors[0].script = [acts.status(500), acts.status(500), acts.answers]
    proxy = await start(config=text(vendors))
    statuses = [(await ask(proxy, path="/a/v1/chat/completions")).status for _ in range(3)]

    assert statuses == [500, 500, 200]
    assert (await state_of(proxy, "a"))["state"] == "on"


async def test_broken_streams_count(start: Start, vendors: list[Vendor]) -> None:
    """Streams that break off are the upstream's fault; clients that leave are not."""
    vendors[0].script = [acts.breaks]
    proxy = await start(config=text(vendors, upstream=", health: {share: 100%, of_at_least: 3}"))
    for _ in range(3):
        assert not (await ask(proxy)).is_whole
    await proxy.settled(3)

    assert (await state_of(proxy, "a"))["state"] == "out"


async def test_off(start: Start, vendors: list[Vendor]) -> None:
    """What an operator turns off gets no new request: routes do without it, its name is 503; streams go on."""
    go_on = asyncio.Event()

    async def holds(vendor: Vendor, peer: Peer) -> None:
        await peer.send(STREAM_HEAD + chunk(event("one")))
        await go_on.wait()
        await peer.send(chunk(event("two")) + LAST)

    vendors[0].script = [holds]
    proxy = await start(config=text(vendors))
    client = await proxy.client()
    client.write(request("/v1/chat/completions", body=BODY, token=token()))
    await client.read_until(event("one") + b"\r\n")

    answer = await admin(proxy, "/admin/upstreams/a", "PUT", b'{"state":"off"}')
    routed, named = await ask(proxy), await ask(proxy, path="/a/v1/chat/completions")
    readiness = await admin(proxy, "/readyz")
    go_on.set()
    await client.read_until(event("two") + b"\r\n" + LAST)

    assert (answer.status, answer.json["state"], answer.json["running"]) == (200, "off", 1)
    assert (routed.status, routed.get("x-forward-sse-upstream")) == (200, "b")
    assert (named.status, named.get("x-forward-sse-code")) == (503, "upstream_off")
    assert int(named.get("retry-after") or 0) > 0
    # What the proxy itself refuses is given back.
    assert named.get("x-ratelimit-remaining-requests") == "98"
    assert readiness.json["limping"] == ["upstream a: is off"]
    assert (await line_of(proxy, "upstream.switched"))["state"] == "off"
    line = (await proxy.settled(3))[1]
    assert (line["ending"], line["code"], line.get("attempts")) == ("refused", "upstream_off", None)

    await admin(proxy, "/admin/upstreams/b", "PUT", b'{"state":"off"}')
    assert (await ask(proxy)).get("x-forward-sse-code") == "upstream_off"
    await admin(proxy, "/admin/upstreams/a", "PUT", b'{"state":"on"}')
    vendors[0].script = [acts.answers]
    assert (await ask(proxy)).get("x-forward-sse-upstream") == "a"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/admin/upstreams/nobody", b'{"state":"off"}', 404),
        ("PUT", "/admin/upstreams/a", b'{"state":"out"}', 400),
        ("PUT", "/admin/upstreams/a", b"{}", 400),
        ("PUT", "/admin/upstreams/a", b"off", 400),
        ("PUT", "/admin/upstreams/a", b'["off"]', 400),
        ("POST", "/admin/upstreams/a", b'{"state":"off"}', 405),
        ("POST", "/admin/upstreams", b"{}", 405),
        ("GET", "/admin/upstreams/", None, 200),
    ],
)
async def test_admin_refuses(
    start: Start, vendors: list[Vendor], method: str, path: str, body: bytes | None, status: int
) -> None:
    """What is not understood changes nothing."""
    proxy = await start(config=text(vendors))

    assert (await admin(proxy, path, method, body)).status == status
    assert (await state_of(proxy, "a"))["state"] == "on"


async def test_reload_keeps_what_is_known(start: Start, vendors: list[Vendor], tmp_path: Path) -> None:
    """A reload keeps who is off, out or limited; running streams keep their route."""
    go_on = asyncio.Event()

    async def holds(vendor: Vendor, peer: Peer) -> None:
        await go_on.wait()
        await acts.status(503)(vendor, peer)

    vendors[0].script = [holds]
    vendors[1].script = [acts.answers]
    proxy = await start(config=text(vendors))
    waiting = asyncio.create_task(ask(proxy))
    await vendors[0].is_asked()
    await admin(proxy, "/admin/upstreams/c", "PUT", b'{"state":"off"}')

    path = tmp_path / "proxy.yaml"
    written = text(vendors, '{models: ["gpt-*"], upstreams: [a]}').replace("{{", "{").replace("}}", "}")
    path.write_text(written)
    await proxy.server.reload(load(path, {}))
    go_on.set()

    assert (await waiting).get("x-forward-sse-upstream") == "b"
    assert (await state_of(proxy, "c"))["state"] == "off"
    assert (await state_of(proxy, "a"))["failures"] == 1
    assert json.loads((await ask(proxy)).body)["error"]["message"] == "no, says a"
