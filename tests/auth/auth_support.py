"""Keys, tokens and a scripted key server for the tests of authentication."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
from typing import TYPE_CHECKING, Any, Self, TypeVar

from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm, get_default_algorithms

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine

NOW = 1_700_000_000.0
SECRET = "a secret of the tests, long enough for every HMAC, surely: 64 bytes"

T = TypeVar("T")
_ALGORITHMS = get_default_algorithms()


class Keyring:
    """One private key of each kind; made once a session, because RSA keys take their time."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(65537, 2048)
        self.other_rsa = rsa.generate_private_key(65537, 2048)
        self.p256 = ec.generate_private_key(ec.SECP256R1())
        self.p384 = ec.generate_private_key(ec.SECP384R1())
        self.p521 = ec.generate_private_key(ec.SECP521R1())
        self.k256 = ec.generate_private_key(ec.SECP256K1())
        self.ed = ed25519.Ed25519PrivateKey.generate()


@functools.cache
def keyring() -> Keyring:
    return Keyring()


def pem(private_key: Any) -> bytes:
    data: bytes = private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data


def jwk(private_key: Any, **members: object) -> dict[str, object]:
    """The public JWK of a key, with more members."""
    public_key = private_key.public_key()
    algorithm: Any = {"rsa": RSAAlgorithm, "ec": ECAlgorithm, "ed25519": OKPAlgorithm}[
        next(name for name in ("rsa", "ec", "ed25519") if name in type(private_key).__name__.lower())
    ]
    document: dict[str, object] = {**algorithm.to_jwk(public_key, as_dict=True), **members}
    return {name: value for name, value in document.items() if value is not None}


def segment(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signature(algorithm: str, key: Any, signing_input: str) -> bytes:
    """A signature by any key with any algorithm that its type can do, also where a verifier must refuse the pair."""
    if algorithm.startswith("HS"):
        return _ALGORITHMS[algorithm].sign(signing_input.encode(), key if isinstance(key, bytes) else key.encode())
    return _ALGORITHMS["EdDSA" if algorithm == "Ed25519" else algorithm].sign(signing_input.encode(), key)


def token(claims: object, key: Any, algorithm: str, *, header: object = None, **parameters: object) -> str:
    """A signed token; `header` replaces the usual one, `parameters` add to it. Bytes go in as they are."""
    usual = {"typ": "JWT", "alg": algorithm, **parameters}
    signing_input = f"{segment(usual if header is None else header)}.{segment(claims)}"
    return f"{signing_input}.{segment(signature(algorithm, key, signing_input))}"


def claims(issuer: str, **members: object) -> dict[str, object]:
    """Good claims, with others in their place; `...` takes a member away."""
    good = {"iss": issuer, "aud": "llm", "sub": "alice", "exp": NOW + 600, "iat": NOW - 1}
    return {name: value for name, value in {**good, **members}.items() if value is not ...}


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that must not wait for anything."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    coroutine.close()
    raise AssertionError("the coroutine waited")


class Clock:
    """A clock that moves when told to."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Handle:
    """A scheduled call that can be cancelled."""

    is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Timers:
    """Collects what was scheduled; a test decides when it is due."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self._pending: list[tuple[Handle, Callable[[], object]]] = []

    def __call__(self, delay_s: float, callback: Callable[[], object]) -> Handle:
        handle = Handle()
        self.delays.append(delay_s)
        self._pending.append((handle, callback))
        return handle

    @property
    def pending(self) -> int:
        return sum(not handle.is_cancelled for handle, _ in self._pending)

    def fire(self) -> None:
        """Call what is due and was not cancelled."""
        due, self._pending = self._pending, []
        for handle, callback in due:
            if not handle.is_cancelled:
                callback()


class KeyServer:
    """An issuer's key server on a real socket; `answer` is what it does next, `paths` what it was asked."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.keys: list[dict[str, object]] = []
        self.answer: Callable[[], web.StreamResponse] = self.key_set
        self.paths: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        application = web.Application()
        application.router.add_get("/{path:.*}", self._handle)
        self._server = TestServer(application, host="127.0.0.1")
        self._tls = tls

    async def __aenter__(self) -> Self:
        await self._server.start_server(ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.gate.set()
        await self._server.close()

    @property
    def requests(self) -> int:
        return len(self.paths)

    def url(self, path: str = "/jwks") -> str:
        return str(self._server.make_url(path))

    def key_set(self) -> web.StreamResponse:
        return web.json_response({"keys": self.keys})

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        self.asked.set()
        await self.gate.wait()
        return self.answer()
