"""The envelope by real requests: what is made of it, where it may point, and whose credential goes there."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import VENDOR_KEY, token
from tests.peers import Message, Upstream, only, request, secret_free

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running

API_KEY = "fsk_an-api-key-of-the-tests-0123456789"
CONFIG = """
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  jwt:
    - {{issuer: tests, audience: llm, algorithms: [HS256], secret: "{secret}"}}
  api_keys:
    - {{user: page, sha256: "SHA256"}}
  envelope_passcode: true
plans:
  default: {{}}
  narrow: {{upstreams: [other]}}
upstreams:
  tongyi: {{url: "{url}", dialect: dashscope, api_key: {key}, headers: {{X-Ours: "1"}}}}
  other: {{url: "{url}", dialect: openai, api_key: {key}}}
envelope:
  targets:
    - {{url: "{url}/api/v1/*", upstream: tongyi}}
    - {{url: "{url}/own/*"}}
    - {{url: "http://localhost:PORT/*"}}
    - {{url: "http://169.254.169.254/*"}}
    - {{url: "https://api.example.com/v1/*"}}
  allow_private: ["127.0.0.0/8"]
""".replace("SHA256", hashlib.sha256(API_KEY.encode()).hexdigest())
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
OWN = "/own/agents"
VENDOR = "/api/v1/services/aigc/text-generation/generation"
# Framing, hops, cookies, proxies' fields, and what opens a cloud's metadata.
NOT_ITS_TO_SAY = (
    "Host",
    "Content-Length",
    "Transfer-Encoding",
    "Connection",
    "Expect",
    "Upgrade",
    "Trailer",
    "TE",
    "Keep-Alive",
    "Proxy-Connection",
    "Proxy-Authorization",
    "Cookie",
    "X-Forwarded-For",
    "Metadata",
    "Metadata-Flavor",
    "X-aws-ec2-metadata-token",
    "Forwarded",
    "Origin",
    "Referer",
    "X-Upstream-Authorization",
    "Sec-Fetch-Mode",
)


@pytest.fixture
async def enveloping(start: Callable[..., Any], upstream: Upstream) -> Running:
    """A proxy whose envelopes may point at the scripted vendor."""
    return await start(config=CONFIG.replace("PORT", str(upstream.address[1])))  # type: ignore[no-any-return]  # the factory's options are open


def envelope(upstream: Upstream, path: str = OWN, **members: Any) -> dict[str, Any]:
    return {"targetUrl": upstream.url + path, **members}


async def passes(
    proxy: Running, upstream: Upstream, body: dict[str, Any] | bytes, *, credential: str | None = None
) -> Message:
    """What the target got."""
    client = await proxy.client()
    client.write(request(body=body, token=token() if credential is None else credential or None))
    vendor, received = await upstream.take()
    vendor.write(OK)
    assert (await client.read_message()).status == 200
    await vendor.gone()
    return received


async def refused(
    proxy: Running,
    upstream: Upstream,
    body: dict[str, Any] | bytes,
    *,
    path: str = "/forward-sse",
    credential: str | None = None,
) -> tuple[int, str]:
    """Status and code of a refusal that connected to nobody."""
    client = await proxy.client()
    client.write(request(path, body, token=token() if credential is None else credential or None))
    answer = await client.read_message()
    assert upstream.is_untouched
    code = answer.get("x-forward-sse-code")
    assert code is not None
    return answer.status, code


@pytest.mark.parametrize(
    ("members", "start_line", "body"),
    [
        ({}, f"POST {OWN} HTTP/1.1", b""),
        ({"method": "post", "body": '{"a": 1}'}, f"POST {OWN} HTTP/1.1", b'{"a": 1}'),
        ({"method": "POST", "body": "ü😀\r\n"}, f"POST {OWN} HTTP/1.1", "ü😀\r\n".encode()),
        ({"method": "PoSt", "body": {"a": [1, "ü"]}}, f"POST {OWN} HTTP/1.1", '{"a":[1,"ü"]}'.encode()),
        ({"method": "get"}, f"GET {OWN} HTTP/1.1", b""),
        ({"method": "GET", "body": ""}, f"GET {OWN} HTTP/1.1", b""),
        ({"method": "get", "body": "{}"}, f"GET {OWN} HTTP/1.1", b""),
        ({"method": "get", "body": {"a": 1}, "header": {}}, f"GET {OWN} HTTP/1.1", b""),
        ({"body": [1, {"a": None}]}, f"POST {OWN} HTTP/1.1", b'[1,{"a":null}]'),
        ({"body": 1.5}, f"POST {OWN} HTTP/1.1", b"1.5"),
        ({"body": True}, f"POST {OWN} HTTP/1.1", b"true"),
        ({"body": {"a": "\ud800"}}, f"POST {OWN} HTTP/1.1", b'{"a":"\\ud800"}'),
        ({"header": None, "body": None}, f"POST {OWN} HTTP/1.1", b""),
        ({"model": "gpt-4", "stream": True, "anything": {}}, f"POST {OWN} HTTP/1.1", b""),
    ],
)
async def test_envelope_becomes_a_request(
    enveloping: Running, upstream: Upstream, members: dict[str, Any], start_line: str, body: bytes
) -> None:
    """Method, body and target are the envelope's; members that mean nothing are ignored."""
    received = await passes(enveloping, upstream, envelope(upstream, **members))

    assert received.start == start_line
    assert received.body == body
    assert received.get("accept") == "text/event-stream"
    assert received.get("accept-encoding") == "identity"
    assert received.get("host") == f"127.0.0.1:{upstream.address[1]}"
    assert received.get("via") == "1.1 forward-sse"


