"""What browsers are told, on every kind of answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import token
from tests.peers import STREAM_HEAD, Message, Upstream, chunk, event, only, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running

APP = "https://app.example.com"
CORS = f'cors: {{origins: ["{APP}", "http://localhost:5173"], max_age: 10m}}\n'
BODY = {"model": "gpt-x"}
GRANTS = ("access-control-allow-origin", "access-control-allow-methods", "access-control-allow-headers")


@pytest.fixture
async def crossing(start: Callable[..., Any]) -> Running:
    """A proxy that lets two pages in."""
    return await start(CORS + "plans: {default: {requests: [100/1s]}, tiny: {requests: [1/1d]}}\n")  # type: ignore[no-any-return]  # the factory's options are open


def preflight(path: str = "/forward-sse", *fields: tuple[str, str], origin: str = APP) -> bytes:
    wanted = (("Origin", origin), ("Access-Control-Request-Method", "POST"), *fields)
    return request(path, method="OPTIONS", fields=wanted)


def check_grant(answer: Message, origin: str = APP) -> None:
    """The page of that origin may read the answer and what is ours in its head."""
    assert answer.get("access-control-allow-origin") == origin
    assert "origin" in [name.strip().lower() for value in answer.all("vary") for name in value.split(",")]
    exposed = {name.strip().lower() for name in (answer.get("access-control-expose-headers") or "").split(",")}
    assert exposed >= {
        "x-forward-sse-id",
        "x-forward-sse-code",
        "retry-after",
        "ratelimit",
        "ratelimit-policy",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    }


@pytest.mark.parametrize("path", ["/forward-sse", "/main/v1/chat/completions", "/v1/messages", "/nobody/x", "/nothing"])
async def test_cors_preflight(crossing: Running, upstream: Upstream, path: str) -> None:
    """A preflight is answered to whoever asks: no token is needed, nothing charged, nothing forwarded."""
    client = await crossing.client()
    names = "authorization,content-type,last-event-id,x-stainless-os,anthropic-version,x-evil"
    client.write(preflight(path, ("Access-Control-Request-Headers", names)))

    answer = await client.read_message()

    assert (answer.status, answer.get("content-length")) == (204, None)
    assert answer.get("access-control-allow-origin") == APP
    assert "POST" in (answer.get("access-control-allow-methods") or "")
    allowed = [name.strip() for name in (answer.get("access-control-allow-headers") or "").split(",")]
    assert allowed == names.split(",")[:-1]
    assert answer.get("access-control-max-age") == "600"
    assert answer.get("x-ratelimit-limit-requests") is None
    assert upstream.is_untouched
    # The connection goes on.
    client.write(preflight(path))
    assert (await client.read_message()).status == 204


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://app.example.com.evil.example",
        "https://evilapp.example.com",
        "http://app.example.com",
        "https://app.example.com:444",
        "https://APP.example.com",
        "https://app.example.com/",
        "*",
    ],
)
async def test_cors_unlisted_origin(crossing: Running, upstream: Upstream, origin: str) -> None:
    """A page that is not listed gets no grant, not in a preflight and not in an answer."""
    client = await crossing.client()
    client.write(preflight(origin=origin))
    before = await client.read_message()
    client.write(request(body=BODY, fields=(("Origin", origin),)))
    answer = await client.read_message()

    for message in (before, answer):
        assert [name for name in GRANTS if message.get(name) is not None] == []
        assert message.get("vary") is not None
    assert (before.status, answer.status) == (204, 401)


@pytest.mark.parametrize("origin", [APP, "http://localhost:5173"])
async def test_cors_refusals(crossing: Running, upstream: Upstream, origin: str) -> None:
    """Every refusal can be read by the page, else it sees an opaque error."""
    fields = (("Origin", origin),)
    tiny = token("bob", plan="tiny")
    client = await crossing.client()
    client.write(request("/v1/messages", b"not json", token=token("mallory", plan="tiny"), fields=fields))
    answers = {400: await client.read_message()}
    for status, data in {
        401: request(body=BODY, fields=fields),
        404: request("/nobody/v1/models", method="GET", token=token(), fields=fields),
        403: request("/main/v1/files", method="GET", token=token(), fields=fields),
        405: request("/forward-sse", method="GET", token=token(), fields=fields),
    }.items():
        client.write(data)
        answers[status] = await client.read_message()
    client.write(request(body=BODY, token=tiny, fields=fields))
    vendor, _ = await upstream.take()
    vendor.close()
    answers[502] = await client.read_message()
    client.write(request(body=BODY, token=tiny, fields=fields))
    answers[429] = await client.read_message()
    crossing.service.is_draining = True
    client.write(request(body=BODY, token=token(), fields=fields))
    answers[503] = await client.read_message()

    for status, answer in answers.items():
        assert answer.status == status
        check_grant(answer, origin)


@pytest.mark.parametrize(
    "fields",
    [
        (("Transfer-Encoding", "gzip, chunked"),),
        (("Content-Length", "0"), ("Expect", "magic")),
    ],
)
async def test_cors_malformed_request(crossing: Running, fields: tuple[tuple[str, str], ...]) -> None:
    """So can the refusal of a head that is malformed, as long as it could be parsed."""
    client = await crossing.client()
    client.write(request(method="POST", token=token(), fields=(("Origin", APP), *fields)))

    answer = await client.read_message()

    assert answer.status == 400
    check_grant(answer)


async def test_cors_stream(crossing: Running, upstream: Upstream) -> None:
    """A stream can be read by the page; the vendor's own word about pages is not passed on, nor doubled."""
    client = await crossing.client()
    client.write(request(body=BODY, token=token(), fields=(("Origin", APP),)))
    vendor, received = await upstream.take()
    head = STREAM_HEAD.replace(
        b"\r\n\r\n",
        b"\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\n"
        b"access-control-expose-headers: x-vendor\r\nVary: Accept\r\n\r\n",
    )
    vendor.write(head + chunk(event("one")))
    answer = await client.read_head()

    check_grant(answer)
    assert answer.get("access-control-allow-credentials") is None
    assert sorted(answer.all("vary")) == ["Accept", "Origin"]
    assert received.get("origin") is None
    client.close()


