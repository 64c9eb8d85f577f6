"""Who is let in: every place of a credential, every way of being wrong, and issuers whose keys are far away."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from proxy.settings.loading import ConfigurationError
from tests.auth.certificates import CertificateAuthority
from tests.conftest import CONFIG, SECRET, VENDOR_KEY, token
from tests.peers import Message, Upstream, only, request, secret_free

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.conftest import Running

API_KEY = "fsk_an-api-key-of-the-tests-0123456789"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
BODY = {"model": "gpt-x"}
AUTH = f"""
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:0
auth:
  jwt:
    - {{{{issuer: tests, audience: [llm, other], algorithms: [HS256], secret: "{{secret}}"}}}}
    - {{{{issuer: scoped, audience: llm, algorithms: [HS256], secret: "{{secret}}",
       required_scopes: [llm.stream, llm.read]}}}}
    - {{{{issuer: named, audience: llm, algorithms: [HS256], secret: "{{secret}}",
       user_claim: email, plan_claim: tier}}}}
    - {{{{issuer: numbered, audience: web, audience_claim: client_id, algorithms: [HS256], secret: "{{secret}}",
       user_claim: user_id, plan_claim: realm_access.roles}}}}
  api_keys:
    - {{{{user: ci, sha256: "{hashlib.sha256(API_KEY.encode()).hexdigest()}", plan: pro}}}}
  QUERY
plans:
  default: {{{{requests: [100/1s]}}}}
  pro: {{{{requests: [200/1s]}}}}
upstreams:
  main: {{{{url: "{{url}}", dialect: openai, api_key: {{key}}}}}}
  gemini: {{{{url: "{{url}}", dialect: gemini, api_key: {{key}}}}}}
default_upstream: main
"""


@pytest.fixture
async def guarded(start: Callable[..., Any]) -> Running:
    """A proxy with issuers of several kinds and an API key."""
    return await start(config=AUTH.replace("QUERY", "envelope_passcode: false"))  # type: ignore[no-any-return]  # the factory's options are open


async def passes(proxy: Running, upstream: Upstream, data: bytes) -> Message:
    """What the upstream got of a request that was let in."""
    client = await proxy.client()
    client.write(data)
    vendor, received = await upstream.take()
    vendor.write(OK)
    assert (await client.read_message()).status == 200
    await vendor.gone()
    return received


async def refused(proxy: Running, upstream: Upstream, data: bytes) -> Message:
    """The refusal of one that was not."""
    client = await proxy.client()
    client.write(data)
    answer = await client.read_message()
    assert upstream.is_untouched
    return answer


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/forward-sse", "Authorization", "Bearer {}"),
        ("/forward-sse", "authorization", "bearer {}"),
        ("/forward-sse", "AUTHORIZATION", "BEARER {}"),
        ("/forward-sse", "Authorization", "Bearer   {}"),
        ("/forward-sse", "x-api-key", "{}"),
        ("/forward-sse", "X-API-Key", "{}"),
        ("/forward-sse", "api-key", "{}"),
        ("/forward-sse", "x-goog-api-key", "{}"),
        ("/gemini/v1/models", "x-goog-api-key", "{}"),
    ],
)
@pytest.mark.parametrize("kind", ["token", "key"])
async def test_auth_every_place(
    guarded: Running, upstream: Upstream, path: str, field: str, value: str, kind: str
) -> None:
    """A token or an API key is found wherever a vendor's client puts its key, and goes no further."""
    credential = token() if kind == "token" else API_KEY
    received = await passes(guarded, upstream, request(path, BODY, fields=((field, value.format(credential)),)))

    assert secret_free(repr(received).encode(), credential)
    assert secret_free(guarded.log_bytes(), credential, VENDOR_KEY)
    line = only(await guarded.settled(), "exchange.settled")
    assert (line["user"], line["plan"]) == (("alice", "default") if kind == "token" else ("ci", "pro"))


