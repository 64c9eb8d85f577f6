"""The playground over HTTP: its page, its fields, and what it tells to whom."""

from __future__ import annotations

import asyncio
import hashlib
import re
import zipfile
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hatchling.builders.wheel import WheelBuilder

from proxy.model import TYPED_NAMES
from proxy.settings.loading import load
from tests.conftest import CONFIG, SECRET, VENDOR_KEY, token
from tests.peers import LAST, STREAM_HEAD, Message, Upstream, only, request
from tests.whole.scenes import begin, check_settled

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running

ROOT = Path(__file__).resolve().parents[2]
ON = "playground: true\n"
MORE = """
playground: true
plans:
  default: {requests: [60/10s]}
  narrow: {requests: [60/10s], upstreams: [upstairs]}
"""
SECOND = """
  upstairs:
    url: http://127.0.0.1:9/hidden-base
    dialect: anthropic
    api_key: client
    models: ["claude-*", claude-exact]
    headers: {X-Canary: header-canary-51ab}
default_upstream: main
"""
TWO = CONFIG.replace("default_upstream: main\n", SECOND.replace("{X-", "{{X-").replace("51ab}", "51ab}}"))


@pytest.fixture
async def playing(start: Callable[..., Any]) -> Running:
    """A proxy with a playground, two upstreams, and a plan that knows one of them."""
    return await start(MORE, config=TWO)  # type: ignore[no-any-return]  # the factory's options are open


async def ask(
    proxy: Running, path: str = "/playground", *, method: str = "GET", token: str | None = None, **fields: str
) -> Message:
    """One answer on a connection of its own; `if_none_match` is `If-None-Match`."""
    client = await proxy.client()
    named = tuple((name.replace("_", "-"), value) for name, value in fields.items())
    client.write(request(path, method=method, token=token, fields=named))
    return await client.read_message(has_body=method != "HEAD")


def directives(page: Message) -> dict[str, list[str]]:
    """The page's policy by directive."""
    policy = page.get("content-security-policy")
    assert policy is not None
    return {name: values for name, *values in (directive.split() for directive in policy.split("; "))}


async def test_playground_page(playing: Running) -> None:
    """Anybody gets the page: one document, nothing sniffed, framed or referred to."""
    for path in ("/playground", "/playground/", "/playground?x=1"):
        page = await ask(playing, path)
        assert (page.status, page.get("content-type")) == (200, "text/html; charset=utf-8")
        assert page.body.startswith(b"<!doctype html>")
        assert page.get("x-content-type-options") == "nosniff"
        assert page.get("referrer-policy") == "no-referrer"
        assert page.get("cache-control") == "no-cache"
        assert page.get("set-cookie") is None


async def test_playground_policy(playing: Running) -> None:
    """Nothing runs but the document's own scripts, each by its digest; nothing comes from elsewhere but pictures."""
    page = await ask(playing)
    policy = directives(page)

    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
    assert policy["frame-ancestors"] == ["'none'"]
    assert policy["connect-src"] == ["'self'"]
    assert policy["img-src"] == ["data:", "https:"]
    for kind, directive in ((b"script", "script-src"), (b"style", "style-src")):
        inline = re.findall(rb"<%b>(.*?)</%b>" % (kind, kind), page.body, re.DOTALL)
        assert inline
        assert policy[directive] == [f"'sha256-{b64encode(hashlib.sha256(text).digest()).decode()}'" for text in inline]
    assert b"innerHTML" not in page.body
    assert not re.search(rb"""<[a-z]+[^>]*\s(?:on[a-z]+|style)=""", page.body)
    # No asset has an address; the icon and the skip link stand inside.
    assert set(re.findall(rb"""(?:src|href)=["'](.)""", page.body)) == {b"d", b"#"}


