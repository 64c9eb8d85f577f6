"""Units, and what the models take and refuse."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from proxy.cli import check_report
from proxy.dialects import DIALECTS
from proxy.model import EgressProxy, Rate
from proxy.settings import Address, InvalidValue, Settings, UpstreamSettings
from proxy.settings.units import MAX_DURATION_S, read_address, read_clock, read_duration, read_rate, read_size

SECRET = "s" * 64
HMAC_ISSUER = {"issuer": "dev", "audience": "llm", "algorithms": ["HS256"], "secret": SECRET}
OPENAI = {"url": "https://api.openai.com", "dialect": "openai", "api_key": "sk-1"}
DIGEST = hashlib.sha256(b"key").hexdigest()
EXPONENTS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def settings(**keys: Any) -> Settings:
    return Settings.model_validate({"auth": "none", "upstreams": {"openai": OPENAI}} | keys)


def faults(**keys: Any) -> dict[tuple[str | int, ...], str]:
    """Where the models find something wrong, and what."""
    with pytest.raises(ValidationError) as caught:
        settings(**keys)
    return {error["loc"]: error["msg"] for error in caught.value.errors()}


def issuer(**keys: Any) -> dict[str, Any]:
    """The `auth` with one issuer: the HMAC one, changed; None leaves a key out."""
    return {"jwt": [{key: value for key, value in (HMAC_ISSUER | keys).items() if value is not None}]}


def upstream(**keys: Any) -> dict[str, Any]:
    """The `upstreams` with one vendor: OpenAI, changed; None leaves a key out."""
    return {"openai": {key: value for key, value in (OPENAI | keys).items() if value is not None}}


def pem(key: Any) -> str:
    text: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


# Units


@given(st.integers(0, 31_000_000), st.sampled_from(sorted(EXPONENTS)))
def test_duration_written_in_any_unit(number: int, unit: str) -> None:
    """A duration is its number times its unit, in seconds, unless that is beyond the bound."""
    expected = number * EXPONENTS[unit]
    if expected > MAX_DURATION_S:
        with pytest.raises(InvalidValue):
            read_duration(f"{number}{unit}")
    else:
        assert read_duration(f"{number}{unit}") == pytest.approx(expected)


@given(st.text() | st.integers() | st.booleans() | st.none() | st.floats() | st.lists(st.text()))
def test_units_given_anything(value: object) -> None:
    """A reader of units gives a value or `InvalidValue`, whatever stood in the file, and never another error."""
    for read in (read_duration, read_clock, read_size, read_rate, read_address):
        with contextlib.suppress(InvalidValue):
            read(value)


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [("10", "10s"), (10, "10s"), ("10 sec", "10s"), ("5min", "5m"), ("1 hour", "1h"), ("10S", "10s"), ("ten", None)],
)
def test_duration_without_its_unit(text: object, suggestion: str | None) -> None:
    """A duration without a proper unit is refused, with the one that was probably meant."""
    with pytest.raises(InvalidValue) as caught:
        read_duration(text)
    assert caught.value.suggestion == suggestion


@given(st.integers(1, 1 << 20), st.sampled_from([("B", 1), ("KiB", 1 << 10)]))
def test_size_written_in_any_unit(number: int, unit: tuple[str, int]) -> None:
    """A size is its number times its unit, in bytes."""
    assert read_size(f"{number}{unit[0]}") == number * unit[1]


@pytest.mark.parametrize(("text", "suggestion"), [("32MB", "32MiB"), (1024, "1024B"), ("64k", "64KiB"), ("big", None)])
def test_size_without_its_unit(text: object, suggestion: str | None) -> None:
    """Decimal and missing units are refused, with the binary one suggested."""
    with pytest.raises(InvalidValue) as caught:
        read_size(text)
    assert caught.value.suggestion == suggestion


@pytest.mark.parametrize("text", ["0B", "2GiB", "999999999999GiB"])
def test_size_out_of_bounds(text: str) -> None:
    """A size of nothing, or beyond 1 GiB, is refused."""
    with pytest.raises(InvalidValue):
        read_size(text)


@given(st.integers(1, 999_999_999), st.integers(1, 86_400))
def test_rate_written(quota: int, window: int) -> None:
    """A rate is its quota in its window."""
    assert read_rate(f"{quota}/{window}s") == Rate(quota, float(window))


@pytest.mark.parametrize(
    ("text", "suggestion"), [("60/s", "60/1s"), ("0/10s", None), ("60/0s", None), ("60", None), (60, None)]
)
def test_rate_faulty(text: object, suggestion: str | None) -> None:
    """A rate without a window, or one that admits nothing, is refused."""
    with pytest.raises(InvalidValue) as caught:
        read_rate(text)
    assert caught.value.suggestion == suggestion


@given(st.ip_addresses(), st.integers(0, 65_535))
def test_address_written(host: Any, port: int) -> None:
    """An address reads back as it prints, brackets around IPv6."""
    address = Address(str(host), port)
    assert read_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        (8080, "0.0.0.0:8080"),
        (":8080", "0.0.0.0:8080"),
        ("localhost", None),
        ("h:70000", None),
        ("::1:80", None),
        ("a b:1", None),
        ("[h]:1", None),
        ("127.1:1", None),
        ("h:\u0661", None),
    ],
)
def test_address_faulty(text: object, suggestion: str | None) -> None:
    """An address without host or port, or with one that is none, is refused."""
    with pytest.raises(InvalidValue) as caught:
        read_address(text)
    assert caught.value.suggestion == suggestion


# Defaults


def test_settings_with_only_what_is_required() -> None:
    """Every key but `auth` and `upstreams` has the documented default."""
    made = settings()
    assert made.listen == (Address("0.0.0.0", 8080),)
    assert made.admin_listen == Address("127.0.0.1", 9090)
    assert (made.workers, made.max_body_bytes, made.drain_timeout_s) == (1, 32 << 20, 60.0)
    assert made.max_header_bytes == 16 << 10
    assert made.client_timeouts.model_dump() == {"header_s": 10, "body_s": 30, "keep_alive_s": 75, "write_s": 30}
    clocks = {"connect_s": 5, "first_byte_s": 300, "idle_s": 120, "total_s": None, "keep_alive_s": 50}
    assert made.timeouts.model_dump() == clocks
    assert made.plans["default"].requests == (Rate(60, 10.0),)
    assert made.plans["default"].concurrent_streams == 8
    assert (made.limits.store, made.limits.on_store_error) == ("memory", "deny")
    assert (made.heartbeat_s, made.default_upstream, made.envelope, made.playground) == (None, None, None, False)
    assert (made.cors.origins, made.cors.credentials, made.cors.max_age_s) == ((), False, 600.0)
    assert (made.log.format, made.log.level) == ("json", "info")


def test_plan_default_beside_others() -> None:
    """The plan `default` exists although the file gives only other plans."""
    assert set(settings(plans={"pro": {}}).plans) == {"pro", "default"}


def test_issuer_with_only_what_is_required() -> None:
    """An issuer's claims and leeway have the documented defaults, and one audience is a list of one."""
    auth = settings(auth=issuer()).auth
    assert auth is not None
    (made,) = auth.jwt
    assert (made.audience, made.audience_claim, made.user_claim, made.plan_claim) == (("llm",), "aud", "sub", "plan")
    assert (made.leeway_s, made.allow_http, made.ca_file) == (30.0, False, None)
    assert made.source == "secret"