async def test_auth_key_of_a_gemini_query(guarded: Running, upstream: Upstream) -> None:
    """`?key=` carries a credential to a gemini upstream, alone, and is taken off whatever else is asked."""
    path = "/gemini/v1beta/models/m:streamGenerateContent?alt=sse&key={}&x=1"
    received = await passes(guarded, upstream, request(path.format(token()), BODY))

    assert received.start.split(" ")[1] == "/v1beta/models/m:streamGenerateContent?alt=sse&x=1"
    assert received.get("x-goog-api-key") == VENDOR_KEY
    assert secret_free(guarded.log_bytes(), token())

    client = await guarded.client()
    client.write(request(f"/main/v1/models?key={token()}", method="GET"))
    assert (await client.read_message()).get("x-forward-sse-code") == "missing_token"


async def test_auth_the_same_credential_in_two_places(guarded: Running, upstream: Upstream) -> None:
    """A client that says the same twice is let in, and both are taken off."""
    good = token()
    received = await passes(guarded, upstream, request(body=BODY, token=good, fields=(("x-api-key", good),)))

    assert secret_free(repr(received).encode(), good)


@pytest.mark.parametrize(
    "fields",
    [
        (("Authorization", "Bearer {0}"), ("x-api-key", "{1}")),
        (("x-api-key", "{0}"), ("api-key", "{1}")),
        (("Authorization", "Bearer {0}"), ("x-goog-api-key", "wrong")),
        (("x-api-key", "{0}"), ("x-api-key", "{1}")),
        (("Authorization", "Bearer {0}"), ("Authorization", "Bearer {1}")),
        (("Authorization", "Bearer {0}"), ("Authorization", "Bearer {0}")),
        (("Authorization", "Bearer {0}"), ("authorization", "Basic x")),
    ],
)
async def test_auth_ambiguous(guarded: Running, upstream: Upstream, fields: tuple[tuple[str, str], ...]) -> None:
    """Two different credentials, or two Authorization fields even if equal, are refused: neither is chosen."""
    pair = (token(), token("bob"))
    answer = await refused(
        guarded, upstream, request(body=BODY, fields=tuple((name, value.format(*pair)) for name, value in fields))
    )

    assert (answer.status, answer.get("x-forward-sse-code")) == (400, "invalid_request")
    line = only(await guarded.settled(), "exchange.settled")
    assert line["user"] is None


@pytest.mark.parametrize("name", ["access_token", "access%5Ftoken", "%61ccess_token"])
@pytest.mark.parametrize("credential", [None, "same"])
async def test_auth_query_token_by_default(
    guarded: Running, upstream: Upstream, name: str, credential: str | None
) -> None:
    """A token in the query is refused: it would stand in other people's logs."""
    answer = await refused(
        guarded, upstream, request(f"/forward-sse?{name}={token()}", BODY, token=credential and token())
    )

    assert (answer.status, answer.get("x-forward-sse-code")) == (400, "invalid_request")
    assert secret_free(guarded.log_bytes(), token())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/forward-sse?access_token={}", "/v1/chat/completions"),
        ("/main/v1/models?a=b&access_token={}&&c", "/v1/models?a=b&&c"),
        ("/main/v1/models?access%5Ftoken={}&a", "/v1/models?a"),
        ("/gemini/v1/models?access_token={}", "/v1/models"),
    ],
)
async def test_auth_query_token_allowed(
    start: Callable[..., Any], upstream: Upstream, path: str, expected: str
) -> None:
    """Where the operator allows it, a token in the query lets its user in and is never forwarded."""
    proxy = await start(config=AUTH.replace("QUERY", "query_token: true"))
    received = await passes(proxy, upstream, request(path.format(token()), BODY))

    assert received.start.split(" ")[1] == expected
    assert secret_free(proxy.log_bytes(), token())


@pytest.mark.parametrize("path", ["/forward-sse?access_token={0}&access_token={0}", "/forward-sse?access_token={1}"])
async def test_auth_query_token_ambiguous(start: Callable[..., Any], upstream: Upstream, path: str) -> None:
    """Twice, or another than in the field, is refused."""
    proxy = await start(config=AUTH.replace("QUERY", "query_token: true"))
    data = request(path.format(token(), token("bob")), BODY, token=None if "{0}" in path else token())
    answer = await refused(proxy, upstream, data)

    assert (answer.status, answer.get("x-forward-sse-code")) == (400, "invalid_request")


