"""The doctor against real hops: it names what each does, and says nothing wrong about a clean path or a slow one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from tests.cli.doctor.middlemen import (
    ByteRelay,
    caching,
    fields,
    haproxy,
    in_lumps,
    middleman,
    nginx,
    read_to_end,
    stream,
)
from tests.cli.doctor.scenes import url_of, verdicts, wrong

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Running

CORS = 'cors: {origins: ["https://app.example"]}\n'


async def test_clean_path(start: Any) -> None:
    """Nothing is wrong without a hop, and every check is made."""
    proxy = await start(CORS)
    found = await verdicts(url_of(proxy), origin="https://app.example")

    assert wrong(found) == {}, found
    checks = "name tls http proxy inspection cors token clock caching stream compression body leaving silence"
    assert list(found) == checks.split()


async def test_slow_path(proxy: Running) -> None:
    """Latency and jitter are no buffering."""
    async with ByteRelay(proxy.address, latency_s=(0.05, 0.2)) as url:
        assert wrong(await verdicts(url)) == {}


async def test_hop_that_streams(proxy: Running) -> None:
    """A hop that passes on what arrives is no fault."""
    async with middleman(proxy.address, stream) as url:
        assert wrong(await verdicts(url)) == {}


async def test_nginx_that_buffers(proxy: Running, tmp_path: Path) -> None:
    """It is named, with its own line; the stream came all at once."""
    # As it comes, with HTTP/1.0 towards the proxy; of chunks it passes on each even so.
    more = "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"
    async with nginx(proxy.address, tmp_path, more, version="1.0") as url:
        found = await verdicts(url)
    # By default it reads bodies to their end, too, and lets at most 1 MiB of them pass.
    assert wrong(found) == {"inspection": "warn", "stream": "fail", "body": "fail"}, found
    assert "all at once" in found["stream"].says
    change = found["stream"].change
    assert change is not None
    assert "`proxy_buffering off;`" in change
    assert "Cloudflare" not in change
    assert "client_max_body_size" in (found["body"].change or "")


async def test_nginx_that_heeds_the_proxy(proxy: Running, tmp_path: Path) -> None:
    """With buffering on it still streams, because the proxy asks for it; nothing is said of its answers."""
    more = "proxy_buffering on; proxy_request_buffering off; client_max_body_size 32m;"
    async with nginx(proxy.address, tmp_path, more) as url:
        assert wrong(await verdicts(url)) == {}


BUFFERS = "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"


@pytest.mark.parametrize(
    ("more", "version", "expected"),
    [
        pytest.param("", "1.1", {"compression": "warn"}, id="flushes"),
        pytest.param(BUFFERS, "1.1", {"compression": "fail"}, id="holds"),
        pytest.param(BUFFERS, "1.0", {"compression": "warn", "stream": "fail"}, id="buffers"),
    ],
)
async def test_nginx_that_compresses(
    proxy: Running, tmp_path: Path, more: str, version: str, expected: dict[str, str]
) -> None:
    """Compression is named, whether or not it holds events."""
    gzip = "gzip on; gzip_types text/event-stream; gzip_min_length 1; gzip_proxied any;"
    bodies = "proxy_request_buffering off; client_max_body_size 32m;"
    async with nginx(proxy.address, tmp_path, f"{gzip} {bodies} {more}", version=version) as url:
        found = await verdicts(url)
    assert wrong(found) == expected, found
    assert "gzip" in found["compression"].says
    assert "`gzip off;`" in (found["compression"].change or "")


async def test_haproxy_that_buffers_requests(proxy: Running, tmp_path: Path) -> None:
    """It is named as a hop that waits for bodies; nothing is said of its streams."""
    async with haproxy(proxy.address, tmp_path, "option http-buffer-request\n    option abortonclose") as url:
        found = await verdicts(url)
    assert wrong(found) == {"inspection": "warn"}, found
    assert "http-buffer-request" in (found["inspection"].change or "")


async def test_haproxy_as_it_should_be(proxy: Running, tmp_path: Path) -> None:
    """Nothing is said of one that passes on both ways."""
    async with haproxy(proxy.address, tmp_path, "option abortonclose\n    option http-no-delay") as url:
        assert wrong(await verdicts(url)) == {}


async def test_middleman_that_reads_to_the_end(proxy: Running) -> None:
    """It is told from a buffer by the length that it knows."""
    async with middleman(proxy.address, read_to_end) as url:
        found = await verdicts(url)
    assert wrong(found) == {"stream": "fail"}, found
    assert "read the answer to its end" in found["stream"].says


async def test_middleman_in_lumps(proxy: Running) -> None:
    """Lumps of some events are told from all at once."""
    async with middleman(proxy.address, in_lumps(4 * len(b'data: {"n":0,"sent_ms":1764212308000}\n\n'))) as url:
        found = await verdicts(url)
    assert wrong(found) == {"stream": "fail"}, found
    assert "in 3 lumps" in found["stream"].says


async def test_middleman_that_cuts_silences(proxy: Running) -> None:
    """It is found by the silence that was asked for, and only by that."""
    async with ByteRelay(proxy.address, idle_s=3.0) as url:
        found = await verdicts(url, silence_s=7.0)
        assert wrong(found) == {"silence": "fail"}, found
        assert "heartbeat: 15s" in (found["silence"].change or "")
        assert wrong(await verdicts(url, silence_s=0.2)) == {}


async def test_middleman_that_keeps_the_stream(proxy: Running) -> None:
    """A hop that does not tell the proxy that the client has left is found; the streams are stopped."""
    async with ByteRelay(proxy.address, keeps_server=True) as url:
        found = await verdicts(url)
        assert wrong(found) == {"leaving": "fail"}, found
        await proxy.idle()


async def test_balancer(start: Any) -> None:
    """Where a stream cannot be asked after, because another node answers, nobody is accused."""
    one, two = await start(), await start()
    async with middleman(one.address, stream, other=two.address) as url:
        found = await verdicts(url)
    assert wrong(found) == {"leaving": "warn"}, found
    assert "another node" in (found["leaving"].change or "")


async def test_middleman_that_changes_events(proxy: Running) -> None:
    """Events that cannot be read are no buffering."""

    async def serve(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        body = (await answer.read()).replace(b'"n":3', b'"m":3')
        return web.Response(status=answer.status, headers=fields(answer), body=body)

    async with middleman(proxy.address, serve) as url:
        found = await verdicts(url)
    assert wrong(found) == {"stream": "fail"}, found
    assert found["stream"].change == "Let the hop pass the body on unchanged."


async def test_middleman_that_breaks_off(proxy: Running) -> None:
    """A stream that breaks off is told with the time at which it did."""

    async def serve(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=fields(answer))
        await response.prepare(request)
        async for data in answer.content.iter_any():
            await response.write(data)
            if b'"n":4' in data and request.transport is not None:
                request.transport.abort()
        return response

    async with middleman(proxy.address, serve) as url:
        found = await verdicts(url)
    assert wrong(found)["stream"] == "fail", found
    assert "broke off" in found["stream"].says


async def test_middleman_with_cors_of_its_own(start: Any) -> None:
    """A hop that adds CORS fields is told from an origin that is not allowed."""
    proxy = await start(CORS)

    async def serve(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        headers = fields(answer)
        headers.add("Access-Control-Allow-Origin", "*")
        return web.Response(status=answer.status, headers=headers, body=await answer.read())

    async with middleman(proxy.address, serve) as url:
        found = await verdicts(url, origin="https://app.example", token=None)
    assert wrong(found) == {"cors": "fail"}, found
    assert "twice" in found["cors"].says


async def test_middleman_that_caches(proxy: Running) -> None:
    """It is found by an answer that comes twice."""
    async with middleman(proxy.address, caching()) as url:
        found = await verdicts(url)
    assert found["caching"].verdict == "fail"


async def test_middleman_that_removes_the_token(proxy: Running) -> None:
    """A token that does not arrive is told from one that is bad."""
    async with middleman(proxy.address, stream, strip=("authorization",)) as url:
        found = await verdicts(url)
    assert wrong(found) == {"token": "fail"}
    assert "`Authorization`" in (found["token"].change or "")


async def test_middleman_with_a_limit(proxy: Running) -> None:
    """A limit below the proxy's is named, with the size that passes."""
    async with middleman(proxy.address, stream, max_body=100_000) as url:
        found = await verdicts(url)
    assert wrong(found) == {"body": "fail"}, found
    assert found["body"].says == "64 KiB pass, 2 MiB are refused by a hop."


async def test_something_else(proxy: Running) -> None:
    """Where the proxy is not, that is all that is said."""

    async def serve(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        return web.Response(status=404)

    async with middleman(proxy.address, serve) as url:
        found = await verdicts(url)
    assert wrong(found) == {"proxy": "fail"}
