"""Getting key sets: what may be fetched, and what an answer must be."""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from proxy.auth.fetch_errors import KeyFetchError
from proxy.auth.jwks import JwksSource, checked_url, discovered_url, fetch_jwks, open_session
from tests.auth.auth_support import KeyServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

MAX_BYTES = 1 << 20


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    async with KeyServer() as server:
        yield server


async def fetch(source: JwksSource) -> object:
    async with asyncio.timeout(5), open_session(source) as session:
        return await fetch_jwks(session, source, max_bytes=MAX_BYTES)


@pytest.mark.parametrize(
    "url",
    [
        "https://id.example.com/jwks?x=%2F",
        "https://id.example.com:8443/",
        "http://localhost:8000/jwks",
        "http://127.0.0.1/jwks",
        "http://127.1.2.3:80/",
        "http://[::1]:8000/jwks",
    ],
)
def test_url_allowed(url: str) -> None:
    """Keys come over https from anywhere, over http from this machine."""
    assert checked_url(url).host


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/jwks",
        "id.example.com/jwks",
        "https://",
        "https:///jwks",
        "http://id.example.com/jwks",
        "http://169.254.169.254/latest",
        "http://localhost.example.com/",
        "http://127.0.0.1.example.com/",
        "http://127.0.0.1@example.com/",
        "http://[::ffff:7f00:1%eth0]@x/",
        "https://user:password@id.example.com/",
        "http://0.0.0.0/",
        "ftp://127.0.0.1/jwks",
        "file:///etc/passwd",
        "data:application/json,{}",
        "https://[::1/",
        "https://a:99999/",
    ],
)
def test_url_refused(url: str) -> None:
    """Other schemes, plain http to anywhere else, and credentials in the URL are refused before any connection."""
    with pytest.raises(ValueError, match=r"."):
        checked_url(url)
    with pytest.raises(ValueError, match=r"."):
        JwksSource("issuer", url or "/")


@pytest.mark.parametrize("url", ["http://keycloak:8080/realms/r/certs", "http://10.0.0.1/", "https://id.example.com/"])
def test_url_allowed_by_http(url: str) -> None:
    """Where the operator allows http, keys may come by it from another machine."""
    assert checked_url(url, allow_http=True).host
    assert JwksSource("issuer", url, allow_http=True).start_url()


@pytest.mark.parametrize(
    "url", ["http://user:password@keycloak/", "file:///etc/passwd", "ftp://keycloak/", "http:///x"]
)
def test_url_refused_with_http_allowed(url: str) -> None:
    """Allowing http allows no other scheme, and no credentials in the URL."""
    with pytest.raises(ValueError, match=r"."):
        checked_url(url, allow_http=True)


@pytest.mark.parametrize(
    ("issuer", "jwks_uri", "is_allowed"),
    [
        ("http://keycloak:8080/realms/r", "http://keycloak:8080/certs", True),
        ("http://keycloak:8080/realms/r", "https://keycloak:8443/certs", True),
        ("https://id.example.com", "http://keycloak:8080/certs", False),
        ("https://id.example.com", "http://127.0.0.1/certs", False),
    ],
)
def test_discovery_with_http_allowed(issuer: str, jwks_uri: str, is_allowed: bool) -> None:
    """A document that came by http may lead to http; one that came by https may not, whatever is allowed."""
    source = JwksSource(issuer, allow_http=True)
    document = {"issuer": issuer, "jwks_uri": jwks_uri}
    if is_allowed:
        assert str(discovered_url(document, source)) == jwks_uri
    else:
        with pytest.raises(KeyFetchError, match="not an https URL"):
            discovered_url(document, source)


