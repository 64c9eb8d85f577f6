"""The way in: the client's address behind trusted proxies, and bad credentials that are limited by it."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest

from proxy.settings.loading import load
from tests.conftest import CONFIG, SECRET, token
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Message, Peer, Upstream, chunk, event, request
from tests.proxies import nginx
from tests.whole.scenes import BODY, check_secrets
from tests.whole.test_tls import make_authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Running

API_KEY = "fsse_a-key-of-the-tests"
KEYS = f"  api_keys: [{{{{user: ci, sha256: '{hashlib.sha256(API_KEY.encode()).hexdigest()}'}}}}]\nupstreams:"


def config(text: str, more: str) -> str:
    """The tests' own file with an API key, and more at its end."""
    return text.replace("upstreams:", KEYS, 1) + more.replace("{", "{{").replace("}", "}}")


async def ask(client: Peer, credential: str | None, *fields: tuple[str, str], body: Any = None) -> Message:
    """A request that the proxy refuses by itself."""
    client.write(request(body=body or BODY, token=credential, fields=fields))
    return await client.read_message()


async def stream(client: Peer, upstream: Upstream, credential: str, *fields: tuple[str, str]) -> Message:
    """A request that reaches the vendor on a new connection."""
    client.write(request(body=BODY, token=credential, fields=fields))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + LAST)
    answer = await client.read_message()
    await vendor.gone()
    return answer


async def test_client_in_the_log(start: Callable[..., Any], upstream: Upstream) -> None:
    """With `trusted_proxies` the line has the client's address, and none of what a client invented."""
    proxy: Running = await start("trusted_proxies: [127.0.0.0/8]\n")
    client = await proxy.client()
    fields = (("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-For", "198.51.100.7"))
    await stream(client, upstream, token(), *fields)
    await ask(client, None, ("Forwarded", 'for="[2001:db8::1]:99"'))

    lines = await proxy.settled(2)

    assert [line["client"] for line in lines] == ["198.51.100.7", "2001:db8::1"]
    assert b"203.0.113.9" not in proxy.log_bytes()


async def test_client_without_trusted_proxies(proxy: Running, upstream: Upstream) -> None:
    """Without the key no address is written, the peer's or a claimed one."""
    client = await proxy.client()
    await stream(client, upstream, token(), ("X-Forwarded-For", "198.51.100.7"))

    (line,) = await proxy.settled()

    assert "client" not in line
    assert b"198.51.100.7" not in proxy.log_bytes()


async def test_client_of_nobody_trusted(start: Callable[..., Any]) -> None:
    """An empty list trusts nobody: the line has the peer's address."""
    proxy: Running = await start("trusted_proxies: []\n")
    await ask(await proxy.client(), None, ("X-Forwarded-For", "198.51.100.7"))
    assert (await proxy.settled())[0]["client"] == "127.0.0.1"


def forged() -> str:
    """A token with a signature of another token."""
    return token()[:-6] + "AAAAAA"


@pytest.mark.parametrize("bad", [forged(), "fsse_no-key-of-ours", "not.a.token", "x" * 9000])
async def test_failures_are_refused(start: Callable[..., Any], upstream: Upstream, bad: str) -> None:
    """Beyond the rate any unknown credential of that address is 429 with a wait; what was verified before passes."""
    proxy: Running = await start(config=config(CONFIG, "auth_failures: 3/1m\n"))
    good, client = token("alice"), await proxy.client()
    assert (await stream(client, upstream, good)).status == 200
    assert (await stream(client, upstream, API_KEY)).status == 200
    for _ in range(3):
        client = await proxy.client()
        assert (await ask(client, bad)).status == 401
    client = await proxy.client()

    refused = await ask(client, bad)

    assert (refused.status, refused.get("x-forward-sse-code")) == (429, "too_many_failures")
    assert 1 <= int(refused.get("retry-after") or 0) <= 20
    assert refused.json["error"]["code"] == "too_many_failures"
    client = await proxy.client()
    assert (await ask(client, token("bob"))).status == 429
    assert (await stream(client, upstream, good)).status == 200
    assert (await stream(client, upstream, API_KEY)).status == 200
    check_secrets(proxy, refused.body, secrets=(bad[:200], SECRET))
    codes = [line["code"] for line in await proxy.settled(9)]
    assert codes[2:7] == ["invalid_token"] * 3 + ["too_many_failures"] * 2


