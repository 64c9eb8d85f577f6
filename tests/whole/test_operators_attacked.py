"""Attacks on the operator's listener, byte by byte: methods, paths, fields and numbers that no honest client sends."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import TYPE_CHECKING

import pytest

from proxy.console.feed import MAX_CONSOLES
from proxy.handlers.operators import COOKIE
from tests.peers import LAST, WAIT_S, chunk, connect, event, request
from tests.whole.test_admin_whole import begin
from tests.whole.test_commands import serve
from tests.whole.test_operators_whole import BOTH, OPS, PAGE, acted, ask, log_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from tests.conftest import Running
    from tests.peers import Upstream

BEARER = ("Authorization", f"Bearer {OPS}")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", "PROPFIND")
PATHS = (
    *("/", "/console", "/console/x", "/console/session", "/admin/events", "/admin/streams", "/admin/streams/mine-1"),
    *("/admin/upstreams", "/admin/upstreams/main", "/admin/usage", "/admin/config", "/metrics", "/healthz", "/readyz"),
)
# All that is answered without a credential.
OPEN = set(itertools.product(("GET", "HEAD"), ("/console", "/metrics", "/healthz", "/readyz"))) | {
    # Nobody is logged out by it.
    ("DELETE", "/console/session")
}
TRICKS = (
    *("/console/../admin/streams", "/console/%2e%2e/admin/streams", "/console%2f..%2fadmin/streams"),
    *("/console;/admin/streams", "/console//", "/console/x", "/console\\admin", "/CONSOLE", "/console%00"),
    *("/healthz/../admin/config", "/healthz%2f..%2fadmin/config", "/metrics/%2e%2e/admin/config", "/metrics%20"),
    *("//admin/streams", "/admin//streams", "/./admin/streams", "/admin/./streams", "/admin/streams/."),
    *(
        "/admin/streams/..",
        "/admin/streams/%2e%2e",
        "/admin/streams/%2e%2e%2fstreams%2fmine-1",
        "/admin/streams/mine-1%00",
    ),
    *("/admin/streams/%20mine-1", "/admin/streams/MINE-1", "/admin/streams//mine-1", "/admin/streams/mine-1/x"),
    *("*", "console", "http://[", "?", "#", "/admin/streams/\xff"),
)


async def answered(proxy: Running, head: str, body: str = "") -> tuple[int, str | None]:
    """Status and code of the answer to a head that is sent as it is."""
    async with await connect(proxy.admin_address) as peer:
        peer.write(f"{head}\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n{body}".encode("latin-1"))
        answer = await peer.read_message(has_body=not head.startswith("HEAD"))
    return answer.status, answer.get("x-forward-sse-code")


async def test_methods_without_a_credential(start: Callable[..., Any]) -> None:
    """Without a credential nothing is answered but health, metrics, the page, and a logout; whatever the method."""
    proxy = await start(BOTH)
    seen = {one: await answered(proxy, f"{one[0]} {one[1]} HTTP/1.1") for one in itertools.product(METHODS, PATHS)}
    assert {one for one, (status, _) in seen.items() if status < 400} == OPEN
    others = {status_and_code for one, status_and_code in seen.items() if one not in OPEN}
    # A login is refused for what it lacks.
    assert others == {(401, "missing_token"), (403, "origin_not_allowed")}
    assert [one for one, (status, _) in seen.items() if status == 403] == [("POST", "/console/session")]
    for method in ("get", "Get", "DELETE\t", "FOO", "G\x00T"):
        assert (await answered(proxy, f"{method} /admin/streams HTTP/1.1"))[0] == 400


async def test_paths_that_pretend(start: Callable[..., Any], upstream: Upstream) -> None:
    """No way to write a path opens what needs a credential, or stops a stream whose id it is not."""
    proxy = await start(BOTH)
    client, vendor = await begin(proxy, upstream)
    for path in TRICKS:
        assert (await answered(proxy, f"GET {path} HTTP/1.1"))[0] in {400, 401}, path
        assert (await answered(proxy, f"DELETE {path} HTTP/1.1\r\n{': '.join(BEARER)}"))[0] in {400, 404, 405}, path
    vendor.write(chunk(event("on")) + LAST)
    assert (await client.read_until(LAST)).endswith(LAST)


async def test_fields_of_any_size(start: Callable[..., Any]) -> None:
    """Cookies, tokens and bodies that are too long or are none are refused one by one, and nobody else waits."""
    proxy = await start(BOTH)
    get = "GET /admin/streams HTTP/1.1\r\n"
    for cookie in (
        "a=" + "x" * 15_000,
        f"{COOKIE}=" + "A" * 15_000,
        "a=1; " * 3000,
        '="\\' * 5000,
        f"{COOKIE}=\xff\xfe",
    ):
        assert (await answered(proxy, f"{get}Cookie: {cookie}"))[0] == 401
    assert (await answered(proxy, f"{get}Cookie: {COOKIE}={'A' * 20_000}"))[0] == 431
    assert (await answered(proxy, get + "\r\n".join(["Cookie: a=1"] * 200)))[0] == 400
    assert (await answered(proxy, f"{get}Cookie: {f'{COOKIE}=A; ' * 700}"))[0] == 400
    assert (await answered(proxy, f"{get}Authorization: Bearer {'x' * 15_000}"))[0] == 401
    login = "POST /console/session HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {}"
    for body in ("[" * 1000, '{"token": "\\ud800"}', '{"token": ["x"]}', "null", '{"token": "' + "x" * 5000 + '"}'):
        assert (await answered(proxy, login.format(len(body)), body))[0] == 400
    assert (await ask(proxy, "GET", "/admin/streams", BEARER)).status == 200


@pytest.mark.parametrize("has_token", [False, True])
async def test_many_connections(tmp_path: Path, upstream: Upstream, has_token: bool) -> None:
    """Hundreds that want events at once: so many consoles are served, all others refused, and the listener goes on."""
    async with serve(tmp_path, upstream, BOTH) as (served, _):
        started = next(line for line in served.lines if line["event"] == "server.started")
        host, _, port = started["admin_listen"].rpartition(":")
        address = host, int(port)
        peers = [await connect(address) for _ in range(400)]
        for number, peer in enumerate(peers):
            fields = (BEARER,) if has_token else ()
            peer.write(request(f"/admin/events?filter={number}", method="GET", fields=fields))
        statuses = [(await peer.read_head()).status for peer in peers]
        expected = {200: MAX_CONSOLES, 503: 400 - MAX_CONSOLES} if has_token else {401: 400}
        assert {status: statuses.count(status) for status in statuses} == expected
        async with await connect(address) as admin:
            for path in ("/healthz", "/console"):
                admin.write(request(path, method="GET"))
                assert (await admin.read_message()).status == 200
        for peer in peers:
            await peer.gone()
        async with asyncio.timeout(WAIT_S):
            while True:
                async with await connect(address) as admin:
                    admin.write(request("/admin/events", method="GET", fields=(BEARER,)))
                    if (await admin.read_head()).status == 200:
                        break
                await asyncio.sleep(0.05)


async def test_targets_in_the_log(start: Callable[..., Any]) -> None:
    """What an action is about makes no second line, and no second member, whatever it is called."""
    proxy = await start(BOTH)
    cookie = await log_in(proxy, OPS)
    forged = '","operator":"look","x":"\r\n{"event":"operator.acted","operator":"look"}\x00\x1b[2J'
    for text in (forged, "a" * 3000, "\u2028\u202e", '"'):
        quoted = "".join(f"%{byte:02x}" for byte in text.encode())
        assert (await ask(proxy, "DELETE", f"/admin/streams/{quoted}", cookie, *PAGE)).status == 404
        assert (await ask(proxy, "DELETE", f"/admin/streams?user={quoted}", cookie, *PAGE)).json == {"stopped": 0}
    await proxy.idle()
    async with asyncio.timeout(WAIT_S):
        # The log's own thread writes to a file; there is no event to wait for.
        while len(lines := acted(proxy.lines())) < 9:  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.005)
    assert {operator for operator, *_ in lines} == {"ops"}
    assert [target for _, _, target, _ in lines[1::2]] == [forged[:200], "a" * 200, "\u2028\u202e", '"']
    assert all(json.dumps(line) for line in lines)
