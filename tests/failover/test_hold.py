"""The held beginning: byte for byte, bounded, with a clock of its own; with early heartbeats, tickets, typed events."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import token
from tests.failover import vendors as acts
from tests.failover.test_matrix import ask, check_end, start_with
from tests.failover.vendors import BODY, DONE, ERROR, PING, ROLE, config, words
from tests.peers import LAST, STREAM_HEAD, WAIT_S, Peer, chunk, event, only, read_events, request

if TYPE_CHECKING:
    from tests.conftest import Running, Start
    from tests.failover.vendors import Vendor

HELD = ", retry: {first_output: 5s}"


def sends(*parts: bytes) -> Any:
    """A stream in these writes, each in its own chunk."""

    async def act(vendor: Vendor, peer: Peer) -> None:
        await peer.send(STREAM_HEAD)
        for part in parts:
            await peer.send(chunk(part))
            await asyncio.sleep(0)
        await peer.send(LAST)

    return act


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"\xef\xbb\xbf" + ROLE, event("x")], id="byte order mark"),
        pytest.param([bytes([byte]) for byte in PING + ROLE + event("x") + DONE], id="bytes one by one"),
        pytest.param([(PING + ROLE + event("x")).replace(b"\n", b"\r\n")], id="CRLF"),
        pytest.param([ROLE, b"data: no JSON\n\n", event("x")], id="no JSON"),
        pytest.param([ROLE, DONE], id="a preamble and its end"),
        pytest.param([b": " + b"c" * 70_000 + b"\n\n", ERROR], id="a comment beyond 64 KiB"),
        pytest.param([ROLE * 1000, ERROR], id="a preamble beyond 64 KiB"),
        pytest.param([ROLE, b"data: " + b"x" * 300_000 + b"\n\n", event("x")], id="an event beyond 64 KiB"),
    ],
)
async def test_hold_bytes(start: Start, vendors: list[Vendor], parts: list[bytes]) -> None:
    """What was held is passed on as it came, wherever it was cut, and never more than 64 KiB of it wait."""
    vendors[0].script = [sends(*parts)]
    proxy = await start_with(start, vendors, HELD)

    answer = await ask(proxy)

    await check_end(proxy, vendors, answer)
    assert (answer.status, answer.body, answer.is_whole) == (200, b"".join(parts), True)
    assert answer.get("x-forward-sse-attempts") == "1"


async def test_hold_ends_with_the_first_output(start: Start, vendors: list[Vendor]) -> None:
    """The head leaves with the first event that has output, not later, and before nothing does."""
    go_on, has_begun = asyncio.Event(), asyncio.Event()

    async def act(vendor: Vendor, peer: Peer) -> None:
        await peer.send(STREAM_HEAD + chunk(ROLE))
        has_begun.set()
        await go_on.wait()
        await peer.send(chunk(event("x")))
        await peer.closed()

    vendors[0].script = [act]
    proxy = await start_with(start, vendors, HELD)
    client = await proxy.client()
    client.write(request("/v1/chat/completions", body=BODY, token=token()))
    await has_begun.wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client.reader.read(1)
    go_on.set()

    assert (await client.read_head()).status == 200
    await client.read_until(event("x") + b"\r\n")


async def test_hold_not_for_json(start: Start, vendors: list[Vendor]) -> None:
    """An answer that is no stream is not held: its head is the answer."""

    async def act(vendor: Vendor, peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n")
        await peer.closed()

    vendors[0].script = [act]
    proxy = await start_with(start, vendors, HELD)
    client = await proxy.client()
    client.write(request("/v1/chat/completions", body=BODY, token=token()))

    assert (await client.read_head()).get("content-type") == "application/json"


async def test_hold_idle(start: Start, vendors: list[Vendor]) -> None:
    """A stream that falls silent before its first output ends by `idle`, where no `first_output` is set."""
    vendors[0].script = [silent_after_role]
    proxy = await start_with(start, vendors, ", retry: {}", more="")
    text = config(
        {vendor.name: vendor.url for vendor in vendors}, '{models: ["gpt-*"], upstreams: [a, b], retry: {}}'
    ).replace("keep_alive: off", "keep_alive: off, idle: 300ms")
    del proxy
    proxy = await start(config=text)

    answer = await ask(proxy)

    assert (answer.status, answer.json["error"]["code"]) == (504, "upstream_timeout")
    assert "idle" in answer.json["error"]["message"]
    assert (await check_end(proxy, vendors, answer))["ending"] == "timeout_idle"
    assert vendors[1].asked == []


async def silent_after_role(vendor: Vendor, peer: Peer) -> None:
    await peer.send(STREAM_HEAD + chunk(ROLE))
    await peer.closed()


async def test_hold_total_is_one_clock(start: Start, vendors: list[Vendor]) -> None:
    """`total` runs over all attempts together, and no further one begins behind it."""
    vendors[0].script = [acts.status(503)]
    vendors[1].script = [acts.pings]
    text = config(
        {vendor.name: vendor.url for vendor in vendors},
        '{models: ["gpt-*"], upstreams: [a, b, c], retry: {retry_paid: true, first_output: 1m}}',
    ).replace("keep_alive: off", "keep_alive: off, total: 500ms")
    proxy = await start(config=text)

    answer = await ask(proxy)

    assert (answer.status, answer.json["error"]["code"]) == (504, "upstream_timeout")
    assert (await check_end(proxy, vendors, answer))["ending"] == "timeout_total"
    assert vendors[2].asked == []


async def test_within_bounds_the_start_of_attempts(start: Start, vendors: list[Vendor]) -> None:
    """After `within` no further attempt begins, and one that runs is not cut."""
    now = asyncio.get_running_loop().time
    proxy = await start_with(start, vendors, ", retry: {within: 10s}")

    async def late(vendor: Vendor, peer: Peer) -> None:
        proxy.service.timers.now = lambda: now() + 10
        await acts.status(503)(vendor, peer)

    vendors[0].script = [late]

    answer = await ask(proxy)

    assert (answer.status, answer.json["error"]["message"]) == (503, "no, says a")
    assert vendors[1].asked == []


@pytest.mark.parametrize(("attempts", "asked"), [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1])])
async def test_attempts_are_bounded(start: Start, vendors: list[Vendor], attempts: int, asked: list[int]) -> None:
    """`attempts` is how many targets are asked."""
    for vendor in vendors:
        vendor.script = [acts.status(503)]
    proxy = await start_with(start, vendors, f", retry: {{attempts: {attempts}}}")

    answer = await ask(proxy)

    assert (answer.status, answer.get("x-forward-sse-attempts")) == (503, str(attempts))
    assert [len(vendor.asked) for vendor in vendors] == asked


async def test_retry_budget(start: Start, vendors: list[Vendor]) -> None:
    """An outage is not made worse: beyond a fifth of the requests, and ten, the first answer is the answer."""
    for vendor in vendors[:2]:
        vendor.script = [acts.status(503)]
    urls = {vendor.name: vendor.url for vendor in vendors}
    health = ", health: {failures: 1000, of_at_least: 1000}"
    routes = '{models: ["gpt-*"], upstreams: [a, c], retry: {}}'
    proxy = await start(config=config(urls, routes, upstream=health))

    statuses = [(await ask(proxy)).status for _ in range(20)]

    # 10 retries at first; the tenth request earned two more, the fifteenth the third, the twentieth the fourth.
    assert statuses.count(200) == 10 + 20 // 5
    assert len(vendors[2].asked) == 14


@pytest.mark.parametrize("way", ["early", "typed", "ticket"])
async def test_hold_behind_other_ways(start: Start, vendors: list[Vendor], way: str) -> None:
    """Early heartbeats, typed events and tickets go with failover: the client sees one vendor's answer."""
    go_on = asyncio.Event()

    async def slow(vendor: Vendor, peer: Peer) -> None:
        await go_on.wait()
        await acts.says_error(vendor, peer)

    vendors[0].script = [slow]
    urls = {vendor.name: vendor.url for vendor in vendors}
    early = "heartbeat: 100ms\nearly_heartbeat: true" if way == "early" else ""
    proxy = await start(config=config(urls, '{models: ["gpt-*"], upstreams: [a, b], retry: {}}', more=early))
    client = await proxy.client()
    if way == "ticket":
        client.write(request("/forward-sse/tickets", body=BODY, token=token()))
        url = "/" + (await client.read_message()).json["url"].lstrip("/")
        client.write(request(url, method="GET"))
    else:
        path = "/v1/chat/completions" + ("?events=typed" if way == "typed" else "")
        client.write(request(path, body=BODY, token=token()))
    if way == "early":
        await has_ping(client)
    go_on.set()
    answer = await client.read_message()

    assert answer.is_whole
    if way == "early":
        assert answer.body.startswith(b": ping\n\n")
        assert answer.body.replace(b": ping\n\n", b"") == words("b")
        # They had left before anybody had answered.
        assert answer.get("x-forward-sse-upstream") is None
    elif way == "ticket":
        *said, (name, end) = read_events(answer.body)
        assert [data for _, data in said] == [data for _, data in read_events(words("b"))]
        assert (name, json.loads(end)["ending"]) == ("end", "complete")
    else:
        kinds = [json.loads(data)["t"] for _, data in read_events(answer.body)]
        assert kinds == ["Text", "Text", "End"]
        assert answer.get("x-forward-sse-attempts") == "2"
    await proxy.idle()
    line = [line for line in await lines(proxy) if line["upstream"] == "b"][-1]
    assert (line["ending"], len(line["attempts"])) == ("complete", 2)


