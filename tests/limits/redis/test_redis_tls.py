"""What is said of a server that does not want us, by the loop that the proxy runs on."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from redis.exceptions import ConnectionError as RedisConnectionError

from proxy.limits.redis.address import Dialler, RedisAddress
from proxy.limits.redis.channel import Channel
from proxy.limits.redis.errors import StoreError, translated
from proxy.server.run import new_event_loop
from tests.limits.redis_support import TLS, RedisServer
from tests.whole.test_tls import make_authority

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "the server wants a client certificate"),
        ("TLSV1_ALERT_UNKNOWN_CA", "the server does not trust our certificate"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "the server does not trust our certificate"),
        ("CERTIFICATE_VERIFY_FAILED", "the server's certificate is not trusted, or it speaks no TLS"),
        ("WRONG_VERSION_NUMBER", "the server's certificate is not trusted, or it speaks no TLS"),
    ],
)
def test_alerts(name: str, text: str) -> None:
    """An alert of the server's is about our certificate, all else about its own; also behind redis-py's own error."""
    error = ssl.SSLError(1, "words that nobody reads")
    error.reason = name
    assert str(translated(error, "else")) == text
    behind = RedisConnectionError("redis-py's")
    behind.__context__ = error
    assert str(translated(behind, "else")) == text


def test_key_with_a_passphrase(tmp_path: Path) -> None:
    """A key that needs a passphrase is refused as unusable: nobody is asked for it on the terminal."""
    key = ec.generate_private_key(ec.SECP256R1())
    encrypted = BestAvailableEncryption(b"secret")
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encrypted))
    certificate = make_authority(tmp_path).good
    address = RedisAddress(is_tls=True, certificate=str(certificate), key=str(tmp_path / "key.pem"))
    with pytest.raises(OSError, match="its certificate and key cannot be used"):
        Dialler(address)


async def failure(address: RedisAddress) -> str:
    """What is said where the server is dialled and asked."""
    try:
        channel = Channel(await Dialler(address, timeout_s=5.0).dial(), timeout_s=5.0)
        try:
            await channel.ask("PING")
        finally:
            channel.abort("the test has ended")
    except StoreError as exc:
        return str(exc)
    return "it answers"


@pytest.mark.parametrize("password", [None, "a password"], ids=["asks first", "says a password first"])
def test_refused_after_the_handshake(tmp_path: Path, password: str | None) -> None:
    """TLS 1.3 refuses a client after its handshake: that is told each time, whatever was written meanwhile."""
    (tmp_path / "other").mkdir()
    authority, other = make_authority(tmp_path), make_authority(tmp_path / "other")
    server = RedisServer(tls=TLS(authority.certificate, authority.good))
    nameless = replace(server.address, certificate=None, key=None, password=password)
    unknown = replace(server.address, certificate=str(other.good), key=str(other.good), password=password)

    async def said() -> set[tuple[str, str]]:
        await server.start()
        return {(await failure(nameless), await failure(unknown)) for _ in range(10)}

    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            told = runner.run(said())
    finally:
        server.close()
    assert told == {("the server wants a client certificate", "the server does not trust our certificate")}
