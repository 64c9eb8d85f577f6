"""Several keys of one upstream, as clients and operators see them."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import token
from tests.failover import vendors as acts
from tests.failover.test_matrix import ask
from tests.failover.vendors import BODY, config, line_of, words
from tests.peers import LAST, STREAM_HEAD, chunk, event, only, request
from tests.whole.test_admin_whole import samples

if TYPE_CHECKING:
    from tests.conftest import Running, Start
    from tests.failover.vendors import Vendor

KEYS = ("first-key-canary", "second-key-canary", "third-key-canary")


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:8]


async def start_keys(start: Start, vendors: list[Vendor], keys: tuple[str, ...] = KEYS, **more: str) -> Running:
    """One upstream with these keys, and no route that is asked."""
    text = config({"a": vendors[0].url}, '{models: ["never"], upstreams: [a]}')
    listed = "api_keys: [" + ", ".join(keys) + "]" + more.get("upstream", "")
    return await start(config=text.replace("api_key: key-of-a", listed))  # type: ignore[no-any-return]  # open


async def scrape(proxy: Running) -> dict[str, float]:
    admin = await proxy.admin()
    admin.write(request("/metrics", method="GET"))
    return samples((await admin.read_message()).body.decode())


@pytest.mark.parametrize("status", [401, 402, 403, 429])
async def test_key_refused_moves_to_the_next(start: Start, vendors: list[Vendor], status: int) -> None:
    """A key that the vendor refuses is left alone, and the request goes on with the next; the user notices nothing."""
    vendors[0].script = [acts.status(status), acts.answers]
    proxy = await start_keys(start, vendors)

    first, second = await ask(proxy), await ask(proxy)

    assert (first.status, first.body) == (second.status, second.body) == (200, words("a"))
    assert (first.get("x-forward-sse-attempts"), second.get("x-forward-sse-attempts")) == ("2", "1")
    assert vendors[0].keys == [KEYS[0], KEYS[1], KEYS[2]]
    lines = await proxy.settled(2)
    assert [(one["key"], one["status"], one["ending"]) for one in lines[0]["attempts"]] == [
        (digest(KEYS[0]), status, "upstream_error"),
        (digest(KEYS[1]), 200, "complete"),
    ]
    warning = await line_of(proxy, "upstream.key_resting")
    assert (warning["level"], warning["key"], warning["status"]) == ("warning", digest(KEYS[0]), status)
    assert not [line for line in proxy.lines() if line["event"] == "upstream.credentials_refused"]
    metrics = await scrape(proxy)
    resting = [metrics[f'forward_sse_upstream_key_resting{{key="{digest(key)}",upstream="a"}}'] for key in KEYS]
    assert resting == [1, 0, 0]
    for key in KEYS:
        assert key.encode() not in proxy.log_bytes()


@pytest.mark.parametrize("status", [401, 403])
async def test_keys_all_refused(start: Start, vendors: list[Vendor], status: int) -> None:
    """When only our own keys are at fault the user is told so, in our words and once; each key was tried once."""
    vendors[0].script = [acts.status(status)]
    proxy = await start_keys(start, vendors)

    answer = await ask(proxy)

    assert (answer.status, answer.get("x-forward-sse-code")) == (502, "upstream_credentials_exhausted")
    assert answer.get("x-forward-sse-upstream") is None
    assert vendors[0].keys == list(KEYS)
    line = only(await proxy.settled(), "exchange.settled")
    assert (line["ending"], line["reason"]) == ("upstream_error", "credentials_refused")
    assert (await line_of(proxy, "upstream.credentials_refused"))["status"] == status
    # Nothing is to be gained by trying all of them again: the next request asks with one.
    await ask(proxy)
    assert len(vendors[0].keys) == 4


async def test_keys_all_limited(start: Start, vendors: list[Vendor]) -> None:
    """With every key at its limit the client gets the vendor's own 429; the next request asks with one key only."""
    vendors[0].script = [
        acts.status(429, "Retry-After: 9"),
        acts.status(429, "Retry-After: 3"),
        acts.status(429, "Retry-After: 7"),
    ]
    proxy = await start_keys(start, vendors)

    first, second = await ask(proxy), await ask(proxy)

    assert (first.status, first.get("retry-after")) == (429, "7")
    assert first.get("x-forward-sse-attempts") == "3"
    assert second.status == 429
    assert vendors[0].keys == [*KEYS, KEYS[1]]