def test_upstream_inherits() -> None:
    """An upstream takes the clocks and the heartbeat that it does not set from the top; Gemini never a heartbeat."""
    gemini = OPENAI | {"dialect": "gemini"}
    made = settings(
        timeouts={"idle": "7s"},
        heartbeat="15s",
        upstreams=upstream(timeouts={"connect": "off"}) | {"quiet": OPENAI | {"heartbeat": "off"}, "gemini": gemini},
    )
    clocks = made.upstreams["openai"].timeouts
    assert (clocks.connect_s, clocks.first_byte_s, clocks.idle_s, clocks.total_s) == (None, 300.0, 7.0, None)
    assert [made.upstreams[name].heartbeat_s for name in ("openai", "quiet", "gemini")] == [15.0, None, None]


@pytest.mark.parametrize(
    ("keys", "source", "expected"),
    [
        ({"api_key": "sk-1"}, "own", ["sk-1"]),
        ({"api_key": None, "api_keys": ["a", "b"]}, "own", ["a", "b"]),
        ({"api_key": "client"}, "client", []),
        ({"api_key": "none"}, "none", []),
    ],
)
def test_upstream_key_source(keys: dict[str, Any], source: str, expected: list[str]) -> None:
    """The vendor's credential is its own keys, the client's, or none: as the file says."""
    made = settings(upstreams=upstream(**keys)).upstreams["openai"]
    assert made.key_source == source
    assert [key.get_secret_value() for key in made.keys] == expected


def test_settings_shown() -> None:
    """No text of the settings holds a key, a secret or a header's value."""
    made = settings(auth=issuer(), upstreams=upstream(api_key="sk-hidden", headers={"X-Key": "sk-header"}))
    for text in (repr(made), str(made)):
        assert SECRET not in text
        assert "sk-" not in text


def test_settings_cannot_be_changed() -> None:
    """Settings are frozen: running streams keep the configuration they began with."""
    with pytest.raises(ValidationError):
        settings().workers = 2  # type: ignore[misc] # what is tested


# Authentication


@pytest.mark.parametrize("value", [None, "", "None", "off", False, True, 0, [], {}])
def test_auth_not_said_out_loud(value: object) -> None:
    """Only the word `none` lets everybody in: nothing, `off` or an empty mapping never do."""
    assert ("auth",) in faults(auth=value)


def test_auth_absent() -> None:
    """Without `auth` there is no configuration."""
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"upstreams": {"openai": OPENAI}})
    assert caught.value.errors()[0]["loc"] == ("auth",)


RSA_PEM = pem(rsa.generate_private_key(65537, 2048))
WEAK_PEM = pem(rsa.generate_private_key(65537, 1024))
EC_PEM = pem(ec.generate_private_key(ec.SECP256R1()))
ED_KEY = ed25519.Ed25519PrivateKey.generate()
PRIVATE_PEM = ED_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
URL = "https://id.example.com/jwks"
ENTRA = "https://login.microsoftonline.com/{}/v2.0"
REMOTE: dict[str, Any] = {"secret": None, "jwks_url": URL, "algorithms": ["RS256"]}