def null_claims(*names: str) -> str:
    """A token with these claims `null`; `token` would leave them out."""
    now_s = int(time.time())
    claims: dict[str, Any] = {"iss": "tests", "aud": "llm", "sub": "alice", "iat": now_s, "exp": now_s + 600}
    header, payload = ({"alg": "HS256"}, claims | dict.fromkeys(names))
    return jwt.api_jws.encode(json.dumps(payload).encode(), SECRET, algorithm="HS256", headers=header)


def unsigned() -> str:
    return jwt.encode({"iss": "tests", "aud": "llm", "sub": "alice", "exp": 2**31}, "", algorithm="none")


WRONG: dict[str, Callable[[], str]] = {
    "not a token": lambda: "sk-proj-0123456789",
    "three dots": lambda: "a.b.c",
    "audience": lambda: token(aud="else"),
    "audience in another case": lambda: token(aud="LLM"),
    "no audience": lambda: token(aud=None),
    "issuer": lambda: token(iss="nobody"),
    "issuer with a slash": lambda: token(iss="tests/"),
    "no issuer": lambda: token(iss=None),
    "no expiry": lambda: token(exp=None),
    "expiry as text": lambda: token(exp="2100"),
    "no user": lambda: token(sub=None),
    "null expiry": lambda: null_claims("exp"),
    "plan as number": lambda: token(plan=5),
    "plan as object": lambda: token(plan={"name": "pro"}),
    "list of plans with a number": lambda: token(plan=["pro", 5]),
    "audience in a claim that is not judged": lambda: token(iss="numbered", aud="web", user_id=42),
    "other client": lambda: token(iss="numbered", client_id="other", aud="web", user_id=42),
    "user as boolean": lambda: token(iss="numbered", client_id="web", user_id=True),
    "user as fraction": lambda: token(iss="numbered", client_id="web", user_id=4.5),
    "empty user": lambda: token(""),
    "user as number": lambda: token(7),  # type: ignore[arg-type]  # the wrong type is the case
    "not yet": lambda: token(nbf=int(time.time()) + 600),
    "issued in the future": lambda: token(iat=int(time.time()) + 600),
    "signature": lambda: token()[:-4] + "AAAA",
    "no signature": lambda: token().rpartition(".")[0] + ".",
    "other secret": lambda: jwt.encode(
        {"iss": "tests", "aud": "llm", "sub": "alice", "exp": int(time.time()) + 60}, "x" * 40, algorithm="HS256"
    ),
    "other algorithm": lambda: jwt.encode(
        {"iss": "tests", "aud": "llm", "sub": "alice", "exp": int(time.time()) + 60}, SECRET * 2, algorithm="HS512"
    ),
    "none": unsigned,
    "other api key": lambda: API_KEY + "1",
    "digest of an api key": lambda: hashlib.sha256(API_KEY.encode()).hexdigest(),
}


@pytest.mark.parametrize("case", WRONG)
async def test_auth_invalid_token(guarded: Running, upstream: Upstream, case: str) -> None:
    """Whatever is wrong with a credential, the answer is the same, with a challenge, and repeats nothing of it."""
    credential = WRONG[case]()
    answer = await refused(guarded, upstream, request(body=BODY, token=credential))

    assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_token")
    challenge = answer.get("www-authenticate")
    assert challenge is not None
    assert challenge.startswith('Bearer realm="forward-sse", error="invalid_token"')
    assert answer.get("ratelimit") is None
    assert secret_free(guarded.log_bytes() + repr(answer).encode(), credential)


@pytest.mark.parametrize(
    "value", ["Bearer", "Bearer ", "Bearer  a  b", "Bearer a b", "Bearer a,b", "Bearer\ta", "Bearer \ta", "bearer é"]
)
async def test_auth_unusable_bearer(guarded: Running, upstream: Upstream, value: str) -> None:
    """A Bearer that holds no token is a bad one, not a missing one, and never an error of ours."""
    answer = await refused(guarded, upstream, request(body=BODY, fields=(("Authorization", value),)))

    assert (answer.status, answer.get("x-forward-sse-code")) == (401, "invalid_token")


@pytest.mark.parametrize("fields", [(), (("Authorization", "Basic YTpi"),), (("x-api-key", ""),)])
async def test_auth_missing_token(guarded: Running, upstream: Upstream, fields: tuple[tuple[str, str], ...]) -> None:
    """Who brings nothing gets a challenge without an error in it (RFC 6750 §3.1)."""
    answer = await refused(guarded, upstream, request(body=BODY, fields=fields))

    assert (answer.status, answer.get("x-forward-sse-code")) == (401, "missing_token")
    assert answer.get("www-authenticate") == 'Bearer realm="forward-sse"'


