"""Secrets in files that rotate while the proxy serves: the vendor gets the new ones, and nobody waits for a reload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.app import FILES
from proxy.settings.loading import load
from tests.conftest import SECRET, token
from tests.peers import LAST, STREAM_HEAD, Upstream, chunk, event, request, secret_free
from tests.whole.scenes import BODY, OK
from tests.whole.test_tls import SecureUpstream, make_authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Running

PATH = "/main/v1/chat/completions"
OLD, NEW = "key-canary-before", "key-canary-after"
CLOSING = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
CONFIG = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}
upstreams:
  main: {{url: "{url}", dialect: openai, api_key: "file:KEY"}}
default_upstream: main
# {key}
"""


async def key_seen(proxy: Running, upstream: Upstream) -> str | None:
    """The key that the vendor gets now."""
    client = await proxy.client()
    client.write(request(PATH, BODY, token=token(), fields=(("X-Request-Id", NEW),)))
    vendor, received = await upstream.take()
    vendor.write(CLOSING)
    assert (await client.read_message()).status == 200
    await client.gone()
    return received.get("authorization")


async def test_key_that_rotates(start: Callable[..., Any], upstream: Upstream, tmp_path: Path) -> None:
    """A new key reaches the vendor without a reload, the stream that runs goes on, and the log has neither key."""
    key = tmp_path / "key"
    key.write_text(f"{OLD}\n")
    proxy = await start(config=CONFIG.replace("KEY", str(key)))
    client = await proxy.client()
    client.write(request(PATH, BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    await client.read_until(event("one"))

    key.write_text(f"{NEW}\n")
    await proxy.server.app[FILES].look()

    assert await key_seen(proxy, upstream) == f"Bearer {NEW}"
    vendor.write(chunk(event("two")) + LAST)
    assert event("two") in await client.read_until(LAST)
    lines = await proxy.settled(2)
    assert "[redacted]" in {line["id"] for line in lines}
    assert secret_free(proxy.log_bytes(), OLD, NEW)
    assert [line["place"] for line in proxy.lines() if line["event"] == "secret.reread"] == ["upstreams.main.api_key"]


async def test_key_that_cannot_be_read(start: Callable[..., Any], upstream: Upstream, tmp_path: Path) -> None:
    """While the file is faulty, requests go on with the key that was read last."""
    key = tmp_path / "key"
    key.write_text(OLD)
    proxy = await start(config=CONFIG.replace("KEY", str(key)))
    key.write_text(f"'{NEW}'")
    await proxy.server.app[FILES].look()
    assert await key_seen(proxy, upstream) == f"Bearer {OLD}"


async def test_reload_after_a_rotation(start: Callable[..., Any], upstream: Upstream, tmp_path: Path) -> None:
    """Looks go on with the settings of a reload."""
    key, other = tmp_path / "key", tmp_path / "other"
    key.write_text(OLD)
    other.write_text("key-of-another-file")
    proxy = await start(config=CONFIG.replace("KEY", str(key)))
    path = tmp_path / "proxy.yaml"
    path.write_text(CONFIG.replace("KEY", str(other)).format(secret=SECRET, url=upstream.url, key=""))
    await proxy.server.reload(load(path, {}))
    key.write_text("key-of-nobody")
    other.write_text(NEW)
    await proxy.server.app[FILES].look()
    assert await key_seen(proxy, upstream) == f"Bearer {NEW}"


async def test_authorities_that_rotate(start: Callable[..., Any], tmp_path: Path) -> None:
    """New connections trust the authorities that the file holds now."""
    authorities = [make_authority(_made(tmp_path / name)) for name in ("first", "second")]
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authorities[0].certificate.read_bytes())
    config = CONFIG.replace('api_key: "file:KEY"', f'api_key: none, ca_file: "{trusted}"')
    async with SecureUpstream(authorities[1].good) as vendor:
        proxy = await start(config=config.replace("{url}", vendor.url))
        client = await proxy.client()
        client.write(request(PATH, BODY, token=token()))
        assert (await client.read_message()).status == 502

        trusted.write_bytes(authorities[1].certificate.read_bytes())
        await proxy.server.app[FILES].look()

        assert await key_seen(proxy, vendor) is None


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