@pytest.mark.parametrize(
    "keys",
    [
        {"algorithms": ["HS256", "HS384", "HS512"]},
        {"secret": None, "jwks_url": URL, "algorithms": ["RS256", "PS512", "ES384", "EdDSA"]},
        {"secret": None, "jwks_url": "http://127.0.0.1:1/jwks", "algorithms": ["RS256"]},
        {"secret": None, "discovery": True, "issuer": "https://id.example.com", "algorithms": ["RS256"]},
        {"secret": None, "public_key": RSA_PEM, "algorithms": ["RS256", "PS256"]},
        {"secret": None, "public_key": EC_PEM, "algorithms": ["ES256"]},
        {"secret": None, "public_key": pem(ED_KEY), "algorithms": ["EdDSA"]},
        {"discovery": False},
        {"allow_http": False},
        {"secret": None, "jwks_url": "http://keycloak:8080/certs", "allow_http": True, "algorithms": ["RS256"]},
        {"secret": None, "jwks_url": "http://keycloak:8080/certs", "allow_http": "true", "algorithms": ["RS256"]},
        {"secret": None, "jwks_url": URL, "allow_http": True, "algorithms": ["RS256"]},
        {
            "secret": None,
            "discovery": True,
            "issuer": "http://keycloak:8080/realms/r",
            "allow_http": True,
            "algorithms": ["RS256"],
        },
        {"issuer": ENTRA.format("11111111-2222-3333-4444-555555555555")},
        {"issuer": "https://login.example.com/common/v2.0"},
    ],
)
def test_issuer_sound(keys: dict[str, Any]) -> None:
    """Each source of keys goes with the algorithms that it can verify."""
    assert settings(auth=issuer(**keys)).auth


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({"secret": None}, (), "no source of keys"),
        ({"jwks_url": URL}, ("secret",), "exactly one of"),
        ({"discovery": True}, ("secret",), "exactly one of"),
        ({"secret": "s" * 31}, ("secret",), "at least 32 bytes"),
        ({"secret": "s" * 47, "algorithms": ["HS256", "HS384"]}, ("secret",), "at least 48 bytes"),
        ({"secret": "s" * 63, "algorithms": ["HS512"]}, ("secret",), "at least 64 bytes"),
        ({"algorithms": ["HS256", "RS256"]}, ("algorithms", 1), "does not go with secret"),
        ({"secret": None, "jwks_url": URL}, ("algorithms", 0), "does not go with jwks_url"),
        ({"secret": None, "public_key": RSA_PEM}, ("algorithms", 0), "does not go with this public_key"),
        ({"secret": None, "public_key": RSA_PEM, "algorithms": ["ES256"]}, ("algorithms", 0), "does not go with"),
        ({"secret": None, "public_key": WEAK_PEM, "algorithms": ["RS256"]}, ("public_key",), "2048 bits"),
        ({"secret": None, "public_key": PRIVATE_PEM, "algorithms": ["EdDSA"]}, ("public_key",), "private key"),
        ({"secret": None, "public_key": "x", "algorithms": ["RS256"]}, ("public_key",), "not a public key"),
        ({"algorithms": ["none"]}, ("algorithms", 0), "never accepted"),
        ({"algorithms": []}, ("algorithms",), "must not be empty"),
        ({"algorithms": None}, ("algorithms",), "is required"),
        ({"audience": None}, ("audience",), "is required"),
        ({"audience": []}, ("audience",), "must not be empty"),
        ({"issuer": "key"}, ("issuer",), "API-key users"),
        ({"leeway": "6m"}, ("leeway",), "at most 5m"),
        ({"required_scopes": ["a b"]}, ("required_scopes", 0), "one scope"),
        ({"secret": None, "jwks_url": "http://id.example.com/", "algorithms": ["RS256"]}, ("jwks_url",), "https://"),
        ({"secret": None, "jwks_url": "http://127.0.0.1.evil.com/", "algorithms": ["RS256"]}, ("jwks_url",), "https"),
        ({"secret": None, "discovery": True, "algorithms": ["RS256"]}, ("issuer",), "with discovery"),
        (REMOTE | {"jwks_url": "http://keycloak:8080/certs"}, ("jwks_url",), "allow_http: true"),
        (REMOTE | {"jwks_url": "http://keycloak/certs", "allow_http": False}, ("jwks_url",), "allow_http: true"),
        (REMOTE | {"jwks_url": "ftp://keycloak/certs", "allow_http": True}, ("jwks_url",), "https:// or http://"),
        (REMOTE | {"jwks_url": "http://u:p@keycloak/", "allow_http": True}, ("jwks_url",), "user or a password"),
        (REMOTE | {"allow_http": "yes"}, ("allow_http",), "true or false"),
        (
            REMOTE | {"jwks_url": None, "discovery": True, "issuer": "http://keycloak:8080/realms/r"},
            ("issuer",),
            "allow_http: true",
        ),
        ({"allow_http": True}, ("allow_http",), "no effect with secret"),
        ({"ca_file": "/etc/hostname"}, ("ca_file",), "no effect with secret"),
        ({"egress_proxy": "none"}, ("egress_proxy",), "no effect with secret"),
        ({"server_name": "a.example"}, ("server_name",), "no effect with secret"),
        (
            {"secret": None, "public_key": RSA_PEM, "algorithms": ["RS256"], "allow_http": True},
            ("allow_http",),
            "no effect with public_key",
        ),
        (
            {"secret": None, "public_key": RSA_PEM, "algorithms": ["RS256"], "ca_file": "/etc/hostname"},
            ("ca_file",),
            "no effect with public_key",
        ),
        (REMOTE | {"ca_file": "/nowhere/ca.pem"}, ("ca_file",), "names no readable file"),
        (REMOTE | {"ca_file": "/"}, ("ca_file",), "names no readable file"),
        (REMOTE | {"ca_file": __file__}, ("ca_file",), "certificates in PEM"),
        (
            REMOTE | {"jwks_url": "http://127.0.0.1/certs", "ca_file": "/etc/hostname"},
            ("ca_file",),
            "no effect: the jwks_url is http://",
        ),
        ({"issuer": ENTRA.format("{tenantid}")}, ("issuer",), "write that id"),
        ({"issuer": ENTRA.format("{tenantId}")}, ("issuer",), "write that id"),
        ({"issuer": ENTRA.format("common")}, ("issuer",), "stands for every tenant"),
        ({"issuer": ENTRA.format("organizations")}, ("issuer",), "stands for every tenant"),
        ({"issuer": "https://sts.windows.net/{tenantid}/"}, ("issuer",), "write that id"),
        (
            REMOTE | {"jwks_url": None, "discovery": True, "issuer": ENTRA.format("common")},
            ("issuer",),
            "https://login.microsoftonline.com/<tenant id>/v2.0",
        ),
        ({"audience_claim": ""}, ("audience_claim",), "must not be empty"),
        ({"audience_claim": ["aud"]}, ("audience_claim",), "must be text"),
    ],
)
def test_issuer_faulty(keys: dict[str, Any], key: tuple[str | int, ...], words: str) -> None:
    """An issuer with no source, two, or one that its algorithms do not fit is refused, where it is wrong."""
    found = faults(auth=issuer(**keys))
    assert words in found[("auth", "jwt", 0, *key)]
    assert not any("s" * 31 in text or "PRIVATE KEY-----" in text for text in found.values())