@pytest.mark.parametrize(
    ("value", "goes"),
    [(None, None), (5, "5"), (1.5, "1.5"), (True, "true"), (False, "false")],
    ids=["null", "integer", "fraction", "true", "false"],
)
@pytest.mark.parametrize("wrap", [dict, json.dumps], ids=["object", "string"])
async def test_envelope_header_scalar(
    enveloping: Running,
    upstream: Upstream,
    wrap: Callable[[dict[str, object]], object],
    value: object,
    goes: str | None,
) -> None:
    """A null in the header is left out (`localStorage.getItem` of nobody), numbers and booleans are their JSON text."""
    header = wrap({"authorization": value, "X-A": "a"})

    received = await passes(enveloping, upstream, envelope(upstream, header=header))

    assert (received.get("authorization"), received.get("x-a")) == (goes, "a")


@pytest.mark.parametrize("value", [["a"], {"a": "b"}], ids=["array", "object"])
async def test_envelope_header_refusal_names_the_member(enveloping: Running, upstream: Upstream, value: object) -> None:
    """What no field can have is refused by its name, and its content stays out of the answer."""
    client = await enveloping.client()
    client.write(request(body=envelope(upstream, header={"X-Mine": value}), token=token()))

    answer = await client.read_message()

    assert (answer.status, answer.get("x-forward-sse-code")) == (400, "invalid_request")
    assert "X-Mine" in answer.json["error"]["message"]
    assert upstream.is_untouched


@pytest.mark.parametrize("method", ["put", "PATCH", "delete"])
async def test_envelope_method_that_the_target_lists(
    start: Callable[..., Any], upstream: Upstream, method: str
) -> None:
    """Other methods than get and post go where the target lists them, in any case, and then only those."""
    listed = '{{url: "{url}/own/*", methods: [put, PATCH, Delete]}}'
    config = CONFIG.replace('{{url: "{url}/own/*"}}', listed).replace("PORT", str(upstream.address[1]))
    proxy = await start(config=config)

    received = await passes(proxy, upstream, envelope(upstream, method=method, body={"a": 1}))
    client = await proxy.client()
    client.write(request(body=envelope(upstream, method="post"), token=token()))
    answer = await client.read_message()

    assert (received.start, received.body) == (f"{method.upper()} {OWN} HTTP/1.1", b'{"a":1}')
    assert answer.status == 400
    assert "method" in answer.json["error"]["message"]