async def test_playground_head_and_validator(playing: Running) -> None:
    """HEAD says what GET would; who has the page already is told so, and gets it anew only when it has changed."""
    page = await ask(playing)
    head = await ask(playing, method="HEAD")
    tag = page.get("etag")
    assert tag is not None
    assert {name: value for name, value in head.fields if name != "Date"} == {
        name: value for name, value in page.fields if name != "Date"
    }

    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        same = await ask(playing, if_none_match=known)
        assert (same.status, same.get("etag"), same.get("content-length")) == (304, tag, None)
        assert same.get("content-security-policy") == page.get("content-security-policy")
    assert (await ask(playing, if_none_match='"other"')).status == 200


async def test_playground_page_keeps_its_connection(playing: Running) -> None:
    """Page, validation and list come over one connection."""
    client = await playing.client()
    client.write(request("/playground", method="GET"))
    tag = (await client.read_message()).get("etag") or ""
    client.write(request("/playground", method="GET", fields=(("If-None-Match", tag),)))
    assert (await client.read_message()).status == 304
    client.write(request("/playground/upstreams", method="GET", token=token()))
    assert (await client.read_message()).status == 200


async def test_playground_page_tells_nothing(playing: Running) -> None:
    """The page is the same for everybody, and nothing of the configuration is in it."""
    stranger = await ask(playing)
    user = await ask(playing, token=token())

    assert stranger.body == user.body
    for hidden in (SECRET, VENDOR_KEY, "hidden-base", "claude-exact", "upstairs", "narrow", "header-canary"):
        assert hidden.encode() not in stranger.body


async def test_playground_page_is_no_exchange(playing: Running, upstream: Upstream) -> None:
    """The page charges nobody and leaves no line; nothing is forwarded."""
    await ask(playing)
    await ask(playing, method="HEAD", token=token())
    answer = await ask(playing, "/playground/upstreams", token=token())

    assert answer.get("x-ratelimit-remaining-requests") == "60"
    assert upstream.is_untouched
    (line,) = await playing.settled()
    assert (line["path"], line["ending"], line["user"]) == ("/playground/upstreams", "complete", "alice")


@pytest.mark.parametrize("path", ["/playground", "/playground/", "/playground/upstreams"])
async def test_playground_off(proxy: Running, path: str) -> None:
    """Unless it is asked for there is no playground, for nobody."""
    for method in ("GET", "HEAD", "POST"):
        for who in (None, token()):
            answer = await ask(proxy, path, method=method, token=who)
            assert (answer.status, answer.get("x-forward-sse-code")) == (404, "not_found")