async def test_what_does_not_count(start: Callable[..., Any], upstream: Upstream) -> None:
    """Expired and missing tokens, and those without a scope, cost nothing of the rate."""
    proxy: Running = await start("auth_failures: 1/1m\n")
    client = await proxy.client()
    expired = token(exp=int(time.time()) - 600)
    for _ in range(3):
        assert (await ask(client, expired)).get("x-forward-sse-code") == "expired_token"
        assert (await ask(client, None)).get("x-forward-sse-code") == "missing_token"
    assert (await stream(client, upstream, token())).status == 200


async def test_failures_by_address(start: Callable[..., Any], upstream: Upstream) -> None:
    """Behind a trusted proxy each client has its own rate, IPv6 by /64; a spoofed field changes nothing."""
    proxy: Running = await start("auth_failures: 1/1m\ntrusted_proxies: [127.0.0.1/32]\n")
    client = await proxy.client()
    one, same, other = "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"

    assert (await ask(client, "bad", ("X-Forwarded-For", one))).status == 401
    assert (await ask(client, "bad", ("X-Forwarded-For", f"{other}, {same}"))).status == 429
    assert (await ask(client, "bad", ("X-Forwarded-For", other))).status == 401
    assert (await stream(client, upstream, token(), ("X-Forwarded-For", "192.0.2.1"))).status == 200


async def test_failures_of_a_passcode(start: Callable[..., Any]) -> None:
    """A wrong passcode of an envelope counts, too."""
    text = config(CONFIG, "auth_failures: 1/1m\nenvelope: {targets: [{url: 'https://agents.example.com/*'}]}\n")
    proxy: Running = await start(config=text.replace("  api_keys:", "  envelope_passcode: true\n  api_keys:"))
    client = await proxy.client()
    body = {"targetUrl": "https://agents.example.com/x", "body": "", "passcode": "fsse_wrong"}
    assert (await ask(client, None, body=body)).status == 401
    assert (await ask(client, None, body=body)).status == 429


async def test_failures_survive_a_reload(start: Callable[..., Any], tmp_path: Path) -> None:
    """A reload that keeps the rate keeps what was counted."""
    proxy: Running = await start("auth_failures: 1/1m\n")
    client = await proxy.client()
    assert (await ask(client, "bad")).status == 401
    await proxy.server.reload(load(tmp_path / "proxy.yaml", {}))
    assert (await ask(client, "bad")).status == 429


async def test_behind_nginx(start: Callable[..., Any], upstream: Upstream, tmp_path: Path) -> None:
    """Behind an nginx that ends TLS, streams pass as they come, and the client is who connected, whatever it claims."""
    authority = make_authority(tmp_path)
    more = "trusted_proxies: [127.0.0.1/32]\nauth_failures: 1/1m\n"
    proxy: Running = await start(more)
    async with nginx(tmp_path, authority.good, proxy.address[1]) as port:
        context = ssl.create_default_context(cafile=str(authority.certificate))

        async def client_at(address: str) -> Peer:
            async with asyncio.timeout(WAIT_S):
                return Peer(
                    *await asyncio.open_connection(
                        "127.0.0.1", port, ssl=context, server_hostname="localhost", local_addr=(address, 0)
                    )
                )

        claims = (("X-Forwarded-For", "203.0.113.9"), ("Forwarded", "for=203.0.113.10"))
        async with await client_at("127.0.0.5") as client:
            client.write(request(body=BODY, token=token(), fields=claims))
            vendor, received = await upstream.take()
            vendor.write(STREAM_HEAD + chunk(event("one")))
            await client.read_until(event("one") + b"\r\n")
            vendor.write(chunk(event("two")) + LAST)
            await client.read_until(event("two") + b"\r\n" + LAST)
            assert received.get("x-forwarded-for") is received.get("forwarded") is None
        for expected in (401, 429):
            async with await client_at("127.0.0.6") as client:
                assert (await ask(client, "bad", *claims)).status == expected
        async with await client_at("127.0.0.7") as client:
            assert (await ask(client, "bad", ("X-Forwarded-For", "127.0.0.6"))).status == 401
    lines = await proxy.settled(4)
    assert [line["client"] for line in lines] == ["127.0.0.5", "127.0.0.6", "127.0.0.6", "127.0.0.7"]
    assert b"203.0.113" not in proxy.log_bytes()
