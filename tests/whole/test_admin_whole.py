"""The operator's listener, and health on both."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CONFIG, VENDOR_KEY, token
from tests.peers import LAST, STREAM_HEAD, Message, Peer, Upstream, chunk, event, request, secret_free

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running

BODY = {"model": "gpt-x", "stream": True}


async def begin(proxy: Running, upstream: Upstream, request_id: str = "mine-1") -> tuple[Peer, Peer]:
    """A stream that runs."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token(), fields=(("X-Request-Id", request_id),)))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    await client.read_until(event("one") + b"\r\n")
    return client, vendor


async def get(peer: Peer, path: str, method: str = "GET") -> Message:
    peer.write(request(path, method=method))
    return await peer.read_message(has_body=method != "HEAD")


def samples(text: str) -> dict[str, float]:
    """Every sample of a scrape by its name and labels."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def test_admin_metrics(proxy: Running, upstream: Upstream) -> None:
    """Every metric is there by its name and labels, counts what happened, and names no user."""
    client, vendor = await begin(proxy, upstream)
    admin = await proxy.admin()
    during = samples((await get(admin, "/metrics")).body.decode())
    vendor.write(chunk(event("two")) + LAST)
    await client.read_until(LAST)
    client.write(request(body=BODY))
    await client.read_message()
    await proxy.idle()
    answer = await get(admin, "/metrics")
    after = samples(answer.body.decode())

    assert (answer.get("content-type") or "").startswith("text/plain")
    prefix = "forward_sse_"
    assert during[prefix + 'active_streams{upstream="main"}'] == 1
    assert after[prefix + 'active_streams{upstream="main"}'] == 0
    assert after[prefix + 'requests_total{ending="complete",status="200",upstream="main"}'] == 1
    assert (
        sum(value for name, value in after.items() if re.match(prefix + r'requests_total\{ending="refused"', name)) == 1
    )
    assert after[prefix + 'refusals_total{code="missing_token"}'] == 1
    assert after[prefix + 'relayed_events_total{upstream="main"}'] == 2
    assert after[prefix + 'relayed_bytes_total{upstream="main"}'] == len(event("one") + event("two"))
    for name in ("time_to_first_byte_seconds", "stream_duration_seconds"):
        assert after[prefix + name + '_count{upstream="main"}'] == 1
        assert after[prefix + name + '_bucket{le="+Inf",upstream="main"}'] == 1
    connections = {name: value for name, value in during.items() if name.startswith(prefix + "upstream_connections{")}
    assert sum(connections.values()) == 1
    assert all(
        re.search(r'state="[a-z_]+",upstream="main"|upstream="main",state="[a-z_]+"', name) for name in connections
    )
    assert after[prefix + "limits_store_errors_total"] == 0
    assert after[prefix + "limits_store_up"] == 1
    assert after[prefix + "workers_configured"] == after[prefix + 'workers{state="answering"}'] == 1
    assert after[prefix + 'worker_cpu_seconds_total{worker="1"}'] > 0
    assert f"# TYPE {prefix}jwks_refreshes_total counter" in answer.body.decode()
    assert secret_free(answer.body, "alice", token(), VENDOR_KEY)


async def test_admin_metrics_labels_are_not_the_clients(proxy: Running, upstream: Upstream) -> None:
    """What a client makes up is no label: names that are nobody's and odd paths add no series."""
    client = await proxy.client()
    admin = await proxy.admin()
    counts = []
    for number in range(6):
        client.write(request(f"/made-up-{number}/x?upstream=y{number}", method="GET", token=token()))
        assert (await client.read_message()).status == 404
        client.write(request(f"/main/v1/odd{number}", method="GET", token=token()))
        assert (await client.read_message()).status == 403
        await proxy.idle()
        answer = await get(admin, "/metrics")
        counts.append(len(samples(answer.body.decode())))
        assert b"made-up" not in answer.body

    assert len(set(counts)) == 1


async def test_admin_streams(proxy: Running, upstream: Upstream) -> None:
    """The live streams are listed without anything of what they say, and go when they end."""
    client, vendor = await begin(proxy, upstream)
    admin = await proxy.admin()

    answer = await get(admin, "/admin/streams")

    assert answer.get("content-type") == "application/json"
    (stream,) = answer.json["streams"]
    expected = {
        "id": "mine-1",
        "user": "alice",
        "issuer": "tests",
        "plan": "default",
        "upstream": "main",
        "method": "POST",
        "path": "/forward-sse",
        "status": 200,
        "events": 1,
        "bytes": len(event("one")),
    }
    assert expected.items() <= stream.items()
    assert stream["age_s"] >= 0
    assert secret_free(answer.body, "gpt-x", token(), VENDOR_KEY, "content")
    vendor.write(LAST)
    await client.read_until(LAST)
    await proxy.idle()
    assert (await get(admin, "/admin/streams")).json == {"streams": []}


