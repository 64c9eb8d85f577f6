"""Secrets stay where they belong: the caller's credential with us, the vendor's key with the vendor."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.conftest import VENDOR_KEY, token
from tests.peers import LAST, STREAM_HEAD, Peer, Upstream, chunk, event, request, secret_free
from tests.whole.scenes import BODY, OK, check_secrets, head

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running

PATHS = {
    "openai": "/main/v1/chat/completions",
    "anthropic": "/main/v1/messages",
    "dashscope": "/main/api/v1/services/aigc/text-generation/generation",
    "gemini": "/main/v1beta/models/gemini-x:streamGenerateContent",
}
CONFIG = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  query_token: QUERY
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}
upstreams:
  main: {{url: "{url}", dialect: DIALECT, api_key: {key}}}
default_upstream: main
"""
NAMES = (
    "Authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "X_Api_Key",
    "API_KEY",
    "X_Goog_Api_Key",
    "X-Upstream-Authorization",
    "X_Upstream_Authorization",
    "Proxy-Authorization",
    "Proxy_Authorization",
    "Cookie",
    "X-Forwarded-Access-Token",
    "X-Forwarded-Authorization",
)


def spellings(secret: str) -> tuple[str, ...]:
    """The forms in which a secret may slip through."""
    return (secret, base64.b64encode(secret.encode()).decode().rstrip("="), secret.rsplit(".", maxsplit=1)[-1])


@pytest.mark.parametrize("dialect", PATHS)
async def test_token_never_reaches_the_upstream(start: Callable[..., Any], upstream: Upstream, dialect: str) -> None:
    """In whatever field a token stands, whoever else repeats it, the upstream sees none of it, nor does the log."""
    proxy = await start(config=CONFIG.replace("DIALECT", dialect).replace("QUERY", "false"))
    secret = token()
    vendor: Peer | None = None
    for name in NAMES:
        for carrier in ("Authorization", "x-api-key", "api-key", "x-goog-api-key"):
            client = await proxy.client()
            value = f"Bearer {secret}" if carrier == "Authorization" else secret
            again = f"token={secret}" if name == "Cookie" else f"Bearer {secret}" if "uthorization" in name else secret
            fields = ((carrier, value),) if name == carrier else ((carrier, value), (name, again))
            client.write(request(PATHS[dialect], BODY, fields=fields))
            vendor = vendor or await upstream.accept()
            received = await vendor.read_message()
            vendor.write(OK)
            assert (await client.read_message()).status == 200
            assert received.start.startswith("POST")
            assert secret_free(vendor.seen, *spellings(secret)), (name, carrier)
            assert vendor.seen.count(VENDOR_KEY.encode()) == 1
            check_secrets(proxy, client.seen, secrets=spellings(secret))
            vendor.seen = b""
            await client.gone()
    await proxy.settled(4 * len(NAMES))
    check_secrets(proxy, secrets=spellings(secret))


async def test_token_in_a_path(start: Callable[..., Any], upstream: Upstream) -> None:
    """A token in the path of a request that is served is not in the log, nor once the token has been seen before."""
    config = CONFIG.replace("DIALECT", "raw, path: /v1, allow_paths: all").replace("QUERY", "false")
    proxy = await start(config=config)
    secret = token()
    client = await proxy.client()
    vendor: Peer | None = None
    for count in (1, 2):
        client.write(request(f"/main/{secret}", BODY, token=secret))
        vendor = vendor or await upstream.accept()
        await vendor.read_message()
        vendor.write(OK)
        assert (await client.read_message()).status == 200
        lines = await proxy.settled(count)
        assert lines[-1]["path"] == "/main/[redacted]"
    check_secrets(proxy, secrets=spellings(secret))


@pytest.mark.parametrize("member", ["access_token", "access%5Ftoken", "%61ccess_token"])
@pytest.mark.parametrize("query_token", ["true", "false"])
async def test_token_in_the_query(start: Callable[..., Any], upstream: Upstream, member: str, query_token: str) -> None:
    """A token in the query is taken off it, in any spelling, or refused; the log has neither."""
    proxy = await start(config=CONFIG.replace("DIALECT", "openai").replace("QUERY", query_token))
    secret = token()
    client = await proxy.client()
    client.write(request(f"/main/v1/chat/completions?a=1&{member}={quote(secret)}&b=%20", BODY))
    if query_token == "true":
        vendor, received = await upstream.take()
        vendor.write(OK)
        assert (await client.read_message()).status == 200
        assert received.start == "POST /v1/chat/completions?a=1&b=%20 HTTP/1.1"
        assert secret_free(vendor.seen, *spellings(secret))
    else:
        assert (await client.read_message()).status == 400
        assert upstream.is_untouched
    await proxy.settled()
    check_secrets(proxy, client.seen, secrets=spellings(secret))


async def test_gemini_key_in_the_query(start: Callable[..., Any], upstream: Upstream) -> None:
    """Gemini's `?key=` may hold our token; the vendor gets its own key, in the field."""
    proxy = await start(config=CONFIG.replace("DIALECT", "gemini").replace("QUERY", "false"))
    secret = token()
    client = await proxy.client()
    client.write(request(f"{PATHS['gemini']}?alt=sse&key={secret}", BODY))
    vendor, received = await upstream.take()
    vendor.write(OK)

    assert (await client.read_message()).status == 200
    assert received.start.endswith("streamGenerateContent?alt=sse HTTP/1.1")
    assert received.get("x-goog-api-key") == VENDOR_KEY
    assert secret_free(vendor.seen, *spellings(secret))
    await proxy.settled()
    check_secrets(proxy, client.seen, secrets=spellings(secret))


