"""The doctor on a proxy without hops: TLS, token, limits, upstream, CORS; and as an operator runs it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.doctor.scenes import url_of, verdicts, wrong
from tests.conftest import token
from tests.whole.test_tls import Authority, make_authority

if TYPE_CHECKING:
    from tests.conftest import Running
    from tests.peers import Upstream


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("doctor"))


def tls(certificate: object) -> str:
    return f"tls: {{certificate: {certificate}, key: {certificate}}}\n"


async def test_tls(start: Any, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is checked over TLS, too; a certificate of few days is a warning."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    proxy = await start(tls(authority.good))
    found = await verdicts(url_of(proxy, "https"))

    assert wrong(found) == {}, found
    assert "days" in found["tls"].says
    assert "HTTP/1.1 only" in found["http"].says


@pytest.mark.parametrize("certificate", ["good", "elsewhere", "expired"])
async def test_tls_untrusted(
    start: Any, authority: Authority, monkeypatch: pytest.MonkeyPatch, certificate: str
) -> None:
    """Nothing is sent over a connection that is not trusted; an expired certificate is told from an unknown one."""
    if certificate != "good":
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    proxy = await start(tls(getattr(authority, certificate)))
    found = await verdicts(url_of(proxy, "https"))

    assert {check: one.verdict for check, one in found.items()} == {"name": "ok", "tls": "fail"}
    assert (found["tls"].change or "").startswith("Renew" if certificate == "expired" else "Serve")


async def test_without_a_token(proxy: Running) -> None:
    """What needs no token is checked, and nothing is charged to anybody."""
    found = await verdicts(url_of(proxy), token=None)

    assert wrong(found) == {}, found
    assert list(found) == ["name", "tls", "http", "proxy", "inspection", "clock", "body"]


async def test_no_such_host() -> None:
    """A name that does not exist, and a port where nobody is, end it."""
    found = await verdicts("http://nowhere.invalid")
    assert {check: one.verdict for check, one in found.items()} == {"name": "fail"}
    found = await verdicts("http://127.0.0.1:1")
    assert {check: one.verdict for check, one in found.items()} == {"name": "fail"}


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        pytest.param("x.y.z", "not valid", id="forged"),
        pytest.param(token(exp=int(time.time()) - 600), "expired", id="expired"),
        pytest.param(token(aud="another"), "not valid", id="audience"),
    ],
)
async def test_token_refused(proxy: Running, sent: str, says: str) -> None:
    """A token that is refused is judged, and nothing that needs one is tried."""
    found = await verdicts(url_of(proxy), token=sent)

    assert wrong(found) == {"token": "fail"}
    assert says in found["token"].says


async def test_limited(start: Any) -> None:
    """A user whose rate is used up hears that, and of no hop."""
    proxy = await start("plans: {default: {requests: [1/1h]}}\n")
    found = await verdicts(url_of(proxy))
    assert found["token"].verdict == "ok"
    assert found["stream"].change == "Run it again when the user's limits have room, or with a user of a wider plan."
    assert found["leaving"].change == found["stream"].change
    assert "caching" not in found
    found = await verdicts(url_of(proxy))
    assert wrong(found) == {"token": "fail"}
    assert "rate_limit_exceeded" in found["token"].says


async def test_own_limit_of_bodies(start: Any) -> None:
    """The proxy's own limit is told from a hop's."""
    proxy = await start("max_body: 1MiB\n")
    found = await verdicts(url_of(proxy))

    assert wrong(found) == {"body": "warn"}
    assert "max_body" in (found["body"].change or "")


async def test_cors_of_another_origin(start: Any) -> None:
    """An origin that is not in the file may not."""
    proxy = await start('cors: {origins: ["https://app.example"]}\n')
    found = await verdicts(url_of(proxy), origin="https://other.example", token=None)

    assert wrong(found) == {"cors": "fail"}


@pytest.mark.parametrize(
    ("name", "answer", "verdict", "says"),
    [
        pytest.param("main", b"200 OK", "ok", "accepts the key", id="fine"),
        pytest.param("main", b"401 No", "fail", "refuses the proxy's key", id="key"),
        pytest.param("other", None, "fail", "no such upstream", id="unknown"),
    ],
)
async def test_upstream(
    proxy: Running, upstream: Upstream, name: str, answer: bytes | None, verdict: str, says: str
) -> None:
    """An upstream's vendor is asked for its models through the proxy."""

    async def vendor() -> None:
        while True:
            peer, _ = await upstream.take()
            peer.write(b"HTTP/1.1 %b\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}" % (answer or b"500 Never"))
            peer.close()

    answering = asyncio.create_task(vendor())
    try:
        found = await verdicts(url_of(proxy), upstream=name)
    finally:
        answering.cancel()
        await asyncio.wait([answering])

    assert found["upstream"].verdict == verdict
    assert says in found["upstream"].says


async def run(*arguments: str, **environ: str) -> tuple[int | None, str]:
    """The command, in a process of its own: its exit code, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "doctor", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environ},
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


async def test_command(proxy: Running) -> None:
    """As JSON it is one document, as text a line a verdict; the token may come by the environment, and is not shown."""
    secret = token()
    code, text = await run(url_of(proxy), "--silence", "100ms", "--json", "--token", secret)
    told = json.loads(text)["verdicts"]
    assert code == 0, text
    assert all(set(one) == {"check", "verdict", "says", "change"} for one in told)
    assert "silence" in {one["check"] for one in told}

    code, text = await run(url_of(proxy), "--silence", "off", DOCTOR_TOKEN=secret[:-3])
    assert code == 1
    assert [line[:4].strip() for line in text.splitlines()] == ["ok", "warn", "ok", "ok", "ok", "fail"], text
    assert secret[:-3] not in text