def test_auth_same_entry_twice() -> None:
    """Two entries of one issuer, or of one key however it is spelt, are refused."""
    auth = {
        "jwt": [HMAC_ISSUER, HMAC_ISSUER],
        "api_keys": [{"user": "a", "sha256": DIGEST}, {"user": "b", "sha256": DIGEST.upper()}],
    }
    assert set(faults(auth=auth)) == {("auth", "jwt", 1, "issuer"), ("auth", "api_keys", 1, "sha256")}


def test_api_key_digest() -> None:
    """A digest is lower-cased; a key in the digest's place is refused and not repeated."""
    auth = settings(auth={"api_keys": [{"user": "ci", "sha256": DIGEST.upper()}]}).auth
    assert auth is not None
    assert (auth.api_keys[0].sha256, auth.api_keys[0].plan) == (DIGEST, "default")
    found = faults(auth={"api_keys": [{"user": "ci", "sha256": "fsse_secret"}]})
    assert "fsse" not in found["auth", "api_keys", 0, "sha256"]


# Upstreams and the rest


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({"api_key": None}, ("api_key",), "api_key: none"),
        ({"api_keys": ["b"]}, ("api_keys",), "not both"),
        ({"api_key": None, "api_keys": []}, ("api_keys",), "must not be empty"),
        ({"api_key": None, "api_keys": ["client"]}, ("api_keys", 0), "not a key"),
        ({"api_key": "sk 1"}, ("api_key",), "visible ASCII"),
        ({"api_key": "sk-1\r\nX: y"}, ("api_key",), "visible ASCII"),
        ({"api_key": 1234}, ("api_key",), "quotes"),
        ({"credential_header": "api key"}, ("credential_header",), "not a header's name"),
        ({"credential_header": "*"}, ("credential_header",), "not a header's name"),
        ({"credential_header": "Host"}, ("credential_header",), "by the proxy itself"),
        ({"credential_header": "A", "headers": {"a": "x"}}, ("credential_header",), "also in `headers`"),
        ({"credential_header": "a", "api_key": "none"}, ("credential_header",), "nothing to carry"),
        ({"url": "api.openai.com"}, ("url",), "https://"),
        ({"url": "ftp://h"}, ("url",), "https://"),
        ({"url": "https://u:p@h"}, ("url",), "user or a password"),
        ({"url": "https://h/?a=b"}, ("url",), "query"),
        ({"url": "https://h/#"}, ("url",), "fragment"),
        ({"url": "https://"}, ("url",), "host"),
        ({"url": "https://h:99999"}, ("url",), "not a URL"),
        ({"url": "https://h/a/../b"}, ("url",), "`..`"),
        ({"url": "https://h\\@evil"}, ("url",), "backslashes"),
        ({"dialect": None}, ("dialect",), "is required"),
        ({"dialect": ["openai"]}, ("dialect",), "must be one of openai, "),
        ({"dialect": "raw"}, ("path",), "is required: the dialect raw"),
        ({"path": "v1"}, ("path",), "slash"),
        ({"path": "/a?"}, ("path",), "query"),
        ({"path": "/a?b#c"}, ("path",), "query"),
        ({"path": "/a?b c"}, ("path",), "query"),
        ({"path": "/a/../b?c"}, ("path",), "`..`"),
        ({"path": "/a%2F%2e%2e/b"}, ("path",), "one reading"),
        ({"path": "/a%252Fb"}, ("path",), "one reading"),
        ({"path": "/a?access%5Ftoken=x"}, ("path",), "credential"),
        ({"dialect": "gemini", "path": "/v1/m:x?alt=sse&key=k"}, ("path",), "credential"),
        ({"allow_paths": ["/v1/%2E%2e/x"]}, ("allow_paths", 0), "`..`"),
        ({"allow_paths": ["/v1/x", "/v1//x"]}, ("allow_paths", 1), "one reading"),
        ({"allow_paths": "ALL"}, ("allow_paths",), "the word all"),
        ({"allow_paths": "/v1/*"}, ("allow_paths",), "must be a list"),
        ({"allow_paths": ["all"]}, ("allow_paths", 0), "slash"),
        ({"dialect": "gemini", "heartbeat": "5s"}, ("heartbeat",), "must be off"),
        ({"events": "types"}, ("events",), "must be one of raw, typed"),
        ({"dialect": "raw", "path": "/run", "events": "typed"}, ("events",), "must be raw"),
        (
            {"dialect": "anthropic", "ask_usage": True},
            ("ask_usage",),
            "anthropic cannot be asked for their usage, only openai's",
        ),
        ({"dialect": "raw", "path": "/run", "ask_usage": "true"}, ("ask_usage",), "must be false"),
        ({"ask_usage": "on"}, ("ask_usage",), "must be true or false"),
        ({"typed_names": {"Txt": "text"}}, ("typed_names", "Txt"), "unknown key"),
        ({"typed_names": {"Text": ""}}, ("typed_names", "Text"), "must not be empty"),
        ({"typed_names": {"Text": "x" * 33}}, ("typed_names", "Text"), "at most 32"),
        ({"typed_names": {"Text": True}}, ("typed_names", "Text"), "quotes"),
        ({"typed_names": {"Text": 2**53}}, ("typed_names", "Text"), "2^53 - 1"),
        ({"typed_names": {"Text": 1.5}}, ("typed_names", "Text"), "must be text"),
        ({"typed_names": {"Text": 0, "End": 0}}, ("typed_names", "End"), "is the name of Text too"),
        ({"typed_names": {"Text": 0, "End": "0"}}, ("typed_names", "End"), "is the name of Text too"),
        ({"typed_names": {"Error": "End"}}, ("typed_names", "Error"), "is the name of End too"),
        ({"headers": {"Host": "h"}}, ("headers", "Host"), "proxy itself"),
        ({"headers": {"content-length": "1"}}, ("headers", "content-length"), "proxy itself"),
        ({"headers": {"A b": "1"}}, ("headers", "A b"), "not a header's name"),
        ({"headers": {"X": "a\r\nB: c"}}, ("headers", "X"), "header's value"),
        ({"headers": {"X": "1", "x": "2"}}, ("headers", "x"), "same header"),
        ({"ca_file": "/nowhere/ca.pem"}, ("ca_file",), "no readable file"),
        ({"ca_file": "/"}, ("ca_file",), "no readable file"),
        ({"ca_file": __file__}, ("ca_file",), "certificates in PEM"),
        ({"egress_proxy": "off"}, ("egress_proxy",), "must be environment, none, http://"),
        ({"egress_proxy": "https://p:1"}, ("egress_proxy",), "TLS to the proxy itself is not supported"),
        ({"egress_proxy": "socks4://p:1"}, ("egress_proxy",), "not supported"),
        ({"egress_proxy": "http://"}, ("egress_proxy",), "must name a host"),
        ({"egress_proxy": "http://p:"}, ("egress_proxy",), "must name a host"),
        ({"egress_proxy": "http://p:99999"}, ("egress_proxy",), "is not a URL"),
        ({"egress_proxy": "http://u:a/b@p:1"}, ("egress_proxy",), "percent-encoded"),
        ({"egress_proxy": "http://p:1/path"}, ("egress_proxy",), "must end after the port"),
        ({"egress_proxy": "http://u%3A:x@p:1"}, ("egress_proxy",), "a colon"),
        ({"egress_proxy": f"socks5://{'u' * 256}:x@p:1"}, ("egress_proxy",), "255 bytes"),
        ({"egress_proxy": "http://u:%0d%0a@p:1"}, ("egress_proxy",), "control characters"),
        ({"egress_proxy": True}, ("egress_proxy",), "quotes"),
        ({"client_certificate": {"certificate": __file__}}, ("client_certificate", "key"), "is required"),
        ({"client_certificate": {"certificate": "/x", "key": "/x"}}, ("client_certificate", "key"), "no readable file"),
        (
            {"client_certificate": {"certificate": __file__, "key": __file__}},
            ("client_certificate", "key"),
            "cannot be used with this certificate",
        ),
        ({"server_name": "a b"}, ("server_name",), "must be a host's name"),
        ({"server_name": "::1"}, ("server_name",), "must be a host's name"),
        ({"url": "http://h", "server_name": "a.example"}, ("server_name",), "no effect: the url is http://"),
    ],
)
def test_upstream_faulty(keys: dict[str, Any], key: tuple[str | int, ...], words: str) -> None:
    """What would not work, or would not be safe, in an upstream is refused where it stands."""
    assert words in faults(upstreams=upstream(**keys))[("upstreams", "openai", *key)]