async def has_ping(client: Peer) -> None:
    """Wait until a ping has come, and leave it to be read."""
    async with asyncio.timeout(WAIT_S):
        while b": ping\n\n" not in client.reader._buffer:  # type: ignore[attr-defined]  # noqa: ASYNC110 - read later
            await asyncio.sleep(0.005)


async def lines(proxy: Running) -> list[dict[str, Any]]:
    async with asyncio.timeout(30):
        while not (found := [one for one in proxy.lines() if one.get("attempts")]):  # noqa: ASYNC110 - the log's thread
            await asyncio.sleep(0.005)
    return found


async def test_early_heartbeat_tells_the_last_failure(start: Start, vendors: list[Vendor]) -> None:
    """Behind early pings, an error of the last vendor's is told in the stream, in its words."""
    go_on = asyncio.Event()

    async def slow(vendor: Vendor, peer: Peer) -> None:
        await go_on.wait()
        await acts.status(503)(vendor, peer)

    for vendor in vendors:
        vendor.script = [slow]
    urls = {vendor.name: vendor.url for vendor in vendors}
    more = "heartbeat: 100ms\nearly_heartbeat: true"
    proxy = await start(config=config(urls, '{models: ["gpt-*"], upstreams: [a, b], retry: {}}', more=more))
    client = await proxy.client()
    client.write(request("/v1/chat/completions", body=BODY, token=token()))
    await has_ping(client)
    go_on.set()
    answer = await client.read_message()

    assert (answer.status, answer.is_whole) == (200, False)
    assert "no, says b" in read_events(answer.body)[-1][1]
    assert only(await proxy.settled(), "exchange.settled")["ending"] == "upstream_error"


