"""Where the vendor's credential stands on the wire, and where the operator's secrets come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import VENDOR_KEY, token
from tests.peers import Message, Upstream, request, secret_free
from tests.whole.scenes import BODY, OK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Running

PATH = "/main/v1/chat/completions"
HEADER_SECRET = "header-secret-canary-51"
CONFIG = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}
upstreams:
  main: {{url: "{url}", dialect: openai, MORE}}
default_upstream: main
# {key}
"""


def config(more: str) -> str:
    return CONFIG.replace("MORE", more.replace("{", "{{").replace("}", "}}"))


async def forwarded(proxy: Running, upstream: Upstream, **fields: str) -> Message:
    """A request's head as the vendor got it."""
    client = await proxy.client()
    carrier = {} if "api_key" in fields else {"Authorization": f"Bearer {token()}"}
    given = carrier | {name.replace("_", "-"): value for name, value in fields.items()}
    client.write(request(PATH, BODY, fields=tuple(given.items())))
    vendor, received = await upstream.take()
    vendor.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert (await client.read_message()).status == 200
    await client.gone()
    return received


@pytest.mark.parametrize("name", ["api-key", "Ocp-Apim-Subscription-Key", "Authorization"])
async def test_credential_header(start: Callable[..., Any], upstream: Upstream, name: str) -> None:
    """The key goes bare where the operator wants it, once, and nowhere else."""
    proxy = await start(config=config(f"api_key: {VENDOR_KEY}, credential_header: {name}"))
    received = await forwarded(proxy, upstream)
    assert received.all(name) == [VENDOR_KEY]
    if name != "Authorization":
        assert received.get("authorization") is None


async def test_credential_header_several_keys(start: Callable[..., Any], upstream: Upstream) -> None:
    """Several keys take turns in that header."""
    proxy = await start(config=config("api_keys: [key-one, key-two], credential_header: api-key"))
    seen = [(await forwarded(proxy, upstream)).get("api-key") for _ in range(3)]
    assert seen == ["key-one", "key-two", "key-one"]


@pytest.mark.parametrize("name", ["X-Vendor-Key", "x-vendor-key", "X_Vendor_Key"])
async def test_credential_header_of_the_client(start: Callable[..., Any], upstream: Upstream, name: str) -> None:
    """A client's own field of that name, in any spelling, is not forwarded beside the key."""
    proxy = await start(config=config(f"api_key: {VENDOR_KEY}, credential_header: X-Vendor-Key"))
    client = await proxy.client()
    client.write(request(PATH, BODY, token=token(), fields=((name, "theirs"),)))
    vendor, received = await upstream.take()
    assert received.get("x-vendor-key") == VENDOR_KEY
    assert secret_free(vendor.seen, "theirs")


async def test_credential_header_and_the_callers_own(start: Callable[..., Any], upstream: Upstream) -> None:
    """The caller's token in `api-key` is taken away before the vendor's key takes its place."""
    proxy = await start(config=config(f"api_key: {VENDOR_KEY}, credential_header: api-key"))
    secret = token()
    received = await forwarded(proxy, upstream, api_key=secret)
    assert received.all("api-key") == [VENDOR_KEY]


@pytest.mark.parametrize("given", ["Bearer theirs-1", "bearer  theirs-1", "theirs-1"])
async def test_credential_header_of_a_client_with_a_key(
    start: Callable[..., Any], upstream: Upstream, given: str
) -> None:
    """With `api_key: client` the client's credential goes there, without its scheme."""
    proxy = await start(config=config("api_key: client, credential_header: api-key"))
    received = await forwarded(proxy, upstream, X_Upstream_Authorization=given)
    assert received.all("api-key") == ["theirs-1"]
    assert received.get("authorization") is None
    assert received.get("x-upstream-authorization") is None


async def test_credential_header_of_a_client_without_a_key(start: Callable[..., Any], upstream: Upstream) -> None:
    """A scheme alone is no credential."""
    proxy = await start(config=config("api_key: client, credential_header: api-key"))
    client = await proxy.client()
    client.write(request(PATH, BODY, token=token(), fields=(("X-Upstream-Authorization", "Bearer"),)))
    assert (await client.read_message()).status == 400
    assert upstream.is_untouched


@pytest.mark.parametrize("source", ["file", "variable"])
async def test_header_from_elsewhere(
    start: Callable[..., Any], upstream: Upstream, tmp_path: Path, source: str
) -> None:
    """A header's value in a file reaches the vendor as its content, not as the words that name it; the log has none."""
    (tmp_path / "value").write_text(f"{HEADER_SECRET}\n")
    value = f"file:{tmp_path}/value" if source == "file" else HEADER_SECRET
    overrides = {"upstreams": {"main": {"headers": {"api-key": value}}}}
    proxy = await start(config=config("api_key: none"), **overrides)

    received = await forwarded(proxy, upstream, X_Request_Id=HEADER_SECRET)

    assert received.all("api-key") == [HEADER_SECRET]
    (line,) = await proxy.settled()
    assert line["id"] == "[redacted]"
    assert secret_free(proxy.log_bytes(), HEADER_SECRET)


async def test_credential_header_of_an_envelope(start: Callable[..., Any], upstream: Upstream) -> None:
    """An envelope to an upstream's target gets the key there, and its own header of that name goes nowhere."""
    more = f'envelope: {{targets: [{{url: "{upstream.url}/v1/*", upstream: main}}], allow_private: ["127.0.0.0/8"]}}\n'
    proxy = await start(more, config=config(f"api_key: {VENDOR_KEY}, credential_header: X-Vendor-Key"))
    client = await proxy.client()
    target = f"{upstream.url}/v1/chat/completions"
    body = {"targetUrl": target, "method": "post", "header": {"x-vendor-key": "theirs"}, "body": "{}"}
    client.write(request(body=body, token=token()))
    vendor, received = await upstream.take()
    assert received.all("x-vendor-key") == [VENDOR_KEY]
    assert secret_free(vendor.seen, "theirs")