@pytest.mark.parametrize("ago_s", [31, 3600])
async def test_auth_expired_token(guarded: Running, upstream: Upstream, ago_s: int) -> None:
    """A token that was good once says so; its challenge is that of any bad one."""
    now_s = int(time.time())
    answer = await refused(guarded, upstream, request(body=BODY, token=token(iat=now_s - 9999, exp=now_s - ago_s)))

    assert (answer.status, answer.get("x-forward-sse-code")) == (401, "expired_token")
    assert 'error="invalid_token"' in (answer.get("www-authenticate") or "")


async def test_auth_leeway(guarded: Running, upstream: Upstream) -> None:
    """Clocks that differ by less than the leeway are forgiven."""
    now_s = int(time.time())
    await passes(guarded, upstream, request(body=BODY, token=token(iat=now_s + 20, exp=now_s - 15)))


@pytest.mark.parametrize(
    "scope", [None, "", "llm.stream", "llm.stream llm.reader", ["llm.read"], "LLM.STREAM LLM.READ"]
)
async def test_auth_insufficient_scope(guarded: Running, upstream: Upstream, scope: object) -> None:
    """All required scopes have to be there."""
    answer = await refused(guarded, upstream, request(body=BODY, token=token(iss="scoped", scope=scope)))

    assert (answer.status, answer.get("x-forward-sse-code")) == (403, "insufficient_scope")
    assert 'error="insufficient_scope"' in (answer.get("www-authenticate") or "")


@pytest.mark.parametrize("scope", ["llm.read x llm.stream", ["llm.stream", "llm.read"]])
async def test_auth_sufficient_scope(guarded: Running, upstream: Upstream, scope: object) -> None:
    """As text or as a list, in any order, with others."""
    await passes(guarded, upstream, request(body=BODY, token=token(iss="scoped", scope=scope)))


async def test_auth_claims_by_other_names(guarded: Running, upstream: Upstream) -> None:
    """An issuer's user and plan stand in the claims that its entry names; an unknown plan is the default one."""
    await passes(guarded, upstream, request(body=BODY, token=token(iss="named", email="a@b.c", tier="pro")))
    await passes(guarded, upstream, request(body=BODY, token=token(iss="named", email="a@b.c", tier="made-up")))

    lines = [line for line in await guarded.settled(2) if line["event"] == "exchange.settled"]
    assert [(line["user"], line["plan"], line["issuer"]) for line in lines] == [
        ("a@b.c", "pro", "named"),
        ("a@b.c", "default", "named"),
    ]


@pytest.mark.parametrize(
    ("credential", "user", "plan"),
    [
        pytest.param(lambda: null_claims("plan", "iat", "nbf"), "alice", "default", id="null-plan-iat-nbf"),
        pytest.param(lambda: token(plan=["unknown", "pro", "default"]), "alice", "pro", id="list-first-known-plan"),
        pytest.param(lambda: token(plan=["unknown"]), "alice", "default", id="list-no-known-plan"),
        pytest.param(lambda: token(plan="unknown"), "alice", "default", id="unknown-plan"),
        pytest.param(
            lambda: token(iss="numbered", aud=None, client_id="web", user_id=42, realm_access={"roles": ["x", "pro"]}),
            "42",
            "pro",
            id="client-id-number-and-roles",
        ),
        pytest.param(
            lambda: token(iss="numbered", aud=["else"], client_id=["web"], user_id="u"), "u", "default", id="no-roles"
        ),
        pytest.param(
            lambda: token(iss="numbered", client_id="web", user_id=0, realm_access="pro"),
            "0",
            "default",
            id="no-object-on-the-way",
        ),
    ],
)
async def test_auth_claims_as_issued(
    guarded: Running, upstream: Upstream, credential: Callable[[], str], user: str, plan: str
) -> None:
    """What identity providers put into a token's claims is read as they mean it."""
    await passes(guarded, upstream, request(body=BODY, token=credential()))

    line = only(await guarded.settled(), "exchange.settled")
    assert (line["user"], line["plan"]) == (user, plan)