def test_dialect_is_one_of_the_table() -> None:
    """An upstream takes every dialect there is and no other, and the schema lists them."""
    for name in DIALECTS:
        assert settings(upstreams=upstream(dialect=name, path="/x")).upstreams["openai"].dialect == name
    assert UpstreamSettings.model_json_schema()["properties"]["dialect"]["enum"] == list(DIALECTS)


@pytest.mark.parametrize(
    "listen",
    ["[::]:8080", ["[::1]:8080", "0.0.0.0:8080"], ["127.0.0.1:0", "0.0.0.0:0"], ["127.0.0.1:1", "127.0.0.1:2"]],
    ids=str,
)
def test_listen_on_several(listen: str | list[str]) -> None:
    """One address or a list: what the system can serve side by side is taken, in its order."""
    written = [listen] if isinstance(listen, str) else listen
    assert [str(address) for address in settings(listen=listen).listen] == written


def test_ask_usage_is_built() -> None:
    """Usage is asked for where the file says so, and nowhere else; `check` says it."""
    asking, silent = settings(upstreams=upstream(ask_usage=True)), settings(upstreams=upstream())
    assert asking.upstreams["openai"].ask_usage
    assert not silent.upstreams["openai"].ask_usage
    assert "asked for" in check_report.report(asking)
    assert "asked for" not in check_report.report(silent)


def test_typed_names_are_inherited() -> None:
    """Names of the top level hold for every upstream; an upstream's own lie over them."""
    found = settings(
        typed_names={"Text": "text", "End": "end"},
        upstreams=upstream(events="typed", typed_names={"End": "done", "Think": "Thought"}),
    )
    assert found.upstreams["openai"].events == "typed"
    names = dict(found.upstreams["openai"].typed_names)
    assert names == {
        "Image": "Image",
        "Think": "Thought",
        "Text": "text",
        "Cancelled": "Cancelled",
        "End": "done",
        "Error": "Error",
    }


def test_typed_names_that_are_numbers() -> None:
    """Whole numbers stay numbers, 0 too, and are inherited beside text."""
    found = settings(
        typed_names={"Text": 0, "Think": 1, "Error": -1}, upstreams=upstream(events="typed", typed_names={"Think": 7})
    )
    names = dict(found.upstreams["openai"].typed_names)
    assert names == {"Image": "Image", "Think": 7, "Text": 0, "Cancelled": "Cancelled", "End": "End", "Error": -1}
    assert {type(names["Text"]), type(names["Think"])} == {int}