async def test_cors_not_configured(proxy: Running, upstream: Upstream) -> None:
    """Without the setting no page may read anything, and preflights still go nowhere."""
    client = await proxy.client()
    client.write(preflight())
    before = await client.read_message()
    client.write(request(body=BODY, fields=(("Origin", APP),)))
    answer = await client.read_message()

    assert (before.status, answer.status) == (204, 401)
    for message in (before, answer):
        assert [name for name, _ in message.fields if name.lower().startswith("access-control-")] == []
    assert upstream.is_untouched


async def test_cors_every_origin(start: Callable[..., Any], upstream: Upstream) -> None:
    """`*` grants to all alike, and then no answer depends on the origin."""
    proxy = await start('cors: {origins: ["*"]}\n')
    client = await proxy.client()
    client.write(request(body=BODY, fields=(("Origin", "https://anybody.example"),)))

    answer = await client.read_message()

    assert answer.get("access-control-allow-origin") == "*"
    assert answer.get("vary") is None


async def test_cors_credentials(start: Callable[..., Any]) -> None:
    """Credentials are allowed to listed origins only, and only where the operator says so."""
    proxy = await start(f'cors: {{origins: ["{APP}"], credentials: true}}\n')
    client = await proxy.client()
    for data in (preflight(), request(body=BODY, fields=(("Origin", APP),))):
        client.write(data)
        answer = await client.read_message()
        assert answer.get("access-control-allow-credentials") == "true"
        assert answer.get("access-control-allow-origin") == APP


async def test_cors_two_origins(crossing: Running) -> None:
    """Two origins are as good as none."""
    client = await crossing.client()
    client.write(request(body=BODY, fields=(("Origin", APP), ("Origin", "https://evil.example"))))

    answer = await client.read_message()

    assert answer.get("access-control-allow-origin") is None


@pytest.mark.parametrize("fields", [(("Origin", APP),), (("Access-Control-Request-Method", "POST"),), ()])
async def test_cors_other_options_need_a_token(
    crossing: Running, upstream: Upstream, fields: tuple[tuple[str, str], ...]
) -> None:
    """An OPTIONS that is no preflight is a request like all."""
    client = await crossing.client()
    client.write(request("/main/v1/models", method="OPTIONS", fields=fields))

    assert (await client.read_message()).status in {401, 405}
    assert upstream.is_untouched


