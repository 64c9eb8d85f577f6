"""Operators of the real command: several workers, reloads, refusals at the start, and what stands in the log."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from proxy.handlers.operators import COOKIE, PAGE_FIELD, PAGE_VALUE
from tests.conftest import CONFIG, SECRET, VENDOR_KEY, token
from tests.peers import WAIT_S, Message, Upstream, connect, request, secret_free
from tests.settings_builder import settings
from tests.whole.several import NO_BOUND, Several, one_in_each, several
from tests.whole.test_admin_whole import begin
from tests.whole.test_commands import serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Running

OPS, LOOK = "fssa_ops-token-canary-1f", "fssa_look-token-canary-2e"
PAGE = ((PAGE_FIELD, PAGE_VALUE),)
# Connections, each to whichever worker takes it.
TRIES = 40


def admin_yaml(*tokens: tuple[str, str, str], more: str = "") -> str:
    listed = ", ".join(
        f'{{name: {name}, sha256: "{hashlib.sha256(text.encode()).hexdigest()}", role: {role}}}'
        for name, text, role in tokens
    )
    return f"admin: {{tokens: [{listed}]{more}}}\n"


BOTH = admin_yaml(("ops", OPS, "operate"), ("look", LOOK, "view"))


async def ask(served: Several | Running, method: str, path: str, *fields: tuple[str, str], **options: Any) -> Message:
    """One request on a connection of its own."""
    async with await connect(served.admin_address) as peer:
        peer.write(request(path, method=method, fields=(*fields, ("Connection", "close")), **options))
        return await peer.read_message()


async def log_in(served: Several | Running, text: str) -> tuple[str, str]:
    """The field of the cookie."""
    answer = await ask(served, "POST", "/console/session", *PAGE, body={"token": text})
    assert answer.status == 204
    cookie = answer.get("set-cookie") or ""
    assert cookie.startswith(f"{COOKIE}=")
    return "Cookie", cookie.partition(";")[0]


async def statuses(served: Several, *fields: tuple[str, str], count: int = TRIES) -> set[tuple[int, str | None]]:
    """What many connections, some to each worker, are answered."""
    answers = [await ask(served, "GET", "/admin/config", *fields) for _ in range(count)]
    return {(answer.status, answer.get("x-forward-sse-code")) for answer in answers}


def acted(lines: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (line["operator"], line["action"], line["target"], line["result"])
        for line in lines
        if line["event"] == "operator.acted"
    ]


async def test_workers_session_and_stops(tmp_path: Path, upstream: Upstream) -> None:
    """A login at one worker is good in every one, a stop reaches all; each action is one line; `view` stops nothing."""
    async with (
        several(tmp_path, upstream, NO_BOUND + BOTH, workers=2, admin_token=LOOK) as served,
        one_in_each(served, upstream) as held,
    ):
        cookie, looks = await log_in(served, OPS), await log_in(served, LOOK)
        assert await statuses(served, cookie) == {(200, None)}
        assert await statuses(served, count=4) == {(401, "missing_token")}
        for path in ("/admin/streams?user=alice", f"/admin/streams/{next(iter(held.values())).id}"):
            refused = await ask(served, "DELETE", path, looks, *PAGE)
            assert (refused.status, refused.get("x-forward-sse-code")) == (403, "insufficient_scope")
        none = await ask(served, "DELETE", "/admin/streams?user=nobody", cookie, *PAGE)
        assert all([await stream.goes_on() for stream in held.values()])

        stopped = await ask(served, "DELETE", "/admin/streams?user=alice&issuer=tests", cookie, *PAGE)
        assert all([await stream.is_cut() for stream in held.values()])
        for stream in held.values():
            await stream.vendor.gone()
        served.signal(signal.SIGTERM)
        lines = await served.rest()

    assert (none.json, stopped.json) == ({"stopped": 0}, {"stopped": len(held)})
    # Each worker writes its own lines; between two of them there is no order.
    assert sorted(acted(lines), key=repr) == sorted(
        [
            ("ops", "login", None, "ok"),
            ("look", "login", None, "ok"),
            ("look", "stop_streams", None, "insufficient_scope"),
            ("look", "stop_stream", None, "insufficient_scope"),
            ("ops", "stop_streams", "nobody", "ok"),
            ("ops", "stop_streams", "alice", "ok"),
        ],
        key=repr,
    )
    endings = [line["ending"] for line in lines if line["event"] == "exchange.settled"]
    assert endings.count("stopped") == len(held)
    assert secret_free(json.dumps(lines).encode(), OPS, LOOK, cookie[1].partition("=")[2])


async def test_workers_stop_of_an_upstream(tmp_path: Path, upstream: Upstream) -> None:
    """All streams of an upstream end, in every worker, and no other's."""
    async with (
        several(tmp_path, upstream, NO_BOUND + BOTH, workers=2, admin_token=OPS) as served,
        one_in_each(served, upstream) as held,
    ):
        field = ("Authorization", f"Bearer {OPS}")
        other = await ask(served, "DELETE", "/admin/streams?upstream=other", field)
        assert all([await stream.goes_on() for stream in held.values()])
        stopped = await ask(served, "DELETE", "/admin/streams?upstream=main", field)
        assert all([await stream.is_cut() for stream in held.values()])

    assert (other.json, stopped.json) == ({"stopped": 0}, {"stopped": len(held)})