def test_typed_names_repeated_between_the_levels() -> None:
    """Two kinds with one name are a fault where the second stands, though the first stands elsewhere."""
    faulty = faults(typed_names={"Text": "x"}, upstreams=upstream(typed_names={"End": "x"}))
    assert "is the name of Text too" in faulty[("upstreams", "openai", "typed_names", "End")]


def test_upstream_paths() -> None:
    """`path` may have a query; the word `all`, from a file or a variable, stands for every path."""
    path = "/v1beta/models/g:streamGenerateContent?alt=sse&x=%2F|"
    made = settings(upstreams=upstream(path=path, allow_paths="all")).upstreams["openai"]
    assert (made.path, made.allow_paths) == (path, ("/*",))
    assert settings().upstreams["openai"].allow_paths is None
    assert settings(upstreams=upstream(allow_paths=[])).upstreams["openai"].allow_paths == ()


def test_upstream_url_trailing_slash() -> None:
    """A trailing slash of `url` is no part of it, so that paths are joined with one slash."""
    assert settings(upstreams=upstream(url="https://h/base/")).upstreams["openai"].url == "https://h/base"


@pytest.mark.parametrize("name", ["v1", "forward-sse", "admin", "metrics", "OpenAI", "", "-a", "a/b", "a" * 64])
def test_upstream_name_faulty(name: str) -> None:
    """A name that is no path segment of its own, or one of the proxy's paths, is refused."""
    assert ("upstreams", name) in faults(upstreams={name: OPENAI})


TARGET = {"url": "https://api.openai.com/*", "upstream": "openai"}