@pytest.mark.parametrize(
    ("document", "reason", "detail"),
    [
        (
            {"issuer": "http://id.internal/r"},
            "it names another issuer than the file",
            ' (it is of "http://id.internal/r", the file has "https://id.example.com/r")',
        ),
        (
            {"issuer": "https://id.example.com/r/"},
            "it names another issuer than the file, which differs by a trailing slash",
            ' (it is of "https://id.example.com/r/", the file has "https://id.example.com/r")',
        ),
        (
            {"issuer": "\n" + "x" * 5000},
            "it names another issuer than the file",
            f' (it is of "\\n{"x" * 199}\\u2026", the file has "https://id.example.com/r")',
        ),
        ({"issuer": 5}, "it names no issuer", ""),
        ({}, "it names no issuer", ""),
        ([], "it names no issuer", ""),
        ({"issuer": "https://id.example.com/r"}, "it has no jwks_uri", ""),
        (
            {"issuer": "https://id.example.com/r", "jwks_uri": "file:///etc/passwd"},
            "its jwks_uri is not an allowed URL",
            ' ("file:///etc/passwd")',
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_discovery_document_refused_for_a_reason(document: object, reason: str, detail: str) -> None:
    """Which two issuers differ is in the log's words; what anybody may read names no host of the document's."""
    with pytest.raises(KeyFetchError) as caught:
        discovered_url(document, JwksSource("https://id.example.com/r"))
    assert caught.value.reason == f"discovery document: {reason}"
    assert caught.value.in_full == f"discovery document: {reason}{detail}"


def test_discovery_needs_an_issuer_that_is_a_url() -> None:
    """A source that must discover its keys, and whose issuer is no URL, is refused when it is made."""
    with pytest.raises(ValueError, match=r"host|https"):
        JwksSource("dev")


@pytest.mark.parametrize(
    ("jwks_uri", "is_allowed"),
    [("https://keys.example.com/", True), ("http://127.0.0.1/", False), ("http://localhost:8080/", False)],
)
def test_discovery_document_of_a_remote_issuer(jwks_uri: str, is_allowed: bool) -> None:
    """A document that came over https cannot send us to a plain port of our own machine."""
    source = JwksSource("https://id.example.com")
    document = {"issuer": source.issuer, "jwks_uri": jwks_uri}
    if is_allowed:
        assert str(discovered_url(document, source)) == jwks_uri
    else:
        with pytest.raises(KeyFetchError):
            discovered_url(document, source)


async def test_fetch(server: KeyServer) -> None:
    """The document at the URL is decoded, also one that was compressed unasked; nothing else is asked for."""
    server.keys = [{"kid": "a"}]
    assert await fetch(JwksSource("issuer", server.url())) == {"keys": [{"kid": "a"}]}
    server.answer = lambda: web.Response(body=gzip.compress(b'{"keys":[]}'), headers={"Content-Encoding": "gzip"})
    assert await fetch(JwksSource("issuer", server.url())) == {"keys": []}
    assert server.paths == ["/jwks", "/jwks"]


ANSWERS: dict[str, Callable[[], web.StreamResponse]] = {
    "404": lambda: web.Response(status=404),
    "503": lambda: web.Response(status=503, text='{"keys":[]}'),
    "201": lambda: web.Response(status=201, text='{"keys":[]}'),
    "redirect": lambda: web.Response(status=302, headers={"Location": "http://169.254.169.254/latest"}),
    "redirect to itself": lambda: web.Response(status=307, headers={"Location": "/jwks"}),
    "html": lambda: web.Response(text="<html>", content_type="text/html"),
    "empty": web.Response,
    "huge": lambda: web.Response(body=b'{"keys":[]}' + b" " * (2 * MAX_BYTES)),
    "bomb": lambda: web.Response(
        body=gzip.compress(b'{"keys":[]}' + b" " * (50 * MAX_BYTES)), headers={"Content-Encoding": "gzip"}
    ),
    "no gzip": lambda: web.Response(body=b"{}", headers={"Content-Encoding": "gzip"}),
    "nested": lambda: web.Response(body=b"[" * 100_000),
    "latin-1": lambda: web.Response(body=b'{"keys":["\xff"]}'),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_fetch_bad_answer(name: str, server: KeyServer) -> None:
    """Anything but JSON of bounded size with status 200 is a failure, and no redirect is followed."""
    server.answer = ANSWERS[name]
    with pytest.raises(KeyFetchError):
        await fetch(JwksSource("issuer", server.url()))
    assert server.requests == 1


async def test_fetch_refused_connection(server: KeyServer) -> None:
    """A server that is not there is a failure of the fetch."""
    url = server.url()
    await server.__aexit__()
    with pytest.raises(KeyFetchError):
        await fetch(JwksSource("issuer", url))


@pytest.mark.parametrize("path", ["", "/", "/realms/r", "/realms/r/"])
async def test_discovery(path: str, server: KeyServer) -> None:
    """The key set is fetched from where the issuer's discovery document says."""
    issuer = server.url("/").removesuffix("/") + path
    answers = iter([{"issuer": issuer, "jwks_uri": server.url("/keys")}, {"keys": []}])
    server.answer = lambda: web.json_response(next(answers))

    assert await fetch(JwksSource(issuer)) == {"keys": []}

    assert server.paths == [path.removesuffix("/") + "/.well-known/openid-configuration", "/keys"]


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://other.example.com"},
        {"issuer": None},
        {"jwks_uri": None},
        {"jwks_uri": 5},
        {"jwks_uri": "http://169.254.169.254/latest"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "/keys"},
        {"jwks_uri": ""},
    ],
    ids=repr,
)
async def test_discovery_document_refused(change: dict[str, object], server: KeyServer) -> None:
    """A discovery document of another issuer, or one that points where keys may not come from, ends the fetch."""
    issuer = server.url("/")
    document = {"issuer": issuer, "jwks_uri": server.url("/keys"), **change}
    server.answer = lambda: web.json_response(document)
    with pytest.raises(KeyFetchError):
        await fetch(JwksSource(issuer))
    assert server.requests == 1