async def test_auth_none(start: Callable[..., Any], upstream: Upstream) -> None:
    """`auth: none` lets everybody in as one user, and still forwards no credential of theirs."""
    config = CONFIG[: CONFIG.index("auth:")] + "auth: none\n" + CONFIG[CONFIG.index("upstreams:") :]
    proxy = await start(config=config)
    await passes(proxy, upstream, request(body=BODY))
    received = await passes(proxy, upstream, request(body=BODY, token="sk-their-own"))

    assert received.get("authorization") == f"Bearer {VENDOR_KEY}"
    assert "sk-their-own" not in repr(received)
    lines = [line for line in await proxy.settled(2) if line["event"] == "exchange.settled"]
    assert {line["user"] for line in lines} == {"anonymous"}


class Issuer:
    """An issuer's key set over HTTP, and tokens by its keys."""

    def __init__(self) -> None:
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.is_up = True
        self.fault: Callable[[], web.Response] | None = None
        self.fetches = 0
        self.url = ""

    def rotate(self, kid: str) -> None:
        self.keys[kid] = ec.generate_private_key(ec.SECP256R1())

    def token(self, kid: str, key: ec.EllipticCurvePrivateKey | None = None) -> str:
        now_s = int(time.time())
        claims = {"iss": "remote", "aud": "llm", "sub": "carol", "iat": now_s, "exp": now_s + 600}
        return jwt.encode(claims, key or self.keys[kid], algorithm="ES256", headers={"kid": kid})

    async def answer(self, request: web.Request) -> web.Response:
        self.fetches += 1
        if self.fault is not None:
            return self.fault()
        if not self.is_up:
            return web.Response(status=500)
        keys = [
            json.loads(ECAlgorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig", "alg": "ES256"}
            for kid, key in self.keys.items()
        ]
        return web.json_response({"keys": keys})


@asynccontextmanager
async def key_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[Issuer]:
    """An issuer that is asked for its keys."""
    state = Issuer()
    state.rotate("k1")
    application = web.Application()
    application.router.add_get("/{path:.*}", state.answer)
    server = TestServer(application, host="127.0.0.1")
    await server.start_server(ssl=tls)
    state.url = str(server.make_url("/jwks"))
    yield state
    await server.close()


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """An issuer that is asked for its keys by http."""
    async with key_server() as state:
        yield state


REMOTE = "    - {{issuer: remote, audience: llm, algorithms: [ES256], jwks_url: ISSUER}}\n"


def remote_config(issuer: Issuer, *, alone: bool) -> str:
    entry = REMOTE.replace("ISSUER", issuer.url)
    local = next(line for line in CONFIG.splitlines(keepends=True) if "issuer: tests" in line)
    return CONFIG.replace(local, entry if alone else local + entry)


async def readiness(proxy: Running) -> Message:
    client = await proxy.client()
    client.write(request("/readyz", method="GET"))
    return await client.read_message()


async def key_set_line(proxy: Running) -> dict[str, Any]:
    """The log's line of the first fetch of a key set."""
    async with asyncio.timeout(5):
        # The log's own thread writes to a file; there is no event to wait for.
        while not (lines := [line for line in proxy.lines() if line["event"] == "keys.refreshed"]):  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.005)
    return lines[0]


async def test_auth_remote_keys_rotate(start: Callable[..., Any], upstream: Upstream, issuer: Issuer) -> None:
    """A token by a key that was published a moment ago is let in: an unknown `kid` makes the set be fetched."""
    proxy = await start(config=remote_config(issuer, alone=True))
    await passes(proxy, upstream, request(body=BODY, token=issuer.token("k1")))
    before = issuer.fetches

    issuer.rotate("k2")
    await passes(proxy, upstream, request(body=BODY, token=issuer.token("k2")))

    assert issuer.fetches == before + 1
    await passes(proxy, upstream, request(body=BODY, token=issuer.token("k1")))
    assert issuer.fetches == before + 1
    assert {line["user"] for line in await proxy.settled(3) if line["event"] == "exchange.settled"} == {"carol"}