@pytest.mark.parametrize(
    ("keys", "location", "words"),
    [
        ({"upstreams": {}}, ("upstreams",), "at least one"),
        ({"plans": {"p": {"upstreams": ["opnai"]}}}, ("plans", "p", "upstreams", 0), "nobody defined"),
        ({"default_upstream": "opnai"}, ("default_upstream",), "nobody defined"),
        (
            {"auth": {"api_keys": [{"user": "a", "sha256": DIGEST, "plan": "prp"}]}},
            ("auth", "api_keys", 0, "plan"),
            "nobody defined",
        ),
        (
            {"envelope": {"targets": [TARGET | {"upstream": "opnai"}]}},
            ("envelope", "targets", 0, "upstream"),
            "nobody defined",
        ),
        (
            {"envelope": {"targets": [TARGET | {"url": "https://evil.example/*"}]}},
            ("envelope", "targets", 0, "url"),
            "a key is bound",
        ),
        (
            {"envelope": {"targets": [TARGET | {"url": "http://api.openai.com/*"}]}},
            ("envelope", "targets", 0, "url"),
            "a key is bound",
        ),
        ({"envelope": {"targets": []}}, ("envelope", "targets"), "must not be empty"),
        ({"envelope": {"targets": [{"url": "https://*.h/x"}]}}, ("envelope", "targets", 0, "url"), "only in the path"),
        ({"envelope": {"targets": [{"url": "https://h"}]}}, ("envelope", "targets", 0, "url"), "must have a path"),
        (
            {"envelope": {"targets": [TARGET], "allow_private": ["10.0.0.1/8"]}},
            ("envelope", "allow_private", 0),
            "CIDR",
        ),
        ({"admin_listen": "127.0.0.1:8080"}, ("admin_listen",), "same address"),
        ({"listen": "[::1]:9090", "admin_listen": "[0::1]:9090"}, ("admin_listen",), "same address"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, ("trusted_proxies", 0), "CIDR"),
        ({"trusted_proxies": "10.0.0.0/8"}, ("trusted_proxies",), "must be a list"),
        ({"trusted_proxies": ["10.0.0.0/8"] * 65}, ("trusted_proxies",), "at most 64"),
        ({"auth_failures": "20"}, ("auth_failures",), "is not a rate"),
        ({"auth_failures": False}, ("auth_failures",), "or off"),
        ({"auth_failures": "0/1m"}, ("auth_failures",), "at least one"),
        ({"egress_proxy": "ftp://p"}, ("egress_proxy",), "not supported"),
        ({"listen": []}, ("listen",), "must not be empty"),
        ({"listen": ["h:1"] * 17}, ("listen",), "at most 16"),
        ({"listen": ["127.0.0.1:1", "here"]}, ("listen", 1), "is not HOST:PORT"),
        ({"listen": ["127.0.0.1:1", "localhost:1"]}, ("listen", 1), "is the same address as listen[0]"),
        ({"listen": ["[::1]:0", "[0::1]:0"]}, ("listen", 1), "is the same address as listen[0]"),
        ({"listen": ["0.0.0.0:1", "127.0.0.1:2", "127.0.0.1:1"]}, ("listen", 2), "cannot share its port"),
        ({"listen": ["0.0.0.0:1", "[::]:1"]}, ("listen", 1), "both families"),
        ({"listen": ["[::]:1", "[::1]:1"]}, ("listen", 1), "both families"),
        ({"listen": ["h:1", "127.0.0.1:9090"]}, ("listen",), "same address"),
        ({"listen": ["h:1", "h:2"], "admin_listen": "h:2"}, ("admin_listen",), "same address"),
        ({"workers": 2}, ("workers",), "needs a shared limits.store"),
        ({"workers": 2, "limits": {"store": "memory"}}, ("workers",), "needs a shared limits.store"),
        ({"workers": 257}, ("workers",), "at most 256"),
        ({"workers": "0"}, ("workers",), "at least 1"),
        (
            {"limits": {"store": "redis+sentinel://h:26379"}},
            ("limits", "store"),
            "the service that the sentinels watch",
        ),
        ({"limits": {"store": "redis-sentinel://h/x"}}, ("limits", "store"), "is written redis+sentinel://"),
        ({"limits": {"store": "redis+sentinels://h/x"}}, ("limits", "store"), "is written rediss+sentinel://"),
        ({"limits": {"store": "valkeys-cluster://h"}}, ("limits", "store"), "is written rediss+cluster:// for Valk"),
        ({"limits": {"store": "redis+cluster://h/1"}}, ("limits", "store"), "a Cluster has only one"),
        ({"limits": {"store": "redis+cluster://h,:1"}}, ("limits", "store"), "must name a host"),
        ({"limits": {"store": "redis+cluster://h,,g"}}, ("limits", "store"), "must name a host"),
        ({"limits": {"store": "redis+cluster://h:99999"}}, ("limits", "store"), "is not a URL"),
        ({"limits": {"store": "redis+cluster://h?sentinel_password=x"}}, ("limits", "store"), "an option that is not"),
        ({"limits": {"store": "redis+cluster://h?ca_file=/x"}}, ("limits", "store"), "an option that is not known"),
        ({"limits": {"store": "rediss://h?certificate=/x"}}, ("limits", "store"), "certificate that names no readable"),
        ({"limits": {"store": "redis://a:6379,b:6379/0"}}, ("limits", "store"), "must name one server; several"),
        ({"limits": {"store": "valkey://h"}}, ("limits", "store"), "is written redis://"),
        ({"limits": {"store": "http://h"}}, ("limits", "store"), "must be memory"),
        ({"limits": {"store": "redis://"}}, ("limits", "store"), "must name a host"),
        ({"limits": {"store": "redis://h:"}}, ("limits", "store"), "must name a host"),
        ({"limits": {"store": "redis://h:x"}}, ("limits", "store"), "is not a URL"),
        ({"limits": {"store": "redis://:p#q@h"}}, ("limits", "store"), "percent-encoded"),
        ({"limits": {"store": "redis://u@h"}}, ("limits", "store"), "a user without a password"),
        ({"limits": {"store": "redis://h/zero"}}, ("limits", "store"), "database by a number"),
        ({"limits": {"store": "redis://h?db=1"}}, ("limits", "store"), "none can follow"),
        ({"limits": {"store": "rediss://h?ca_file=/none"}}, ("limits", "store"), "names no readable file"),
        (
            {"limits": {"store": "rediss://h?verify=no"}},
            ("limits", "store"),
            "only ca_file, certificate, key can follow",
        ),
        ({"limits": {"store": "unix://run/redis.sock"}}, ("limits", "store"), "absolute path"),
        ({"limits": {"store": "unix:///run/redis.sock?db=x"}}, ("limits", "store"), "database by a number"),
        ({"limits": {"store": "redis:h"}}, ("limits", "store"), "must be memory"),
        ({"limits": {"store": "disk"}}, ("limits", "store"), "must be memory"),
        ({"playground": "yes"}, ("playground",), "true or false"),
        ({"client_timeouts": {"header": "off"}}, ("client_timeouts", "header"), "duration"),
        ({"timeouts": {"idle": "0s"}}, ("timeouts", "idle"), "more than 0"),
        ({"cors": {"origins": ["*"], "credentials": True}}, ("cors", "credentials"), "must be false"),
        ({"cors": {"headers": ["X Y"]}}, ("cors", "headers", 0), "not a header's name"),
        ({"cors": {"headers": ["X-Y", "*"]}}, ("cors", "headers"), "must have `*` alone"),
        ({"cors": {"headers": ["X-*"]}}, ("cors", "headers", 0), "not a header's name"),
        ({"cors": {"headers": ["x"] * 65}}, ("cors", "headers"), "at most 64"),
        ({"cors": {"expose": ["*"]}}, ("cors", "expose", 0), "not a header's name"),
        ({"cors": {"expose": ["X-Y\r\nZ: 1"]}}, ("cors", "expose", 0), "one line"),
        ({"cors": {"expose": "X-Y"}}, ("cors", "expose"), "must be a list"),
        ({"cors": {"origins": ["https://app.example.com/"]}}, ("cors", "origins", 0), "not an origin"),
        ({"cors": {"origins": ["https://*.example.com"]}}, ("cors", "origins", 0), "not an origin"),
        ({"log": {"level": "warn"}}, ("log", "level"), "must be one of"),
        ({"plans": []}, ("plans",), "mapping"),
        ({"plans": {"p": {"concurrent_streams": 0}}}, ("plans", "p", "concurrent_streams"), "at least 1"),
        ({"heartbeat": None}, ("heartbeat",), "has no value"),
    ],
)
def test_settings_faulty(keys: dict[str, Any], location: tuple[str | int, ...], words: str) -> None:
    """A reference to what nobody defined, or a value out of place, is refused where it stands."""
    assert words in faults(**keys)[location]


@pytest.mark.parametrize("origin", ["*", "null", "https://app.example.com", "http://localhost:3000", "http://[::1]:1"])
def test_cors_origin_sound(origin: str) -> None:
    """An origin in the browsers' spelling is taken as it is."""
    assert settings(cors={"origins": [origin]}).cors.origins == (origin,)


def test_admin_listen_off() -> None:
    """`off` means no admin listener, and any port is free for the clients then."""
    assert settings(admin_listen="off", listen="0.0.0.0:9090").admin_listen is None