def hostile(secret: str) -> dict[str, bytes]:
    """Requests that are refused at every step, each with the token somewhere."""
    bearer = f"Authorization: Bearer {secret}"
    return {
        "expired-looking": head(f"{bearer}x", "Content-Length: 0"),
        "basic": head(f"Authorization: Basic {secret}", "Content-Length: 0"),
        "no-scheme": head(f"Authorization: {secret}", "Content-Length: 0"),
        "two-fields": head(bearer, bearer, "Content-Length: 0"),
        "two-credentials": head(bearer, f"x-api-key: {secret}x", "Content-Length: 0"),
        "two-tokens": head(f"{bearer} {secret}", "Content-Length: 0"),
        "folded": head(f"Authorization: Bearer\r\n {secret}", "Content-Length: 0"),
        "space-before-colon": head(f"Authorization : Bearer {secret}", "Content-Length: 0"),
        "token-as-name": head(f"{secret}: x", "Content-Length: 0"),
        "token-as-method": head(bearer, start=f"{secret} / HTTP/1.1"),
        "token-as-target": head(bearer, start=f"POST {secret} HTTP/1.1"),
        "token-as-path": head(bearer, "Content-Length: 0", start=f"POST /{secret} HTTP/1.1"),
        "token-in-path": head(bearer, "Content-Length: 0", start=f"POST /main/{secret} HTTP/1.1"),
        "token-as-userinfo": head(bearer, start=f"POST http://{secret}@proxy.test/ HTTP/1.1"),
        "token-as-authority": head(start=f"CONNECT {secret}:443 HTTP/1.1"),
        "token-as-fragment": head(bearer, start=f"POST /forward-sse#{secret} HTTP/1.1"),
        "token-as-version": head(bearer, start=f"POST /forward-sse {secret}"),
        "token-as-length": head(f"Content-Length: {secret}"),
        "token-as-coding": head(f"Transfer-Encoding: {secret}"),
        "token-as-host": head(bearer, f"Host: {secret}:x", host=False),
        "token-as-expectation": head(bearer, f"Expect: {secret}", "Content-Length: 2"),
        "token-as-upstream": head(bearer, f"X-Upstream: {secret}", "Content-Length: 2") + b"{}",
        "token-as-upstream-in-query": head(
            bearer, "Content-Length: 2", start=f"POST /forward-sse?upstream={secret} HTTP/1.1"
        )
        + b"{}",
        "token-as-body": head(bearer, f"Content-Length: {len(secret)}") + secret.encode(),
        "token-as-model": request("/v1/messages", {"model": secret, "targetUrl": secret}, token=secret + "x"),
        "token-as-target-url": request(body={"targetUrl": f"https://{secret}/"}, token=secret),
        "token-as-chunk-size": head(bearer, "Transfer-Encoding: chunked") + secret.encode() + b"\r\n",
        "token-as-origin": head(f"Origin: {secret}", "Content-Length: 0"),
        "token-instead-of-a-head": f"Bearer {secret}\r\n\r\n".encode(),
    }


@pytest.mark.parametrize("name", hostile(""))
async def test_refusals_repeat_no_token(proxy: Running, upstream: Upstream, name: str) -> None:
    """Wherever a token stands in a request that is refused, neither the answer nor the log has it."""
    secret = token()
    client = await proxy.client()
    client.write(hostile(secret)[name])

    answer = await client.read_message()

    assert answer.status in {400, 401, 403, 404, 405}
    assert upstream.is_untouched
    line = (await proxy.settled())[0]
    assert line["ending"] == "refused"
    check_secrets(proxy, client.seen, secrets=spellings(secret))


async def test_vendor_key_in_failures(proxy: Running, upstream: Upstream) -> None:
    """However an upstream fails, the key that it was sent stays between it and us."""
    for act in (Peer.close, Peer.reset, lambda vendor: vendor.write(b"HTTP/1.1 junk\r\n\r\n")):
        client = await proxy.client()
        client.write(request(body=BODY, token=token()))
        vendor, received = await upstream.take()
        assert received.get("authorization") == f"Bearer {VENDOR_KEY}"
        act(vendor)
        assert (await client.read_message()).status == 502
        check_secrets(proxy, client.seen)
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("one")))
    await client.read_until(event("one") + b"\r\n")
    vendor.reset()
    await client.closed()
    await proxy.settled(4)
    check_secrets(proxy, client.seen)


async def test_vendor_key_that_the_upstream_echoes(proxy: Running, upstream: Upstream) -> None:
    """An upstream that repeats the key in its body is relayed like any other, and still not logged."""
    # Bytes are relayed unchanged, without a look at what they say: redacting them would be a filter that
    # is easily missed by a split and that no client could rely on. A vendor that echoes keys is the vendor's defect.
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(f"data: {VENDOR_KEY}\n\n".encode()) + LAST)

    answer = await client.read_message()

    assert answer.body == f"data: {VENDOR_KEY}\n\n".encode()
    await proxy.settled()
    assert secret_free(proxy.log_bytes(), VENDOR_KEY)


async def test_admin_pages_hold_no_secret(proxy: Running, upstream: Upstream) -> None:
    """Neither the metrics nor the list of streams has a token, a key, or what was said."""
    secret = token()
    client = await proxy.client()
    client.write(request(body=BODY | {"messages": [{"role": "user", "content": "canary-prompt"}]}, token=secret))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(event("canary-answer")))
    await client.read_until(b"canary-answer")
    admin = await proxy.admin()
    for path in ("/metrics", "/admin/streams"):
        admin.write(request(path, method="GET"))
        assert (await admin.read_message()).status == 200

    vendor.write(LAST)
    await proxy.settled()

    check_secrets(proxy, admin.seen, secrets=(*spellings(secret), "canary-prompt", "canary-answer"))
