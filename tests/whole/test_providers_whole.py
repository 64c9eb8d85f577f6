"""Tokens as well-known identity providers issue them, with the issuers' entries of `docs/configuration.md`."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml
from aiohttp import web

from proxy.settings import Settings
from tests.auth.auth_support import KeyServer, jwk, keyring, token
from tests.conftest import CONFIG
from tests.peers import Upstream, only, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Running

BODY = {"model": "gpt-x"}
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"
TENANT = "11111111-2222-3333-4444-555555555555"
UUID = "c0ffee00-1111-4222-8333-444455556666"


def documented() -> list[dict[str, Any]]:
    """The issuers' entries of the documentation."""
    section = DOCS.read_text().partition("### Identity providers")[2]
    block = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert block is not None
    entries: list[dict[str, Any]] = yaml.safe_load(block[1])["auth"]["jwt"]
    return entries


class Provider(NamedTuple):
    """What a provider puts into its tokens besides `iat` and `exp`, and who that is; `changes` make it another's."""

    claims: dict[str, Any]
    user: str
    plan: str
    changes: dict[str, Any]
    header: dict[str, Any]
    key: str = "rsa"


PROVIDERS: dict[str, Provider] = {
    "auth0": Provider(
        {
            "iss": "https://shop.eu.auth0.com/",
            "sub": "auth0|65f0c0ffee00112233445566",
            "aud": ["https://llm.example.com", "https://shop.eu.auth0.com/userinfo"],
            "azp": "mTqCexampleClientId",
            "scope": "openid profile email llm.stream",
            "permissions": ["llm.stream"],
            "https://example.com/plan": "pro",
        },
        user="auth0|65f0c0ffee00112233445566",
        plan="pro",
        changes={"aud": "https://other.example.com"},
        header={"typ": "JWT", "alg": "RS256", "kid": "rsa"},
    ),
    "cognito access token": Provider(
        {
            "iss": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_Ab3dEf6hI",
            "sub": UUID,
            "client_id": "4k2example3client1id",
            "cognito:groups": ["eu-west-1_Ab3dEf6hI_Google", "pro"],
            "origin_jti": UUID,
            "event_id": UUID,
            "token_use": "access",
            "scope": "openid aws.cognito.signin.user.admin",
            "auth_time": int(time.time()),
            "jti": UUID,
            "username": "Google_112233",
            "version": 2,
        },
        user=UUID,
        plan="pro",
        # As its ID tokens are.
        changes={"client_id": ..., "aud": "4k2example3client1id", "token_use": "id"},
        header={"kid": "rsa", "alg": "RS256"},
    ),
    "clerk": Provider(
        {
            "iss": "https://clerk.example.com",
            "sub": "user_2abCdEfGhIjKlMnOpQrStUvWxYz",
            "azp": "https://app.example.com",
            "sid": "sess_2abCdEfGhIjKlMnOpQrStUvWxYz",
            "sts": "active",
            "v": 2,
            "fva": [3, -1],
            "jti": "0f1e2d3c4b5a69788796",
            "nbf": int(time.time()) - 10,
            "metadata": {"plan": "pro"},
        },
        user="user_2abCdEfGhIjKlMnOpQrStUvWxYz",
        plan="pro",
        changes={"azp": "https://evil.example.com"},
        header={"alg": "RS256", "cat": "cl_B7d4PD111AAA", "kid": "rsa", "typ": "JWT"},
    ),
    "clerk without metadata": Provider(
        {
            "iss": "https://clerk.example.com",
            "sub": "user_2abCdEfGhIjKlMnOpQrStUvWxYz",
            "azp": "https://app.example.com",
            "nbf": None,
            "metadata": None,
        },
        user="user_2abCdEfGhIjKlMnOpQrStUvWxYz",
        plan="default",
        changes={"azp": None},
        header={"alg": "RS256", "kid": "rsa", "typ": "JWT"},
    ),
    "supabase": Provider(
        {
            "iss": "https://abcdefghijklmnop.supabase.co/auth/v1",
            "sub": UUID,
            "aud": "authenticated",
            "email": "a@example.com",
            "phone": "",
            "app_metadata": {"provider": "google", "providers": ["google"], "plan": "pro"},
            "user_metadata": {"full_name": "Ä. Müller", "plan": "default"},
            "role": "authenticated",
            "aal": "aal1",
            "amr": [{"method": "oauth", "timestamp": 1_700_000_000}],
            "session_id": UUID,
            "is_anonymous": False,
        },
        user=UUID,
        plan="pro",
        # As a project's published `anon` key is: for everybody, and nobody's.
        changes={"sub": ..., "aud": ..., "role": "anon"},
        header={"alg": "ES256", "kid": "p256", "typ": "JWT"},
        key="p256",
    ),
    "keycloak": Provider(
        {
            "iss": "https://sso.example.com/realms/shop",
            "jti": f"onrtro:{UUID}",
            "aud": "account",
            "sub": UUID,
            "typ": "Bearer",
            "azp": "shop-web",
            "sid": UUID,
            "acr": "1",
            "allowed-origins": ["https://app.example.com"],
            "realm_access": {"roles": ["default-roles-shop", "offline_access", "pro", "uma_authorization"]},
            "resource_access": {"account": {"roles": ["manage-account", "view-profile"]}},
            "scope": "openid profile email",
            "preferred_username": "alice",
        },
        user=UUID,
        plan="pro",
        changes={"azp": "admin-cli"},
        header={"alg": "RS256", "typ": "JWT", "kid": "rsa"},
    ),
    "entra v2": Provider(
        {
            "iss": f"https://login.microsoftonline.com/{TENANT}/v2.0",
            "aud": "66666666-7777-8888-9999-000000000000",
            "nbf": int(time.time()) - 10,
            "aio": "AVQAq/8example=",
            "azp": UUID,
            "azpacr": "0",
            "name": "Alice",
            "oid": UUID,
            "preferred_username": "alice@example.com",
            "rh": "1.AU4Aexample.",
            "roles": ["Llm.User", "pro"],
            "scp": "llm.stream User.Read",
            "sub": "pairwise-of-this-application",
            "tid": TENANT,
            "uti": "example",
            "ver": "2.0",
        },
        user=UUID,
        plan="pro",
        changes={"iss": "https://login.microsoftonline.com/99999999-2222-3333-4444-555555555555/v2.0"},
        header={"typ": "JWT", "alg": "RS256", "kid": "rsa", "x5t": "rsa"},
    ),
    "firebase": Provider(
        {
            "iss": "https://securetoken.google.com/shop-12345",
            "aud": "shop-12345",
            "auth_time": int(time.time()) - 100,
            "user_id": "Xy3zExampleUid",
            "sub": "Xy3zExampleUid",
            "email": "a@example.com",
            "email_verified": True,
            "firebase": {"identities": {"email": ["a@example.com"]}, "sign_in_provider": "password"},
            "plan": "pro",
        },
        user="Xy3zExampleUid",
        plan="pro",
        changes={"iss": "https://securetoken.google.com/other-999", "aud": "other-999"},
        header={"alg": "RS256", "kid": "rsa", "typ": "JWT"},
    ),
    "okta": Provider(
        {
            "ver": 1,
            "jti": "AT.MNAoEQ_example",
            "iss": "https://shop.okta.com/oauth2/default",
            "aud": "api://default",
            "cid": "0oaexampleclient",
            "uid": "00uexampleuser",
            "scp": ["openid", "llm.stream"],
            "auth_time": int(time.time()) - 100,
            "sub": "alice@example.com",
            "groups": ["Everyone", "pro"],
        },
        user="00uexampleuser",
        plan="pro",
        changes={"aud": "https://shop.okta.com"},
        header={"kid": "rsa", "alg": "RS256"},
    ),
}


