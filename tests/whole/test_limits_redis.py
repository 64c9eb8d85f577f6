"""Limits that several proxies share, and what users and operators see when their server is away."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from proxy.limits.redis.store import RedisStore
from proxy.model import Plan
from tests.conftest import token
from tests.limits.redis_groups import Cluster, SentinelGroup
from tests.limits.redis_support import TLS, WAIT_S, RedisServer, channel_of, holds, passes, user
from tests.peers import LAST, STREAM_HEAD, Message, Peer, Upstream, chunk, event, only, request
from tests.whole.test_tls import make_authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.conftest import Running
    from tests.limits.redis_groups import Group

BODY = {"model": "gpt-x", "stream": True}
PLANS = "plans: {default: {requests: [20/1h], concurrent_streams: 3}}\n"


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    """A server that runs."""
    server = RedisServer()
    server.address = replace(server.address, db=2)
    await server.start()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no outage here; how long an outage holds up whom is tested with the store itself."""
    defaults = RedisStore.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "timeout_s", WAIT_S)


def limits(server: RedisServer, policy: str = "deny") -> str:
    return PLANS + f"limits: {{store: 'unix://{server.path}?db=2', on_store_error: {policy}}}\n"


async def begin(proxy: Running, upstream: Upstream, credential: str) -> tuple[Peer, Peer]:
    """A stream that runs."""
    client = await proxy.client()
    client.write(request(body=BODY, token=credential))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    await client.read_until(event("one"))
    return client, vendor


async def refused(proxy: Running) -> tuple[int, str | None]:
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    answer = await client.read_message()
    return answer.status, answer.get("x-forward-sse-code")


async def get(proxy: Running, path: str) -> Message:
    peer = await proxy.admin()
    peer.write(request(path, method="GET"))
    return await peer.read_message()


async def test_two_proxies_hold_one_limit(start: Callable[..., Any], server: RedisServer, upstream: Upstream) -> None:
    """A user's streams are counted over all proxies, and one that ends on one makes room on the other."""
    one, other = await start(limits(server)), await start(limits(server))
    first = await begin(one, upstream, token())
    second = await begin(other, upstream, token())
    third = await begin(one, upstream, token())
    for proxy in (one, other):
        assert await refused(proxy) == (429, "too_many_streams")
    client, vendor = second
    vendor.write(LAST)
    await client.read_until(LAST)
    await holds(server, 2)
    fourth = await begin(one, upstream, token())
    # However they end.
    for (client, vendor), leaves in zip((first, third, fourth), (True, False, True), strict=True):
        if leaves:
            client.reset()
        else:
            vendor.reset()
        await vendor.closed()
    await one.idle()
    assert (one.leases_held, other.leases_held) == (0, 0)
    await holds(server, 0)


@pytest.mark.parametrize("policy", ["deny", "local", "allow"])
async def test_server_lost_while_streams_run(
    start: Callable[..., Any], server: RedisServer, upstream: Upstream, policy: str
) -> None:
    """Streams run on; new requests go by the policy; health, metric and log say so, and that it is over."""
    proxy = await start(limits(server, policy))
    client, vendor = await begin(proxy, upstream, token())
    server.kill()
    await passes(lambda: proxy.service.store.problem() is not None)

    ready = await get(proxy, "/readyz")
    if policy == "deny":
        assert ready.status == 503
        assert json.loads(ready.body)["reasons"] == ["limits: the server cannot be reached"]
        assert await refused(proxy) == (503, "limits_unavailable")
    else:
        assert ready.status == 200
        assert json.loads(ready.body)["limping"] == ["limits: the server cannot be reached"]
        other_client, other_vendor = await begin(proxy, upstream, token())
        other_vendor.write(LAST)
        await other_client.read_until(LAST)
    vendor.write(chunk(event("two")))
    await client.read_until(event("two"))
    metrics = (await get(proxy, "/metrics")).body.decode()
    assert int(float(metrics.partition("\nforward_sse_limits_store_errors_total ")[2].split()[0])) > 0

    await server.start()
    await passes(lambda: proxy.service.store.problem() is None)
    assert (await get(proxy, "/readyz")).status == 200
    await holds(server, 1)
    vendor.write(LAST)
    await client.read_until(LAST)
    await holds(server, 0)
    lines = await proxy.settled(2)
    assert [line.get("limits") for line in lines] == [None if policy == "deny" else policy, None]
    lost = only(proxy.lines(), "limits.store_lost")
    assert (lost["reason"], lost["on_store_error"]) == ("the server cannot be reached", policy)
    only(proxy.lines(), "limits.store_regained")
    assert proxy.leases_held == 0