@pytest.mark.parametrize("wrap", [dict, json.dumps])
async def test_envelope_header_goes(
    enveloping: Running, upstream: Upstream, wrap: Callable[[dict[str, str]], object]
) -> None:
    """The envelope's header, an object or one as a string, is the request's; the frontend's own fields are not."""
    own = {
        "Content-Type": "application/json",
        "Authorization": "Bearer the-agents-own",
        "X-Custom": "a; b=c",
        "Accept": "x/y",
    }
    client = await enveloping.client()
    data = request(
        body=envelope(upstream, header=wrap(own)), token=token(), fields=(("User-Agent", "browser"), ("Cookie", "a=b"))
    )
    client.write(data)
    vendor, received = await upstream.take()
    vendor.write(OK)
    assert (await client.read_message()).status == 200

    assert received.get("authorization") == "Bearer the-agents-own"
    assert received.get("content-type") == "application/json"
    assert received.get("x-custom") == "a; b=c"
    assert received.get("accept") == "text/event-stream"
    assert received.get("user-agent") is None
    assert received.get("cookie") is None


async def test_envelope_target_with_an_upstream_has_its_key(enveloping: Running, upstream: Upstream) -> None:
    """The upstream's key and fields go there, and never a credential of the envelope's, however it is spelled."""
    own = dict.fromkeys(
        ("authorization", "X-Api-Key", "api_key", "x-goog-api-key", "X_Ours", "Proxy-Authorization"), "evil-own-key"
    )
    received = await passes(enveloping, upstream, envelope(upstream, VENDOR, header=own))

    assert received.start == f"POST {VENDOR} HTTP/1.1"
    assert received.all("authorization") == [f"Bearer {VENDOR_KEY}"]
    assert received.all("x-ours") == ["1"]
    assert secret_free(repr(received.fields).encode(), "evil-own-key", token())
    line = only(await enveloping.settled(), "exchange.settled")
    assert (line["upstream"], line["user"]) == ("tongyi", "alice")


async def test_envelope_target_without_an_upstream_has_no_key(enveloping: Running, upstream: Upstream) -> None:
    """Neither a vendor's key nor the caller's token goes to a target that is nobody's upstream."""
    received = await passes(enveloping, upstream, envelope(upstream))

    assert received.get("authorization") is None
    assert secret_free(repr(received.fields).encode(), VENDOR_KEY)
    assert only(await enveloping.settled(), "exchange.settled")["upstream"] == "envelope"


async def test_envelope_drops_what_is_not_its_to_say(enveloping: Running, upstream: Upstream) -> None:
    """Framing, hops, cookies, proxies' fields and what opens a cloud's metadata do not go."""
    received = await passes(
        enveloping, upstream, envelope(upstream, header=dict.fromkeys(NOT_ITS_TO_SAY, "evil"), body="abc")
    )

    assert "evil" not in repr(received.fields)
    assert received.body == b"abc"


async def test_envelope_query_goes_and_the_fragment_does_not(enveloping: Running, upstream: Upstream) -> None:
    """A target's query is only data, byte for byte; a fragment never leaves a client."""
    received = await passes(enveloping, upstream, envelope(upstream, "/own/x?u=http://internal/&&b=%2f#frag"))

    assert received.start == "POST /own/x?u=http://internal/&&b=%2f HTTP/1.1"


@pytest.mark.parametrize("is_named", [True, False])
async def test_envelope_passcode(enveloping: Running, upstream: Upstream, *, is_named: bool) -> None:
    """An API key in the envelope lets its user in, and stays here."""
    body = envelope(upstream, passcode=API_KEY) | ({"upstream": "x"} if is_named else {})
    received = await passes(enveloping, upstream, body, credential="")

    assert secret_free(repr(received).encode(), API_KEY)
    assert secret_free(enveloping.log_bytes(), API_KEY)
    line = only(await enveloping.settled(), "exchange.settled")
    assert (line["user"], line["issuer"], line["ending"]) == ("page", "key", "complete")