async def test_admin_stops_one_stream(proxy: Running, upstream: Upstream) -> None:
    """The stream with that id ends visibly, its vendor is left, and the others run on."""
    client, vendor = await begin(proxy, upstream, "one")
    other_client, other_vendor = await begin(proxy, upstream, "two")
    admin = await proxy.admin()

    answer = await get(admin, "/admin/streams/one", "DELETE")
    rest = await client.read_to_end()
    await vendor.closed()
    other_vendor.write(chunk(event("two")) + LAST)
    await other_client.read_until(LAST)

    assert answer.status == 204
    assert not rest.endswith(LAST)
    lines = {line["id"]: line["ending"] for line in await proxy.settled(2) if line["event"] == "exchange.settled"}
    assert lines == {"one": "stopped", "two": "complete"}
    assert (await get(admin, "/admin/streams/one", "DELETE")).status == 404
    assert proxy.leases_held == 0


async def test_admin_stops_a_request_that_waits(proxy: Running, upstream: Upstream) -> None:
    """A request whose vendor has not answered is stopped as well."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token(), fields=(("X-Request-Id", "waits"),)))
    vendor, _ = await upstream.take()
    admin = await proxy.admin()

    assert (await get(admin, "/admin/streams/waits", "DELETE")).status == 204

    await vendor.closed()
    await client.read_to_end()
    (line,) = await proxy.settled()
    assert line["ending"] == "stopped"
    assert proxy.leases_held == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("DELETE", "/admin/streams/nobody", 404, None),
        ("GET", "/admin/streams/nobody", 405, "DELETE"),
        ("POST", "/admin/streams/nobody", 405, "DELETE"),
        ("DELETE", "/admin/streams", 400, None),
        ("DELETE", "/admin/streams/", 400, None),
        ("PUT", "/admin/streams/", 405, "GET, HEAD, DELETE"),
        ("POST", "/metrics", 405, "GET, HEAD"),
        ("DELETE", "/healthz", 405, "GET, HEAD"),
        ("GET", "/", 404, None),
        ("GET", "/forward-sse", 404, None),
        ("POST", "/v1/chat/completions", 404, None),
        ("GET", "/main/v1/models", 404, None),
    ],
)
async def test_admin_serves_nothing_else(
    proxy: Running, upstream: Upstream, method: str, path: str, status: int, allow: str | None
) -> None:
    """The operator's listener forwards nothing and says what it has."""
    admin = await proxy.admin()

    answer = await get(admin, path, method)

    assert (answer.status, answer.get("allow")) == (status, allow)
    assert answer.get("x-forward-sse-code") is not None
    assert upstream.is_untouched


@pytest.mark.parametrize("path", ["/metrics", "/admin/streams", "/admin/streams/x"])
async def test_admin_is_not_public(proxy: Running, upstream: Upstream, path: str) -> None:
    """The clients' listener knows none of it, whoever asks."""
    client = await proxy.client()
    client.write(request(path, method="GET"))
    stranger = await client.read_message()
    client.write(request(path, method="GET", token=token()))
    user = await client.read_message()

    assert stranger.status in {401, 404}
    assert user.status == 404
    assert b"forward_sse_" not in stranger.body + user.body


@pytest.mark.parametrize("which", ["client", "admin"])
@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_admin_health(proxy: Running, which: str, path: str) -> None:
    """Both listeners say, without a token, that the proxy is alive and ready; HEAD says it without a body."""
    peer = await getattr(proxy, which)()

    got = await get(peer, path)
    head = await get(peer, path, "HEAD")
    again = await get(peer, path + "?probe=1")

    assert (got.status, head.status, again.status) == (200, 200, 200)
    assert got.json["status"] == ("ok" if path == "/healthz" else "ready")
    assert head.get("content-length") == got.get("content-length")
    assert not any(line["event"] == "exchange.settled" for line in proxy.lines())


@pytest.mark.parametrize("field", ["User-Agent", "X-Forwarded-Uri", "X-Original-URL", "X-Rewrite-URL"])
async def test_admin_health_is_no_way_in(proxy: Running, upstream: Upstream, field: str) -> None:
    """No field, and no query, makes another path one of health's."""
    client = await proxy.client()
    for path in ("/forward-sse?x=/healthz", "/main/v1/models?/readyz", "/healthzz", "/readyz/x"):
        client.write(request(path, {}, fields=((field, "/healthz"),)))
        answer = await client.read_message()
        assert answer.status in {401, 404}
    assert upstream.is_untouched


async def test_admin_readiness_while_draining(proxy: Running, upstream: Upstream) -> None:
    """While streams run out, the operator's listener says "draining", and the public one takes nobody new."""
    client, vendor = await begin(proxy, upstream)
    admin = await proxy.admin()
    draining = asyncio.create_task(proxy.server.drain(timeout_s=30))
    await asyncio.sleep(0)  # one step: the drain has begun when it first waits

    ready = await get(admin, "/readyz")
    alive = await get(admin, "/healthz")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*proxy.address)
    vendor.write(LAST)
    await client.read_until(LAST)
    await draining

    assert (ready.status, ready.json["status"], ready.json["reasons"]) == (503, "unready", ["draining"])
    assert alive.status == 200
    (line,) = await proxy.settled()
    assert line["ending"] == "complete"


async def test_admin_can_be_off(start: Callable[..., Any], upstream: Upstream) -> None:
    """Without an operator's listener health is still on the public one."""
    proxy = await start(config=CONFIG.replace("admin_listen: 127.0.0.1:0", 'admin_listen: "off"'))

    assert proxy.server.admin_listen is None
    assert (await get(await proxy.client(), "/readyz")).status == 200