def issued(provider: Provider, **changes: Any) -> str:
    """A token of the provider's; `...` takes a claim away."""
    now_s = int(time.time())
    claims = {"iat": now_s, "exp": now_s + 3600, **provider.claims, **changes}
    claims = {name: value for name, value in claims.items() if value is not ...}
    return token(claims, getattr(keyring(), provider.key), provider.header["alg"], header=provider.header)


async def serve(start: Callable[..., Any], server: KeyServer) -> Running:
    """A proxy with all entries of the documentation, whose key sets come from the tests' server."""
    # Entra's and Okta's keys have no `alg`, others do.
    server.keys = [
        jwk(keyring().rsa, kid="rsa", use="sig"),
        jwk(keyring().p256, kid="p256", alg="ES256", use="sig", key_ops=["verify"]),
    ]
    local = [
        {key: value for key, value in entry.items() if key != "discovery"} | {"jwks_url": server.url()}
        for entry in documented()
    ]
    config = CONFIG[: CONFIG.index("auth:")] + CONFIG[CONFIG.index("upstreams:") :]
    more = yaml.safe_dump({"auth": {"jwt": local}, "plans": {"pro": {}}})
    return await start(more, config=config)  # type: ignore[no-any-return]  # the factory's options are open


@pytest.mark.parametrize("name", PROVIDERS)
async def test_provider_accepted(start: Callable[..., Any], upstream: Upstream, name: str) -> None:
    """A token as the provider issues it is its user's, with the plan that it names."""
    provider = PROVIDERS[name]
    async with KeyServer() as server:
        proxy = await serve(start, server)
        client = await proxy.client()
        client.write(request(body=BODY, token=issued(provider)))
        vendor, _ = await upstream.take()
        vendor.write(OK)
        assert (await client.read_message()).status == 200

        line = only(await proxy.settled(), "exchange.settled")
        assert (line["issuer"], line["user"], line["plan"]) == (provider.claims["iss"], provider.user, provider.plan)