async def test_auth_unknown_kids_do_not_flood_the_issuer(
    start: Callable[..., Any], upstream: Upstream, issuer: Issuer
) -> None:
    """However many unknown `kid`s come, the issuer is asked once, and nobody with a known one waits."""
    proxy = await start(config=remote_config(issuer, alone=True))
    await passes(proxy, upstream, request(body=BODY, token=issuer.token("k1")))
    before = issuer.fetches
    stranger = ec.generate_private_key(ec.SECP256R1())
    client = await proxy.client()

    for number in range(20):
        client.write(request(body=BODY, token=issuer.token(f"made-up-{number}", stranger)))
        assert (await client.read_message()).get("x-forward-sse-code") == "invalid_token"

    assert issuer.fetches <= before + 1
    await passes(proxy, upstream, request(body=BODY, token=issuer.token("k1")))


async def test_auth_issuer_is_down(start: Callable[..., Any], upstream: Upstream, issuer: Issuer) -> None:
    """While no keys were ever loaded, a token is not called bad: 503, and the proxy is not ready and says why."""
    issuer.is_up = False
    proxy = await start(config=remote_config(issuer, alone=True))
    answer = await refused(proxy, upstream, request(body=BODY, token=issuer.token("k1")))

    assert (answer.status, answer.get("x-forward-sse-code")) == (503, "auth_unavailable")
    assert int(answer.get("retry-after") or "") >= 1
    ready = await readiness(proxy)
    assert (ready.status, ready.json["status"]) == (503, "unready")
    assert ready.json["reasons"] == ["auth: remote: key set: status 500"]


KEY_SET_FAULTS: dict[str, tuple[Callable[[], web.Response], str, str]] = {
    "redirect": (
        lambda: web.Response(status=302, headers={"Location": "https://login.internal/?token=canary"}),
        "a redirect (status 302), which is not followed",
        ' (to "https://login.internal/")',
    ),
    "map of certificates": (
        lambda: web.json_response({"k1": "-----BEGIN CERTIFICATE-----\nMIIC"}),
        "a map of x509 certificates, not a JWK Set (the issuer publishes one at another URL)",
        "",
    ),
    "login page": (lambda: web.Response(text="<html>canary"), "a page of HTML or XML", ""),
    "no usable key": (
        lambda: web.json_response({"keys": [{"kty": "oct", "k": "canary"}]}),
        "no usable key: keys[0]: a private or symmetric key is published",
        "",
    ),
}


@pytest.mark.parametrize("case", KEY_SET_FAULTS)
async def test_auth_key_set_cannot_be_loaded(start: Callable[..., Any], issuer: Issuer, case: str) -> None:
    """Why a key set could not be loaded is said at warning in the log, and without hosts to who asks for readiness."""
    issuer.fault, words, more = KEY_SET_FAULTS[case]
    proxy = await start(config=remote_config(issuer, alone=True))
    line = await key_set_line(proxy)

    assert (line["level"], line["issuer"], line["outcome"]) == ("warning", "remote", "failed")
    assert line["reason"] == f"key set: {words}{more}"
    ready = await readiness(proxy)
    assert (ready.status, ready.json["reasons"]) == (503, [f"auth: remote: key set: {words}"])
    assert b"canary" not in proxy.log_bytes()


async def test_auth_discovery_document_of_another_issuer(start: Callable[..., Any], issuer: Issuer) -> None:
    """Where the discovery document names another issuer, the log says which two differ."""
    base = issuer.url.removesuffix("/jwks")
    issuer.fault = lambda: web.json_response({"issuer": "https://id.internal/r", "jwks_uri": issuer.url})
    entry = f"{{{{issuer: '{base}', audience: llm, algorithms: [ES256], discovery: true}}}}"
    local = next(line for line in CONFIG.splitlines(keepends=True) if "issuer: tests" in line)
    proxy = await start(config=CONFIG.replace(local, f"    - {entry}\n"))
    line = await key_set_line(proxy)

    assert line["reason"] == (
        "discovery document: it names another issuer than the file "
        f'(it is of "https://id.internal/r", the file has "{base}")'
    )
    ready = await readiness(proxy)
    assert ready.json["reasons"] == [f"auth: {base}: discovery document: it names another issuer than the file"]