def test_settings_faults_at_once() -> None:
    """Faults of fields and faults between fields are told together, a misspelt key once."""
    found = faults(lissten="x", default_upstream="opnai", max_body="1", upstreams=upstream(api_key=None, api_kye="x"))
    assert set(found) == {
        ("lissten",),
        ("default_upstream",),
        ("max_body",),
        ("upstreams", "openai", "api_kye"),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://h", ((("h", 6379),), None, 0, None, None, False)),
        ("redis://h:1/12", ((("h", 1),), None, 12, None, None, False)),
        ("redis://[::1]:6380/", ((("::1", 6380),), None, 0, None, None, False)),
        ("redis://:p%40%2Fss@h", ((("h", 6379),), None, 0, None, "p@/ss", False)),
        ("rediss://u%3A:p@h/1", ((("h", 6379),), None, 1, "u:", "p", True)),
        ("unix:///run/redis.sock", ((), "/run/redis.sock", 0, None, None, False)),
        ("unix://u:p@/run/redis.sock?db=3", ((), "/run/redis.sock", 3, "u", "p", False)),
    ],
)
def test_store_url(text: str, expected: tuple[object, ...]) -> None:
    """A store's URL is read as redis-py reads it; it is shown without credentials."""
    url = settings(limits={"store": text}).limits.store
    assert not isinstance(url, str)
    password = None if url.password is None else url.password.get_secret_value()
    assert (url.nodes, url.path, url.db, url.user, password, url.is_tls) == expected
    assert "p@" not in str(url)
    assert "p@" not in repr(url)
    assert "u:" not in str(url)


@pytest.mark.parametrize(
    ("text", "shown", "expected"),
    [
        (
            "redis+sentinel://u:p%40@a,b:26379/limits/2?sentinel_password=s%2F3",
            "redis+sentinel://a:26379,b:26379/limits, database 2",
            ("sentinel", (("a", 26379), ("b", 26379)), "limits", 2, "p@", "s/3", False),
        ),
        (
            "redis+sentinel://a/limits",
            "redis+sentinel://a:26379/limits, database 0",
            ("sentinel", (("a", 26379),), "limits", 0, None, None, False),
        ),
        (
            "rediss+sentinel://[::1]:1,b:2,b:2/limits",
            "rediss+sentinel://[::1]:1,b:2/limits, database 0",
            ("sentinel", (("::1", 1), ("b", 2)), "limits", 0, None, None, True),
        ),
        (
            "redis+cluster://:p@a,b,c:7000",
            "redis+cluster://a:7000,b:7000,c:7000",
            ("cluster", (("a", 7000), ("b", 7000), ("c", 7000)), "", 0, "p", None, False),
        ),
        (
            "rediss+cluster://a:1,b/0",
            "rediss+cluster://a:1,b:6379",
            ("cluster", (("a", 1), ("b", 6379)), "", 0, None, None, True),
        ),
    ],
)
def test_store_url_of_several_nodes(text: str, shown: str, expected: tuple[object, ...]) -> None:
    """Sentinels and Cluster nodes are a list; the last port is for all that have none; no credential is shown."""
    url = settings(limits={"store": text}).limits.store
    assert not isinstance(url, str)
    passwords = [secret and secret.get_secret_value() for secret in (url.password, url.sentinel_password)]
    assert (url.kind, url.nodes, url.service, url.db, *passwords, url.is_tls) == expected
    assert str(url) == shown
    assert "p@" not in repr(url)
    assert "s/3" not in repr(url)


def test_store_url_certificates(tmp_path: Path) -> None:
    """A client certificate and the authority that replaces the system's are files, for every kind of address."""
    for name in ("ca.pem", "own.pem", "own.key"):
        (tmp_path / name).touch()
    options = f"ca_file={tmp_path}/ca.pem&certificate={tmp_path}/own.pem&key={tmp_path}/own.key"
    for address in ("rediss://h", "rediss+sentinel://h/service", "rediss+cluster://h"):
        url = settings(limits={"store": f"{address}?{options}"}).limits.store
        assert not isinstance(url, str)
        files = [url.ca_file, url.certificate, url.key]
        assert [Path(file).name for file in files if file] == ["ca.pem", "own.pem", "own.key"]


@pytest.mark.parametrize(
    ("heartbeat", "own", "is_fine"),
    [
        pytest.param("15s", None, True, id="heartbeat for all"),
        pytest.param("off", "15s", True, id="heartbeat of an upstream"),
        pytest.param("off", "off", False, id="heartbeats off"),
        pytest.param(None, None, False, id="no heartbeat"),
    ],
)
def test_early_heartbeat_needs_a_heartbeat(heartbeat: str | None, own: str | None, *, is_fine: bool) -> None:
    """An early heartbeat that would never come is a fault, not a surprise."""
    more = {} if heartbeat is None else {"heartbeat": heartbeat}
    upstreams = upstream() if own is None else upstream(heartbeat=own)
    if is_fine:
        assert settings(early_heartbeat=True, upstreams=upstreams, **more).early_heartbeat
    else:
        with pytest.raises(ValidationError, match="early_heartbeat"):
            settings(early_heartbeat=True, upstreams=upstreams, **more)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://proxy.example", EgressProxy("http", "proxy.example", 1080)),
        ("http://proxy.example:3128/", EgressProxy("http", "proxy.example", 3128)),
        ("http://u:p%40%2F@[2001:db8::1]:8080", EgressProxy("http", "2001:db8::1", 8080, "u", "p@/")),
        ("http://u@proxy.example:1", EgressProxy("http", "proxy.example", 1, "u")),
        ("socks5h://proxy.example.:1", EgressProxy("socks5", "proxy.example", 1)),
    ],
)
def test_egress_proxy(text: str, expected: EgressProxy) -> None:
    """A proxy's URL is read with its credentials, which no text of it shows."""
    made = settings(egress_proxy=text)
    assert made.egress_proxy == expected
    assert "p@" not in f"{made!r} {made} {made.egress_proxy} {made.egress_proxy!r}"