@pytest.mark.parametrize(
    ("passcode", "code"),
    [
        (None, "missing_token"),
        ("", "missing_token"),
        (7, "missing_token"),
        ("wrong", "invalid_token"),
        ("TOKEN", "invalid_token"),
        ("é" * 9000, "invalid_token"),
    ],
)
async def test_envelope_passcode_is_wrong(enveloping: Running, upstream: Upstream, passcode: object, code: str) -> None:
    """No passcode, another one, or an access token in its place lets nobody in."""
    passcode = token() if passcode == "TOKEN" else passcode
    assert await refused(enveloping, upstream, envelope(upstream, passcode=passcode), credential="") == (401, code)


async def test_envelope_passcode_does_not_help_a_bad_header(enveloping: Running, upstream: Upstream) -> None:
    """A credential in a field is the credential: a passcode is no second chance."""
    body = envelope(upstream, passcode=API_KEY)
    assert await refused(enveloping, upstream, body, credential="wrong") == (401, "invalid_token")


async def test_envelope_passcode_is_for_envelopes(enveloping: Running, upstream: Upstream) -> None:
    """On other routes nobody looks for one."""
    for path in ("/v1/chat/completions", "/other/v1/chat/completions"):
        answer = await refused(enveloping, upstream, envelope(upstream, passcode=API_KEY), path=path, credential="")
        assert answer == (401, "missing_token")


async def test_envelope_passcode_is_off_by_default(start: Callable[..., Any], upstream: Upstream) -> None:
    """Without the setting a passcode means nothing."""
    config = CONFIG.replace("PORT", str(upstream.address[1])).replace("  envelope_passcode: true\n", "")
    proxy = await start(config=config)
    body = envelope(upstream, passcode=API_KEY)
    assert await refused(proxy, upstream, body, credential="") == (401, "missing_token")


async def test_envelope_not_configured(start: Callable[..., Any], upstream: Upstream) -> None:
    """Without the setting no target is allowed, and the envelope is not taken for a vendor's body."""
    proxy = await start()
    for path in ("/forward-sse", "/forward-sse?upstream=main"):
        assert await refused(proxy, upstream, envelope(upstream), path=path) == (403, "target_not_allowed")


@pytest.mark.parametrize(
    "target",
    [
        "{url}/elsewhere",
        "{url}/own",
        "{url}/ownx/a",
        "{url}/own/../elsewhere",
        "{url}/own/%2e%2e/elsewhere",
        "{url}/own/%252e%252e/elsewhere",
        "{url}/own/..;/elsewhere",
        "{url}/own%2f..%2felsewhere",
        "{url}/own//x",
        "{url}/OWN/x",
        "{url}//own/x",
        "http://127.0.0.1:1/own/x",
        "http://127.0.0.1/own/x",
        "https://127.0.0.1:{port}/own/x",
        "http://127.1:{port}/own/x",
        "http://2130706433:{port}/own/x",
        "http://0x7f000001:{port}/own/x",
        "http://0177.0.0.1:{port}/own/x",
        "http://[::ffff:127.0.0.1]:{port}/own/x",
        "http://[::1]:{port}/own/x",
        "http://127.0.0.1:{port}@evil.example/own/x",
        "http://u:p@127.0.0.1:{port}/own/x",
        "http://evil.example#@127.0.0.1:{port}/own/x",
        "http://127.0.0.1%3a{port}/own/x",
        "http://127.0.0.1:{port}.evil.example/own/x",
        "http://127.0.0.1:0{port}/own/x",
        "ftp://127.0.0.1:{port}/own/x",
        "file:///etc/passwd",
        "//127.0.0.1:{port}/own/x",
        "http:/127.0.0.1:{port}/own/x",
        "http://127。0。0。1:{port}/own/x",
        "https://example.com/v1/x",
        "https://evilapi.example.com/v1/x",
        "https://api.example.com.evil.example/v1/x",
        "https://api.example.com/v2/x",
        "http://api.example.com/v1/x",
        "",
    ],
)
async def test_envelope_target_not_listed(enveloping: Running, upstream: Upstream, target: str) -> None:
    """What is not on the list, or only looks as if it were, is refused without a connection."""
    target = target.format(url=upstream.url, port=upstream.address[1])

    assert await refused(enveloping, upstream, {"targetUrl": target}) == (403, "target_not_allowed")


