"""Clients that know no vendor: httpx with httpx-sse, and curl."""

from __future__ import annotations

import asyncio
import json
import shutil

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse

from proxy.mock.reply import DEFAULT_TEXT
from tests.clients.conftest import ENDLESS, Bench, collect, torn
from tests.peers import WAIT_S

BODY = {"model": "mock-1", "stream": True, "messages": [{"role": "user", "content": "say something"}]}

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on the PATH")


def text_of(data: list[str]) -> str:
    return "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in data if line != "[DONE]")


async def test_client_httpx_sse_stream(bench: Bench) -> None:
    """Every event arrives, and the vendor's own end is the last of them."""
    headers = {"Authorization": f"Bearer {bench.token}"}
    async with (
        httpx.AsyncClient(trust_env=False) as client,
        aconnect_sse(client, "POST", bench.url("/forward-sse?upstream=openai"), json=BODY, headers=headers) as source,
    ):
        data = [event.data async for event in source.aiter_sse()]

    assert source.response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert text_of(data) == DEFAULT_TEXT
    assert data[-1] == "[DONE]"
    await bench.check_keys("authorization", "Bearer vendor-key-canary-7c1f")


async def test_client_httpx_sse_break(bench: Bench) -> None:
    """A torn stream raises, after one event that says why; no end is invented."""
    events: list[ServerSentEvent] = []
    headers = {"Authorization": f"Bearer {bench.token}", **torn(2)}
    async with (
        httpx.AsyncClient(trust_env=False) as client,
        aconnect_sse(client, "POST", bench.url("/forward-sse"), json=BODY, headers=headers) as source,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await collect(source.aiter_sse(), events)

    assert json.loads(events[-1].data)["error"]["code"] == "upstream_unreachable"
    assert "[DONE]" not in [event.data for event in events]


async def test_client_httpx_sse_leaves(bench: Bench) -> None:
    """A client that leaves cancels the vendor's work."""
    headers = {"Authorization": f"Bearer {bench.token}", **ENDLESS}
    async with httpx.AsyncClient(trust_env=False) as client:
        async with aconnect_sse(client, "POST", bench.url("/forward-sse"), json=BODY, headers=headers) as source:
            async for _ in source.aiter_sse():
                break
        await bench.check_cancelled()


async def curl(bench: Bench, *arguments: str, path: str = "/forward-sse") -> asyncio.subprocess.Process:
    command = ("curl", "-q", "-sS", "-N", "--noproxy", "*", *arguments, "-d", json.dumps(BODY), bench.url(path))
    return await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


@needs_curl
async def test_client_curl_stream(bench: Bench) -> None:
    """The default Content-Type of curl is a form's; the JSON inside is read as such, and arrives unchanged."""
    process = await curl(bench, "-H", f"Authorization: Bearer {bench.token}")
    async with asyncio.timeout(WAIT_S):
        output, _ = await process.communicate()

    assert process.returncode == 0
    lines = [line.removeprefix("data: ") for line in output.decode().split("\n\n") if line]
    assert text_of(lines) == DEFAULT_TEXT
    received = bench.vendor.requests[-1]
    assert received.body == json.dumps(BODY).encode()
    assert (b"Content-Type", b"application/x-www-form-urlencoded") in received.headers


@needs_curl
@pytest.mark.parametrize(("after", "last"), [(2, b"upstream_unreachable"), (100, b"[DONE]")])
async def test_client_curl_break(bench: Bench, after: int, last: bytes) -> None:
    """Exit 18 is curl's word for a torn stream ("partial file"), 0 for a whole one."""
    fields = {"Authorization": f"Bearer {bench.token}", **torn(after)}
    process = await curl(bench, *(part for name, value in fields.items() for part in ("-H", f"{name}: {value}")))
    async with asyncio.timeout(WAIT_S):
        output, _ = await process.communicate()

    assert process.returncode == (0 if last == b"[DONE]" else 18)
    assert last in output.rstrip().rpartition(b"\n")[2]


@needs_curl
async def test_client_curl_killed(bench: Bench) -> None:
    """A client that is killed cancels the vendor's work."""
    fields = {"Authorization": f"Bearer {bench.token}", **ENDLESS}
    process = await curl(bench, *(part for name, value in fields.items() for part in ("-H", f"{name}: {value}")))
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        assert (await process.stdout.readline()).startswith(b"data: ")

    process.kill()
    await bench.check_cancelled()

    await process.communicate()


@needs_curl
async def test_client_curl_refused(bench: Bench) -> None:
    """A refusal is JSON with its code in a field as well."""
    process = await curl(bench, "-i")
    async with asyncio.timeout(WAIT_S):
        output, _ = await process.communicate()

    head, _, body = output.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"X-Forward-Sse-Code: missing_token" in head
    assert json.loads(body)["error"]["code"] == "missing_token"