async def test_refused_without_the_server(start: Callable[..., Any], server: RedisServer, upstream: Upstream) -> None:
    """With `local`, also the line of a request that was refused for the user's limit says who counted."""
    proxy = await start(limits(server, "local"))
    server.kill()
    await passes(lambda: proxy.service.store.problem() is not None)
    held = [await begin(proxy, upstream, token()) for _ in range(3)]
    assert await refused(proxy) == (429, "too_many_streams")
    for client, vendor in held:
        client.reset()
        await vendor.closed()
    assert {line["limits"] for line in await proxy.settled(4)} == {"local"}


async def test_client_leaves_while_the_server_hangs(
    start: Callable[..., Any], server: RedisServer, upstream: Upstream
) -> None:
    """A client that leaves while the store is asked holds nothing, once the server comes to the question."""
    proxy = await start(limits(server))
    server.stop()
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    await passes(lambda: channel_of(proxy.service.store).waiting > 0)
    client.reset()
    line = only(await proxy.settled(), "exchange.settled")
    assert line["ending"] == "client_closed"
    server.go_on()
    await holds(server, 0)
    await passes(lambda: proxy.service.store.problem() is None)
    assert upstream.is_untouched
    admission = await begin(proxy, upstream, token())
    admission[0].reset()
    await admission[1].closed()


async def test_own_refusals_are_given_back(start: Callable[..., Any], server: RedisServer, upstream: Upstream) -> None:
    """A body that we refuse costs nothing, and its answer says so already."""
    proxy = await start(limits(server))
    client = await proxy.client()
    for _ in range(3):
        client.write(request(body=b"{", token=token()))
        answer = await client.read_message()
        assert (answer.status, answer.get("x-ratelimit-remaining-requests")) == (400, "20")
    await proxy.idle()
    await holds(server, 0)
    assert upstream.is_untouched


async def test_over_tls(start: Callable[..., Any], upstream: Upstream, tmp_path: Path, unused_tcp_port: int) -> None:
    """`rediss://` verifies the server by the operator's authority; one that it does not know is no store."""
    authority = make_authority(tmp_path)
    server = RedisServer(
        "--tls-port",
        str(unused_tcp_port),
        "--tls-cert-file",
        str(authority.good),
        "--tls-key-file",
        str(authority.good),
        "--tls-ca-cert-file",
        str(authority.certificate),
        "--tls-auth-clients",
        "no",
    )
    url = f"rediss://localhost:{unused_tcp_port}/2"
    server.address = replace(server.address, db=2)
    try:
        await server.start()
        trusting = await start(PLANS + f"limits: {{store: '{url}?ca_file={authority.certificate}'}}\n")
        assert trusting.service.store.problem() is None
        client, vendor = await begin(trusting, upstream, token())
        await holds(server, 1)
        client.reset()
        await vendor.closed()
        await holds(server, 0)
        doubting = await start(PLANS + f"limits: {{store: '{url}'}}\n")
        assert "not trusted" in doubting.service.store.problem()
        assert await refused(doubting) == (503, "limits_unavailable")
    finally:
        server.close()


@pytest.mark.parametrize("kind", [RedisServer, SentinelGroup, Cluster])
async def test_over_tls_with_certificates_on_both_sides(
    start: Callable[..., Any], upstream: Upstream, tmp_path: Path, kind: Callable[..., RedisServer | Group]
) -> None:
    """Servers and sentinels that want a certificate get it; those of another authority are no store, and told as such.

    So is a store that wants a certificate that we do not have.
    """
    (tmp_path / "other").mkdir()
    authority, other = make_authority(tmp_path), make_authority(tmp_path / "other")
    tls = TLS(authority.certificate, authority.good)
    server = kind(tls=tls)
    try:
        await server.start()
        trusting = await start(PLANS + f"limits: {{store: '{server.url}'}}\n")
        store = trusting.service.store
        assert store.problem() is None
        client, vendor = await begin(trusting, upstream, token())
        await holds(server, 1)
        await store.put_ticket("one", b"sealed", 60, user(Plan("any")))
        assert await store.take_ticket("one") == b"sealed"
        client.reset()
        await vendor.closed()
        await holds(server, 0)

        wrong_authority = server.url.replace(str(authority.certificate), str(other.certificate))
        doubting = await start(PLANS + f"limits: {{store: '{wrong_authority}'}}\n")
        untrusted = "the server's certificate is not trusted, or it speaks no TLS"
        assert doubting.service.store.problem() == untrusted
        assert (await get(doubting, "/readyz")).json["reasons"] == [f"limits: {untrusted}"]
        assert await refused(doubting) == (503, "limits_unavailable")

        without = server.url.partition("&certificate=")[0]
        nameless = await start(PLANS + f"limits: {{store: '{without}'}}\n")
        assert nameless.service.store.problem() is not None
        assert (await get(nameless, "/readyz")).status == 503
        assert await refused(nameless) == (503, "limits_unavailable")
        assert store.problem() is None
    finally:
        server.close()