@pytest.mark.parametrize(
    "members",
    [
        {"targetUrl": 7},
        {"targetUrl": None},
        {"targetUrl": ["x"]},
        {"targetUrl": "http://" + "a" * 9000},
        {"targetUrl": "http://127.0.0.1/own/x y"},
        {"targetUrl": "http://127.0.0.1/own/\r\nX: 1"},
        {"targetUrl": "http://127.0.0.1\\own"},
        {"targetUrl": "http://127.0.0.1/own/\u2028"},
        {"method": "put"},
        {"method": "delete"},
        {"method": "CONNECT"},
        {"body": "\ud800"},
        {"method": "POST "},
        {"method": "GET / HTTP/1.1\r\nX:"},
        {"method": 5},
        {"header": 7},
        {"header": ["a"]},
        {"header": "not json"},
        {"header": "[]"},
        {"header": {"X-A": "1\r\nX-Evil: 1"}},
        {"header": '{"X-A": "1\\r\\nX-Evil: 1"}'},
        {"header": {"X-A": "a\nb"}},
        {"header": {"X-A": "a\rb"}},
        {"header": {"X-A": "a\0b"}},
        {"header": {"X-A": "a\x7fb"}},
        {"header": {"X-A": "\u010a"}},
        {"header": {"X-A": "\u560a"}},
        {"header": {"X-A": {"a": "b"}}},
        {"header": {"X-A": ["a"]}},
        {"header": {"X-A": "a" * 9000}},
        {"header": {"X A": "a"}},
        {"header": {"X:A": "a"}},
        {"header": {"": "a"}},
        {"header": {"X\r\nA": "a"}},
        {"header": {"Xé": "a"}},
        {"header": {f"X-{number}": "a" for number in range(5000)}},
        {"passcode": 7},
    ],
)
async def test_envelope_malformed(enveloping: Running, upstream: Upstream, members: dict[str, Any]) -> None:
    """A member that cannot be what it should be is refused, and nothing is sent."""
    assert await refused(enveloping, upstream, envelope(upstream) | members) == (400, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b'{"targetUrl":"URL/own/x","body":"\\ud800"}',
        b'{"targetUrl":"URL/own/x","targetUrl":"URL/own/y"}',
        b'{"targetUrl":"URL/own/x","targetUr\\l":"URL/own/y"}',
        b'{"targetUrl":"URL/own/x","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"targetUrl":"URL/own/x"',
    ],
)
async def test_envelope_odd_json(enveloping: Running, upstream: Upstream, body: bytes) -> None:
    """JSON that two readers might read differently is refused."""
    data = body.replace(b"URL", upstream.url.encode())

    assert await refused(enveloping, upstream, data) == (400, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b'{"targetUrl":"URL/own/x","x":NaN}',
        b'\xef\xbb\xbf{"targetUrl":"URL/own/x"}',
        b'{"targetUrl":"URL/own/x","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    ],
    ids=["nan", "bom", "10000 levels"],
)
async def test_envelope_lenient_json(enveloping: Running, upstream: Upstream, body: bytes) -> None:
    """What decides nothing is not judged."""
    received = await passes(enveloping, upstream, body.replace(b"URL", upstream.url.encode()))

    assert received.start == "POST /own/x HTTP/1.1"