@pytest.mark.parametrize("name", PROVIDERS)
async def test_provider_token_for_somebody_else(start: Callable[..., Any], upstream: Upstream, name: str) -> None:
    """A token that the same provider signed for another application, tenant or purpose is refused."""
    provider = PROVIDERS[name]
    async with KeyServer() as server:
        proxy = await serve(start, server)
        client = await proxy.client()
        client.write(request(body=BODY, token=issued(provider, **provider.changes)))
        answer = await client.read_message()
        assert (answer.status, answer.get("x-forward-sse-code")) == (401, "invalid_token")
        assert upstream.is_untouched


def test_documented_entries() -> None:
    """Each entry of the documentation is sound as it stands, and has a token here."""
    upstreams = {"openai": {"url": "https://api.openai.com", "dialect": "openai", "api_key": "k"}}
    settings = Settings.model_validate({"auth": {"jwt": documented()}, "upstreams": upstreams})
    assert settings.auth is not None
    assert {entry.issuer for entry in settings.auth.jwt} == {one.claims["iss"] for one in PROVIDERS.values()}


async def test_firebase_certificates_instead_of_keys(start: Callable[..., Any]) -> None:
    """Firebase's address of x509 certificates, which its own guide names, is called what it is."""
    async with KeyServer() as server:
        server.answer = lambda: web.json_response({"k1": "-----BEGIN CERTIFICATE-----\nMIIC"})
        proxy = await serve(start, server)
        client = await proxy.client()
        client.write(request(body=BODY, token=issued(PROVIDERS["firebase"])))
        assert (await client.read_message()).status == 503
        client.write(request("/readyz", method="GET"))
        reasons = (await client.read_message()).json["reasons"]
        (reason,) = (one for one in reasons if "securetoken" in one)
        assert "x509" in reason