async def test_workers_reload_removes_a_token(tmp_path: Path, upstream: Upstream) -> None:
    """A token that a reload removes is good nowhere, nor are its sessions; others' go on. A faulty file is told of."""
    async with several(tmp_path, upstream, NO_BOUND + BOTH, workers=2) as served:
        cookie, looks = await log_in(served, OPS), await log_in(served, LOOK)
        before = (await ask(served, "GET", "/admin/config", cookie)).json
        text = served.config.read_text()
        served.config.write_text(text.replace("role: view", "role: vew"))
        served.signal(signal.SIGHUP)
        await served.line("configuration.refused")
        refused = [(await ask(served, "GET", "/admin/config", cookie)).json["last_reload"] for _ in range(TRIES)]
        served.config.write_text(text.replace(BOTH, admin_yaml(("look", LOOK, "view"))))
        served.signal(signal.SIGHUP)
        for _ in served.pids:
            await served.line("configuration.reloaded")

        assert await statuses(served, cookie) == {(401, "expired_token")}
        assert await statuses(served, looks) == {(200, None)}
        after = [(await ask(served, "GET", "/admin/config", looks)).json for _ in range(TRIES)]
        bad = await ask(served, "GET", "/admin/config", ("Authorization", f"Bearer {OPS}"))

    assert before["last_reload"] is None
    assert [one["name"] for one in before["config"]["admin"]["tokens"]] == ["ops", "look"]
    assert {one["result"] for one in refused} == {"failed"}
    assert all("did you mean view?" in str(one["faults"]) for one in refused)
    assert {one["last_reload"]["result"] for one in after} == {"ok"}
    assert {len(one["config"]["admin"]["tokens"]) for one in after} == {1}
    assert (bad.status, bad.get("x-forward-sse-code")) == (401, "invalid_token")


async def test_workers_upgrade_keeps_sessions(tmp_path: Path, upstream: Upstream) -> None:
    """The next generation of processes accepts the sessions of the one before."""
    async with several(tmp_path, upstream, NO_BOUND + BOTH, workers=2) as served:
        cookie = await log_in(served, OPS)
        served.signal(signal.SIGUSR2)
        await served.line("server.started")
        await served.line("server.stopped")
        assert await statuses(served, cookie) == {(200, None)}


async def test_reload_in_one_process(start: Callable[..., Any]) -> None:
    """With one worker, too: a removed token is gone at once, and keys that need a restart are named each time."""
    proxy = await start(BOTH)
    cookie = await log_in(proxy, OPS)
    operator = proxy.server.operators.resume_session(cookie[1].partition("=")[2])
    assert (await ask(proxy, "GET", "/admin/streams", cookie)).status == 200
    changed = settings(admin="open", workers=1, log={"level": "debug"}, admin_listen="127.0.0.1:0")
    for _ in range(2):
        await proxy.server.reload(changed)
        told = (await ask(proxy, "GET", "/admin/config")).json
        assert (told["last_reload"]["result"], told["last_reload"]["needs_restart"]) == ("ok", ["log"])
        assert (told["config"]["admin"], told["config"]["log"]["level"]) == ("open", "info")
    assert not operator.is_valid()


async def test_reload_moves_the_listener(start: Callable[..., Any]) -> None:
    """A file that lacks `admin` since its listener is on loopback opens nothing at the address that is still used."""
    config = CONFIG.replace("admin_listen: 127.0.0.1:0", "admin_listen: 0.0.0.0:0")
    proxy = await start(BOTH, config=config)
    host, port = proxy.server.admin_listen
    assert host == "0.0.0.0"
    proxy.server.admin_listen = ("127.0.0.1", port)
    field = ("Authorization", f"Bearer {OPS}")
    assert (await ask(proxy, "GET", "/admin/streams", field)).status == 200
    await proxy.server.reload(settings())
    assert (await ask(proxy, "GET", "/admin/streams", field)).status == 401
    assert (await ask(proxy, "GET", "/admin/streams")).status == 401
    assert (await ask(proxy, "GET", "/healthz")).status == 200


async def test_stop_all_endings(start: Callable[..., Any], upstream: Upstream) -> None:
    """A stream that is stopped with all of its user: cut, its vendor's connection closed, its lease free, one line."""
    proxy = await start(BOTH)
    client, vendor = await begin(proxy, upstream)
    answer = await ask(proxy, "DELETE", "/admin/streams?user=alice", ("Authorization", f"Bearer {OPS}"))
    rest = await client.read_to_end()
    await vendor.gone()
    (line,) = await proxy.settled()
    assert answer.json == {"stopped": 1}
    assert b'"code":"stopped"' in rest.replace(b" ", b"")
    assert line["ending"] == "stopped"
    assert proxy.leases_held == 0
    assert [one["operator"] for one in proxy.lines() if one["event"] == "operator.acted"] == ["ops"]