@pytest.mark.parametrize(
    "names",
    ["*", "x-evil", "authorization\tx", "authorization, " * 2000, "a" * 5000, "authorization;x-evil, ,,"],
)
async def test_cors_requested_names_are_not_reflected(crossing: Running, names: str) -> None:
    """Only names that are known are granted, whatever is asked."""
    client = await crossing.client()
    client.write(preflight("/forward-sse", ("Access-Control-Request-Headers", names)))

    answer = await client.read_message()

    granted = answer.get("access-control-allow-headers")
    assert granted in {None, "authorization"}


async def test_cors_private_network_is_not_granted(crossing: Running) -> None:
    """A page of the internet gets no leave to reach into a private network."""
    client = await crossing.client()
    client.write(preflight("/forward-sse", ("Access-Control-Request-Private-Network", "true")))

    answer = await client.read_message()

    assert answer.get("access-control-allow-private-network") is None


async def test_cors_preflight_is_logged_as_complete(crossing: Running) -> None:
    """A preflight is an exchange that nobody is charged for."""
    client = await crossing.client()
    client.write(preflight())
    await client.read_message()

    line = only(await crossing.settled(), "exchange.settled")
    assert (line["ending"], line["status"], line["user"]) == ("complete", 204, None)
    assert crossing.leases_held == 0


async def test_cors_health_can_be_read(crossing: Running) -> None:
    """A page may ask whether the proxy is there."""
    client = await crossing.client()
    client.write(request("/healthz", method="GET", fields=(("Origin", APP),)))

    assert (await client.read_message()).get("access-control-allow-origin") == APP


async def test_cors_own_names(start: Callable[..., Any], upstream: Upstream) -> None:
    """What the operator names may be sent by a page, reaches the vendor, and of the answer may be read."""
    proxy = await start(f'cors: {{origins: ["{APP}"], headers: [X-App], expose: [X-Trace]}}\n')
    client = await proxy.client()
    client.write(preflight("/forward-sse", ("Access-Control-Request-Headers", "authorization,x-app,x-evil")))
    assert (await client.read_message()).get("access-control-allow-headers") == "authorization, x-app"

    client.write(request(body=BODY, token=token(), fields=(("Origin", APP), ("X-App", "one"))))
    vendor, received = await upstream.take()
    vendor.write(b"HTTP/1.1 200 OK\r\nX-Trace: two\r\nContent-Length: 0\r\n\r\n")
    answer = await client.read_message()

    assert received.get("x-app") == "one"
    assert answer.get("x-trace") == "two"
    check_grant(answer)
    assert "x-trace" in (answer.get("access-control-expose-headers") or "").split(", ")


async def test_cors_any_name(start: Callable[..., Any]) -> None:
    """With `*` a page may send whatever its preflight asks for."""
    proxy = await start(f'cors: {{origins: ["{APP}"], headers: ["*"]}}\n')
    client = await proxy.client()
    client.write(preflight("/forward-sse", ("Access-Control-Request-Headers", "x-one,x-two")))
    assert (await client.read_message()).get("access-control-allow-headers") == "x-one, x-two"


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/forward-sse", "POST"),
        ("/forward-sse/tickets", "POST"),
        ("/forward-sse/tickets/", "POST"),
        ("/forward-sse/streams/some-id", "DELETE"),
        ("/playground/upstreams", "GET"),
        ("/healthz", "GET"),
        ("/v1/models", "GET"),
        ("/main/v1/chat/completions", "POST"),
        ("/nowhere/at/all", "PUT"),
    ],
)
async def test_cors_preflight_at_every_route(crossing: Running, path: str, method: str) -> None:
    """A page may ask for every route that there is, and for those that there are not: it is told by the answer."""
    client = await crossing.client()
    fields = (("Origin", APP), ("Access-Control-Request-Method", method))
    client.write(request(path, method="OPTIONS", fields=fields))

    answer = await client.read_message()

    assert answer.status == 204
    assert answer.get("access-control-allow-origin") == APP
    assert method in (answer.get("access-control-allow-methods") or "")