async def test_auth_key_set_by_http(start: Callable[..., Any], upstream: Upstream, issuer: Issuer) -> None:
    """With `allow_http` a key set is fetched by http from another host than loopback, as within a cluster."""
    # To the rules this is another machine; the system connects to this one.
    config = remote_config(issuer, alone=True).replace(issuer.url, issuer.url.replace("127.0.0.1", "0.0.0.0"))
    with pytest.raises(ConfigurationError):
        await start(config=config)
    proxy = await start(config=config.replace("algorithms: [ES256]", "algorithms: [ES256], allow_http: true"))

    await passes(proxy, upstream, request(body=BODY, token=issuer.token("k1")))
    assert (await key_set_line(proxy))["level"] == "info"


@pytest.mark.parametrize("is_trusted", [True, False], ids=["trusted", "of another authority"])
async def test_auth_key_set_with_a_private_authority(
    start: Callable[..., Any], upstream: Upstream, tmp_path: Path, is_trusted: bool
) -> None:
    """A key set's server is verified with the authorities of `ca_file`, and what is wrong is said."""
    own, other = CertificateAuthority(tmp_path), CertificateAuthority(tmp_path, "other")
    async with key_server(own.server()) as issuer:
        entry = f"jwks_url: '{issuer.url}', ca_file: '{(own if is_trusted else other).file}'"
        config = remote_config(issuer, alone=True).replace(f"jwks_url: {issuer.url}", entry)
        proxy = await start(config=config)
        data = request(body=BODY, token=issuer.token("k1"))
        if is_trusted:
            await passes(proxy, upstream, data)
        else:
            answer = await refused(proxy, upstream, data)
            assert (answer.status, answer.get("x-forward-sse-code")) == (503, "auth_unavailable")
            words = "key set: TLS: the server's certificate is not signed by a trusted authority (see ca_file)"
            assert (await readiness(proxy)).json["reasons"] == [f"auth: remote: {words}"]
            assert (await key_set_line(proxy))["reason"].startswith(words)


async def test_auth_issuer_is_down_and_another_is_not(
    start: Callable[..., Any], upstream: Upstream, issuer: Issuer
) -> None:
    """Where another way works, the proxy is ready, and names the one that does not."""
    issuer.is_up = False
    proxy = await start(config=remote_config(issuer, alone=False))

    await passes(proxy, upstream, request(body=BODY, token=token()))
    client = await proxy.client()
    client.write(request(body=BODY, token=issuer.token("k1")))
    assert (await client.read_message()).status == 503
    ready = await readiness(proxy)
    assert (ready.status, ready.json["status"]) == (200, "ready")
    assert ready.json["limping"] == ["auth: remote: key set: status 500"]


async def test_auth_issuer_goes_down_later(start: Callable[..., Any], upstream: Upstream, issuer: Issuer) -> None:
    """Keys that were loaded go on working while their issuer is away; unknown ones are then simply bad."""
    proxy = await start(config=remote_config(issuer, alone=True))
    await passes(proxy, upstream, request(body=BODY, token=issuer.token("k1")))
    issuer.is_up = False

    client = await proxy.client()
    stranger = ec.generate_private_key(ec.SECP256R1())
    client.write(request(body=BODY, token=issuer.token("made-up", stranger)))
    assert (await client.read_message()).status == 401
    await passes(proxy, upstream, request(body=BODY, token=issuer.token("k1")))

    assert (await readiness(proxy)).status == 200


async def test_auth_signed_by_a_stranger_with_a_known_kid(
    start: Callable[..., Any], upstream: Upstream, issuer: Issuer
) -> None:
    """A known `kid` is only a name: the signature decides."""
    proxy = await start(config=remote_config(issuer, alone=True))
    stranger = ec.generate_private_key(ec.SECP256R1())
    answer = await refused(proxy, upstream, request(body=BODY, token=issuer.token("k1", stranger)))

    assert (answer.status, answer.get("x-forward-sse-code")) == (401, "invalid_token")


async def test_auth_issuers_do_not_vouch_for_each_other(
    start: Callable[..., Any], upstream: Upstream, issuer: Issuer
) -> None:
    """One issuer's key signs nothing in another's name."""
    proxy = await start(config=remote_config(issuer, alone=False))
    answer = await refused(proxy, upstream, request(body=BODY, token=token(iss="remote")))

    assert (answer.status, answer.get("x-forward-sse-code")) == (401, "invalid_token")