async def test_coded_body_is_not_renamed(start: Start, vendors: list[Vendor]) -> None:
    """A compressed body goes to targets that take it as it is, and to no other: no byte of it could stay."""
    import gzip  # noqa: PLC0415 - only here

    body = gzip.compress(BODY)
    vendors[0].script = [acts.status(503)]
    proxy = await start_with(start, vendors, ", retry: {}")
    client = await proxy.client()
    fields = (("Content-Encoding", "gzip"),)
    client.write(request("/v1/chat/completions", body=body, token=token(), fields=fields))
    answer = await client.read_message()

    assert answer.get("x-forward-sse-upstream") == "c"
    assert [len(vendor.asked) for vendor in vendors] == [1, 0, 1]
    assert vendors[2].asked[0].body == body
    assert vendors[2].asked[0].get("content-encoding") == "gzip"


async def test_dead_upstream_refuses_no_burst(start: Start, vendors: list[Vendor]) -> None:
    """Requests that come at once and find the first upstream dead all go on: it is out then, which is no retry."""
    await vendors[0].stop()
    urls = {vendor.name: vendor.url for vendor in vendors}
    text = config(urls, '{models: ["gpt-*"], upstreams: [a, b], retry: {}}')
    proxy = await start(config=text.replace("concurrent_streams: 8", "concurrent_streams: 100"))

    answers = await asyncio.gather(*(ask(proxy) for _ in range(80)))

    assert [answer.body for answer in answers] == [words("b")] * 80
    assert (await ask(proxy)).get("x-forward-sse-attempts") == "1"