async def test_keys_limited_then_refused(start: Start, vendors: list[Vendor]) -> None:
    """Where one key is at its limit and the others are refused, the vendor's 429 is what can be told."""
    vendors[0].script = [acts.status(429, "Retry-After: 9"), acts.status(401)]
    proxy = await start_keys(start, vendors)

    answer = await ask(proxy)

    assert (answer.status, answer.get("retry-after"), answer.json["error"]["message"]) == (429, "9", "no, says a")
    assert answer.get("x-forward-sse-upstream") == "a"
    assert answer.get("x-forward-sse-attempts") == "3"
    line = only(await proxy.settled(), "exchange.settled")
    assert (line["status"], line["code"]) == (429, None)


async def test_key_alone_is_always_asked(start: Start, vendors: list[Vendor]) -> None:
    """The 429 of an upstream with one key passes as it came, and refuses nobody afterwards."""
    vendors[0].script = [acts.status(429, "Retry-After: 600"), acts.answers]
    proxy = await start_keys(start, vendors, KEYS[:1])

    first, second = await ask(proxy), await ask(proxy)

    assert (first.status, first.get("retry-after"), first.get("x-forward-sse-attempts")) == (429, "600", "1")
    assert (second.status, second.body) == (200, words("a"))
    await proxy.settled(2)
    assert (await line_of(proxy, "upstream.key_resting"))["level"] == "info"


async def test_key_rests_as_the_vendor_says(start: Start, vendors: list[Vendor]) -> None:
    """`Retry-After` and the vendor's own reset fields say how long a key rests."""
    vendors[0].script = [
        acts.status(429, "Retry-After: 5"),
        acts.status(429, "x-ratelimit-remaining-requests: 0", "x-ratelimit-reset-requests: 1m30s"),
        acts.answers,
    ]
    proxy = await start_keys(start, vendors)
    await ask(proxy)
    await proxy.settled()

    rests = [line["rest_s"] for line in proxy.lines() if line["event"] == "upstream.key_resting"]
    assert rests == [5.0, 90.0]


async def test_keys_least_busy(start: Start, vendors: list[Vendor]) -> None:
    """Running streams count: the key with the fewest is next, and one that was given back counts no more."""
    go_on = asyncio.Event()

    async def holds(vendor: Vendor, peer: Any) -> None:
        await peer.send(STREAM_HEAD + chunk(event("one")))
        await go_on.wait()
        await peer.send(LAST)

    vendors[0].script = [holds]
    proxy = await start_keys(start, vendors, KEYS[:2])
    clients = []
    for _ in range(3):
        client = await proxy.client()
        client.write(request(body=BODY, token=token()))
        await client.read_until(event("one") + b"\r\n")
        clients.append(client)
    busy = vendors[0].keys[:]
    # The one that had two streams has none.
    for used, client in zip(busy, clients, strict=True):
        if used == busy[2]:
            await client.gone()
    async with asyncio.timeout(30):
        while proxy.leases_held > 1:  # noqa: ASYNC110 - settling is not announced
            await asyncio.sleep(0.005)
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    await client.read_until(event("one") + b"\r\n")
    go_on.set()

    assert busy[:2] == list(KEYS[:2])
    assert vendors[0].keys[3] == busy[2]


async def test_key_of_the_client_is_not_ours(start: Start, vendors: list[Vendor]) -> None:
    """A refused key that the client brought passes, and moves nothing."""
    text = config({"a": vendors[0].url, "b": vendors[1].url}, '{models: ["gpt-*"], upstreams: [a, b], retry: {}}')
    proxy = await start(config=text.replace("api_key: key-of-a", "api_key: client"))
    vendors[0].script = [acts.status(401)]
    client = await proxy.client()
    fields = (("X-Upstream-Authorization", "Bearer mine"),)
    client.write(request("/v1/chat/completions", body=BODY, token=token(), fields=fields))
    answer = await client.read_message()

    assert (answer.status, answer.get("x-forward-sse-upstream")) == (401, "a")
    assert vendors[1].asked == []
    assert only(await proxy.settled(), "exchange.settled")["attempts"][0]["key"] is None