async def test_raw_rebinding_and_other_origins(start: Callable[..., Any], upstream: Upstream) -> None:
    """On loopback without `admin`: a page whose name was pointed here, or of another origin, gets and does nothing."""
    proxy = await start("")
    client, vendor = await begin(proxy, upstream)
    port = proxy.admin_address[1]
    heads = {
        f"GET /admin/streams HTTP/1.1\r\nHost: evil.example:{port}\r\n": 403,
        f"DELETE /admin/streams/mine-1 HTTP/1.1\r\nHost: evil.example:{port}\r\nOrigin: http://evil.example:{port}\r\n"
        "Sec-Fetch-Site: same-origin\r\n": 403,
        f"DELETE /admin/streams/mine-1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://evil.example\r\n": 403,
        f"DELETE /admin/streams/mine-1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nSec-Fetch-Site: same-site\r\n": 403,
        f"GET /admin/streams HTTP/1.1\r\nHost: localhost:{port}\r\nSec-Fetch-Site: cross-site\r\n": 403,
        f"GET /console HTTP/1.1\r\nHost: evil.example:{port}\r\n": 403,
        f"GET /admin/events HTTP/1.1\r\nHost: evil.example:{port}\r\nSec-Fetch-Site: same-origin\r\n": 403,
        f"GET http://127.0.0.1/admin/streams HTTP/1.1\r\nHost: evil.example:{port}\r\n": 403,
        f"GET /admin/streams HTTP/1.1\r\nHost: localhost.evil.example:{port}\r\n": 403,
        f"GET /admin/streams HTTP/1.1\r\nHost: 127.0.0.1.evil.example:{port}\r\n": 403,
        f"GET /metrics HTTP/1.1\r\nHost: evil.example:{port}\r\n": 200,
        f"GET /readyz HTTP/1.1\r\nHost: proxy-admin:{port}\r\n": 200,
        f"GET /admin/streams HTTP/1.1\r\nHost: localhost:{port}\r\n": 200,
        "GET /admin/streams HTTP/1.0\r\n": 200,
    }
    seen = {}
    for head in heads:
        async with await connect(proxy.admin_address) as peer:
            peer.write(f"{head}Connection: close\r\n\r\n".encode())
            answer = await peer.read_message()
        seen[head] = answer.status
        assert not [name for name, _ in answer.fields if name.lower().startswith("access-control")]
    assert seen == heads
    assert len(proxy.service.exchanges.live()) == 1
    for peer in (client, vendor):
        await peer.gone()


@pytest.mark.parametrize("command", ["check", "serve"])
async def test_not_on_loopback_without_admin(tmp_path: Path, command: str) -> None:
    """An admin listener that others reach is refused with its line and what to write; `admin: open` is warned of."""
    config = tmp_path / "proxy.yaml"
    text = CONFIG.format(secret=SECRET, url="http://127.0.0.1:1", key=VENDOR_KEY)
    config.write_text(text.replace("admin_listen: 127.0.0.1:0", "admin_listen: 0.0.0.0:0"))
    status, out, err = await _run(command, "--config", str(config))
    assert (status, out) == (2, "")
    assert f"{config}:3: admin_listen: is reachable from other machines, so it needs `admin:" in err
    assert "key new --admin" in err
    if command == "check":
        config.write_text(config.read_text() + "admin: open\n")
        status, out, err = await _run(command, "--config", str(config))
        assert status == 0
        assert "admin          open: without credentials" in out
        assert "warning: admin: open: everybody who reaches admin_listen" in err


async def _run(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ},
    )
    async with asyncio.timeout(WAIT_S * 2):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_serve_configuration_after_a_faulty_file(tmp_path: Path, upstream: Upstream) -> None:
    """One process tells of a file that it refused, with its faults, and nothing secret."""
    async with serve(tmp_path, upstream) as (served, _):
        host, _, port = next(line for line in served.lines if line["event"] == "server.started")[
            "admin_listen"
        ].rpartition(":")
        served.config.write_text(served.config.read_text().replace("dialect: openai", "dialect: opnai"))
        served.signal(signal.SIGHUP)
        await served.line("configuration.refused")
        async with await connect((host, int(port))) as peer:
            peer.write(request("/admin/config", method="GET"))
            answer = await peer.read_message()
    assert answer.json["last_reload"]["result"] == "failed"
    assert "did you mean openai?" in str(answer.json["last_reload"]["faults"])
    assert answer.json["config"]["upstreams"]["main"]["dialect"] == "openai"
    assert secret_free(answer.body, SECRET, VENDOR_KEY, token())