@pytest.mark.parametrize("path", ["/playground", "/playground/", "/playground/upstreams"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_playground_other_methods(playing: Running, path: str, method: str) -> None:
    """It is only read."""
    answer = await ask(playing, path, method=method)

    assert (answer.status, answer.get("x-forward-sse-code")) == (405, "method_not_allowed")
    assert answer.get("allow") == "GET, HEAD"
    await check_settled(playing, "refused", status=405, code="method_not_allowed")


async def test_playground_malformed_head(playing: Running) -> None:
    """A head that is refused everywhere is refused here."""
    answer = await ask(playing, Host="another.test")

    assert (answer.status, answer.get("x-forward-sse-code")) == (400, "invalid_request")
    await check_settled(playing, "refused", status=400)


async def test_playground_upstreams(playing: Running) -> None:
    """A user is told names, dialects, paths, models and typed events' names, and nothing of where upstreams are."""
    answer = await ask(playing, "/playground/upstreams", token=token())

    assert (answer.status, answer.get("content-type")) == (200, "application/json")
    assert answer.get("cache-control") == "no-store"
    assert answer.json == {
        "user": "alice",
        "plan": "default",
        "default": "main",
        "upstreams": [
            {
                "name": "main",
                "dialect": "openai",
                "path": "/v1/chat/completions",
                "models": ["gpt-*"],
                "needs_key": False,
                "typed_names": dict(TYPED_NAMES),
            },
            {
                "name": "upstairs",
                "dialect": "anthropic",
                "path": "/v1/messages",
                "models": ["claude-*", "claude-exact"],
                "needs_key": True,
                "typed_names": dict(TYPED_NAMES),
            },
        ],
    }


async def test_playground_upstreams_of_a_plan(playing: Running) -> None:
    """What a plan does not include its users are not told of, nor that it is the default."""
    answer = await ask(playing, "/playground/upstreams", token=token(plan="narrow"))

    assert [upstream["name"] for upstream in answer.json["upstreams"]] == ["upstairs"]
    assert (answer.json["plan"], answer.json["default"]) == ("narrow", None)


async def test_playground_upstreams_of_strangers(playing: Running) -> None:
    """Without a good token nothing is told."""
    for given, code in ((None, "missing_token"), (token(exp=1), "expired_token"), ("x.y.z", "invalid_token")):
        answer = await ask(playing, "/playground/upstreams", token=given)
        assert (answer.status, answer.get("x-forward-sse-code")) == (401, code)
        assert (answer.get("www-authenticate") or "").startswith("Bearer")
        assert b"main" not in answer.body


async def test_playground_without_authentication(start: Callable[..., Any]) -> None:
    """Where everybody may come in, the page knows not to ask for a token, and the list is open."""
    config = re.sub(r"auth:\n.*\n.*\n", "auth: none\n", CONFIG)
    proxy = await start(ON, config=config)

    assert b'data-auth="none"' in (await ask(proxy)).body
    answer = await ask(proxy, "/playground/upstreams")
    assert [upstream["name"] for upstream in answer.json["upstreams"]] == ["main"]


async def test_playground_by_reload(proxy: Running, tmp_path: Path) -> None:
    """A reload turns it on and off."""
    path = tmp_path / "proxy.yaml"
    text = path.read_text()
    path.write_text(text + ON)
    await proxy.server.reload(load(path, {}))
    assert (await ask(proxy)).status == 200
    path.write_text(text)
    await proxy.server.reload(load(path, {}))
    assert (await ask(proxy)).status == 404


async def test_playground_while_draining(playing: Running, upstream: Upstream) -> None:
    """The page is served as health is; the list is refused as every request."""
    client = await playing.client()
    client.write(request("/playground", method="GET"))
    assert (await client.read_message()).status == 200
    streaming, vendor, _ = await begin(playing, upstream)
    draining = asyncio.create_task(playing.server.drain(timeout_s=30))
    await asyncio.sleep(0)  # one step: the drain has begun when it first waits

    client.write(request("/playground", method="GET"))
    page = await client.read_message()
    client.write(request("/playground/upstreams", method="GET", token=token()))
    refusal = await client.read_message()
    vendor.write(LAST)
    await streaming.read_until(LAST)
    await draining

    assert page.status == 200
    assert (refusal.status, refusal.get("x-forward-sse-code")) == (503, "draining")


async def test_playground_leaves_upstreams_their_paths(start: Callable[..., Any], upstream: Upstream) -> None:
    """An upstream whose name only begins like it is reached."""
    proxy = await start(ON, config=CONFIG.replace("main", "playground-main"))
    client = await proxy.client()
    client.write(request("/playground-main/v1/chat/completions", {"model": "gpt-x"}, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + LAST)

    assert (await client.read_message()).status == 200
    assert only(await proxy.settled(), "exchange.settled")["upstream"] == "playground-main"


def test_playground_is_in_the_wheel(tmp_path: Path) -> None:
    """What is installed has every file of the page."""
    built = next(iter(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    with zipfile.ZipFile(built) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("proxy/playground/static/")}

    folder = ROOT / "proxy/playground/static"
    assert packed == {f"proxy/playground/static/{path.name}" for path in folder.iterdir()}
    assert {Path(name).suffix for name in packed} == {".html", ".css", ".js"}