async def test_envelope_in_utf16_is_refused(enveloping: Running, upstream: Upstream) -> None:
    """JSON is UTF-8 (RFC 8259 §8.1)."""
    data = json.dumps(envelope(upstream)).encode("utf-16")

    assert await refused(enveloping, upstream, data) == (400, "invalid_request")


@pytest.mark.parametrize("target", ["http://localhost:{port}/x", "http://169.254.169.254/latest/meta-data"])
async def test_envelope_private_address(start: Callable[..., Any], upstream: Upstream, target: str) -> None:
    """A listed target that is, or resolves to, a private address is refused unless that block is allowed."""
    config = CONFIG.replace("PORT", str(upstream.address[1])).replace('  allow_private: ["127.0.0.0/8"]\n', "")
    proxy = await start(config=config)
    body = {"targetUrl": target.format(port=upstream.address[1])}

    assert await refused(proxy, upstream, body) == (403, "target_not_allowed")
    assert await refused(proxy, upstream, envelope(upstream)) == (403, "target_not_allowed")


async def test_envelope_private_address_outside_the_allowed_block(enveloping: Running, upstream: Upstream) -> None:
    """One allowed block allows no other."""
    body = {"targetUrl": "http://169.254.169.254/latest/meta-data"}

    assert await refused(enveloping, upstream, body) == (403, "target_not_allowed")


async def test_envelope_redirect_is_not_followed(enveloping: Running, upstream: Upstream) -> None:
    """A target's redirect comes through and is not obeyed."""
    client = await enveloping.client()
    client.write(request(body=envelope(upstream), token=token()))
    vendor, _ = await upstream.take()
    location = f"{upstream.url}/own/second"
    vendor.write(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())

    answer = await client.read_message()
    await enveloping.idle()

    assert (answer.status, answer.get("location")) == (302, location)
    assert len(upstream.peers) == 1


@pytest.mark.parametrize("which", ["listen", "admin_listen"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_envelope_own_listener(
    start: Callable[..., Any], upstream: Upstream, unused_tcp_port_factory: Callable[[], int], which: str, host: str
) -> None:
    """The proxy's own listeners are no target, though everything about them is allowed."""
    port = unused_tcp_port_factory()
    config = (
        CONFIG.replace(f"\n{which}: 127.0.0.1:0", f"\n{which}: 127.0.0.1:{port}")
        .replace("  targets:\n", f'  targets:\n    - {{{{url: "http://{host}:{port}/*"}}}}\n')
        .replace("PORT", str(upstream.address[1]))
        .replace('["127.0.0.0/8"]', '["127.0.0.0/8", "::1/128"]')
    )
    proxy = await start(config=config)
    body = {"targetUrl": f"http://{host}:{port}/metrics", "method": "get"}

    assert await refused(proxy, upstream, body) == (403, "target_not_allowed")


async def test_envelope_upstream_not_in_the_plan(enveloping: Running, upstream: Upstream) -> None:
    """A target's upstream has to be in the plan."""
    body = envelope(upstream, VENDOR)

    answer = await refused(enveloping, upstream, body, credential=token(plan="narrow"))

    assert answer == (403, "upstream_not_allowed")


async def test_envelope_streams_in_the_upstreams_dialect(enveloping: Running, upstream: Upstream) -> None:
    """A stream that breaks off between events gets the error event of the target's upstream, and no end."""
    client = await enveloping.client()
    client.write(request(body=envelope(upstream, VENDOR), token=token()))
    vendor, _ = await upstream.take()
    event = b"id:1\nevent:result\n:HTTP_STATUS/200\ndata:{}\n\n"
    vendor.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n"
        % (len(event), event)
    )
    await client.read_until(event)
    vendor.close()

    rest = await client.read_to_end()

    assert b"event:error\n:HTTP_STATUS/502\nstatus:502\ndata:{" in rest
    assert not rest.endswith(b"0\r\n\r\n")
