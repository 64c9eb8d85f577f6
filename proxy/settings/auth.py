"""Authentication settings: issuers of access tokens and their keys, API keys, other places of credentials.

Each issuer lists its algorithms, which must fit its one source of keys (RFC 8725 §3.1): a verifier that accepts both
HMAC and public keys would accept a token signed by HMAC with the public key.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from proxy.settings.key_sets import AuthoritiesFile, KeySetUrl, placeholder_faults, source_faults
from proxy.settings.model import Contradiction, Model, closest, default, repeated, sequence
from proxy.settings.scalars import Flag, Text, at_most, not_empty, pattern_schema, read_text, text_schema
from proxy.settings.secret_values import Secret, check_ends, read_secret
from proxy.settings.units import InvalidValue, valid_or_none
from proxy.settings.ways import OwnCertificate, OwnEgress, OwnServerName  # noqa: TC001 - pydantic reads the annotation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# RFC 7518 §3.2: the key is at least as long as the hash.
HMAC_SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS = (*HMAC_SECRET_BYTES, *_RSA_ALGORITHMS, "ES256", "ES384", "ES512", "EdDSA")
_CURVES = {"secp256r1": ("ES256",), "secp384r1": ("ES384",), "secp521r1": ("ES512",)}
# RFC 7518 §3.3.
_MIN_RSA_BITS = 2048
_SOURCES = ("jwks_url", "discovery", "public_key", "secret")
# The issuer of API-key users: a token issuer of that name could impersonate them.
_API_KEY_ISSUER = "key"
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
_MAX_PEM_CHARACTERS = 16_384


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _read_algorithm(value: object) -> str:
    if isinstance(value, str) and value in ALGORITHMS:
        return value
    if isinstance(value, str) and value.lower() == "none":
        raise InvalidValue("`none` would let unsigned tokens in; it is never accepted")
    raise InvalidValue(f"must be one of {', '.join(ALGORITHMS)}", suggestion=closest(value, ALGORITHMS))


def _read_scope(value: object) -> str:
    text = read_text(value)
    if _SCOPE.fullmatch(text) is None:  # RFC 6749 §3.3
        raise InvalidValue('must be one scope: visible ASCII without spaces, `"` and `\\`')
    return text


def _read_sha256(value: object) -> str:
    if isinstance(value, str):
        check_ends(value)
    if not isinstance(value, str) or re.fullmatch(r"[0-9A-Fa-f]{64}", value) is None:
        raise InvalidValue("must be the key's SHA-256, 64 hex digits in quotes, as `forward-sse key new` prints it")
    return value.lower()


def algorithms_of_pem(pem: str) -> tuple[str, ...]:
    """Return the JWT algorithms that a public key can verify.

    Raises:
        InvalidValue: Not a public key in PEM, too weak, or of an unsupported type. Never contains the value.
    """
    if "PRIVATE KEY" in pem:
        raise InvalidValue("is a private key; only the public key belongs here")
    if len(pem) > _MAX_PEM_CHARACTERS:
        raise InvalidValue("is too long for a public key")
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise InvalidValue("is not a public key in PEM (-----BEGIN PUBLIC KEY-----)") from exc
    match key:
        case rsa.RSAPublicKey() if key.key_size < _MIN_RSA_BITS:
            raise InvalidValue(f"is an RSA key of fewer than {_MIN_RSA_BITS} bits")
        case rsa.RSAPublicKey():
            return _RSA_ALGORITHMS
        case ec.EllipticCurvePublicKey() if key.curve.name in _CURVES:
            return _CURVES[key.curve.name]
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            return ("EdDSA",)
        case _:
            raise InvalidValue("is not a kind of key that tokens are signed with here (RSA, EC, Ed25519)")


def _read_pem(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidValue("must be text: a public key in PEM, or file:/path")
    check_ends(value.rstrip("\r\n"))  # line ends are PEM's own
    algorithms_of_pem(value)
    return value


PublicKey = Annotated[str, PlainValidator(_read_pem), text_schema()]
Algorithm = Annotated[str, PlainValidator(_read_algorithm), WithJsonSchema({"enum": list(ALGORITHMS)})]
Scope = Annotated[str, PlainValidator(_read_scope), text_schema()]
Sha256 = Annotated[str, PlainValidator(_read_sha256), pattern_schema("[0-9A-Fa-f]{64}")]
# RFC 7519 §4.1.4: "usually no more than a few minutes"; more would accept expired tokens.
Leeway = Annotated[float, PlainValidator(at_most(300.0, "5m")), WithJsonSchema({"type": "string", "examples": ["30s"]})]
Audience = Annotated[
    tuple[Text, ...],
    not_empty(),
    BeforeValidator(_one_or_many),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]


class JwtIssuer(Model):
    """An issuer of access tokens, and its one source of keys."""

    issuer: Text = Field(description="The `iss` of its tokens, compared exactly.")
    audience: Audience = Field(description="A token must be for one of these; a string or a list.")
    algorithms: Annotated[tuple[Algorithm, ...], not_empty()] = Field(
        description="The signature algorithms accepted from this issuer."
    )
    jwks_url: KeySetUrl | None = Field(
        None, description="Where its key set is; https://, or http:// to loopback or with allow_http."
    )
    discovery: Flag = Field(default=False, description="Find the key set by OpenID discovery below the issuer's URL.")
    allow_http: Flag = Field(default=False, description="Whether the key set may come by http:// from another machine.")
    ca_file: AuthoritiesFile | None = Field(
        None, description="A PEM file of the authorities trusted for the key set's server, instead of the system's."
    )
    egress_proxy: OwnEgress = None
    client_certificate: OwnCertificate = None
    server_name: OwnServerName = None
    public_key: PublicKey | None = Field(None, description="Its one public key, PEM text or file:/path.")
    secret: Secret | None = Field(None, description="The shared HMAC secret: 32, 48 or 64 bytes for HS256, 384, 512.")
    audience_claim: Text = Field(
        "aud", description="The claim that names the audience, such as `client_id` (Cognito) or `azp` (Clerk)."
    )
    user_claim: Text = Field(
        "sub", description="The claim that names the user; a whole number counts as its text, except in `sub`."
    )
    plan_claim: Text = Field(
        "plan",
        description="The claim that names the plan, or a path such as `app_metadata.plan`; of a list the first plan "
        "that is known. Absent, null or unknown means `default`.",
    )
    required_scopes: tuple[Scope, ...] = Field((), description="Scopes that a token must have, all of them.")
    leeway_s: Leeway = Field(default("30s"), description="Accepted difference of clocks, at most 5m.")

    @property
    def source(self) -> Literal["jwks_url", "discovery", "public_key", "secret"]:
        """Which of the four sources of keys the issuer has."""
        if self.jwks_url is not None:
            return "jwks_url"
        if self.public_key is not None:
            return "public_key"
        return "secret" if self.secret is not None else "discovery"

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Check for exactly one source of keys, and algorithms that fit it."""
        if data.get("issuer") == _API_KEY_ISSUER:
            yield ("issuer",), InvalidValue("`key` is the issuer of API-key users; a token issuer must not share it")
        yield from placeholder_faults(data.get("issuer"))
        sources = [name for name in _SOURCES if name in data and data[name] not in (False, "false", None)]
        if len(sources) != 1:
            found = f"has {' and '.join(sources)}" if sources else "has no source of keys"
            words = f"{found}; give exactly one of jwks_url, discovery: true, public_key, secret"
            yield (*sources[1:2],), InvalidValue(words)
            return
        yield from _misfits(sources[0], data)


def _misfits(source: str, data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check that an issuer's other keys fit its only source of keys."""
    yield from source_faults(source, data)
    algorithms = [name for name in sequence(data.get("algorithms")) if isinstance(name, str)]
    fitting: tuple[str, ...] = tuple(name for name in ALGORITHMS if name not in HMAC_SECRET_BYTES)
    value = data[source]
    if source == "secret":
        fitting = tuple(HMAC_SECRET_BYTES)
        needed = max((HMAC_SECRET_BYTES.get(name, 0) for name in algorithms), default=0)
        secret = valid_or_none(read_secret, value)
        if secret is not None and len(secret.get_secret_value().encode()) < needed:
            yield ("secret",), InvalidValue(f"must have at least {needed} bytes for its algorithms (RFC 7518 §3.2)")
    elif source == "public_key" and isinstance(value, str):
        fitting = valid_or_none(algorithms_of_pem, value) or ALGORITHMS
    for index, name in enumerate(sequence(data.get("algorithms"))):
        if name in ALGORITHMS and name not in fitting:
            which = "this public_key" if source == "public_key" else source
            words = f"{name} does not go with {which}; one of {', '.join(fitting)}"
            yield ("algorithms", index), InvalidValue(words)


class ApiKey(Model):
    """An API key, by its SHA-256 digest."""

    user: Text = Field(description="Who it is; API-key users are apart from the users of tokens.")
    sha256: Sha256 = Field(description="SHA-256 of the key, 64 hex digits; `forward-sse key new` prints it.")
    plan: Text = Field("default", description="The user's plan.")


class Auth(Model):
    """All ways to authenticate."""

    jwt: tuple[JwtIssuer, ...] = Field((), description="The issuers whose access tokens are accepted.")
    api_keys: tuple[ApiKey, ...] = Field((), description="The API keys that are accepted.")
    envelope_passcode: Flag = Field(
        default=False, description="Whether an envelope's `passcode` may hold an API key when no header does."
    )
    query_token: Flag = Field(default=False, description="Whether `?access_token=` is accepted; it ends up in logs.")

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Check that there is a way to authenticate, and no issuer or API key twice."""
        if not data.get("jwt") and not data.get("api_keys"):
            yield (), InvalidValue("lets nobody in: give `jwt` or `api_keys`, or `auth: none` to let everybody in")
        yield from repeated(data, "jwt", "issuer", "issuer")
        yield from repeated(data, "api_keys", "sha256", "key")


def read_auth(value: Any) -> Any:
    """Read `auth`: `none` turns authentication off; an empty value does not.

    Raises:
        InvalidValue: Neither `none` nor a mapping.
    """
    if value == "none":
        return None
    if value is None or isinstance(value, str | bool | int):
        suggestion = "none" if isinstance(value, bool) or closest(value, ["none"]) else None
        raise InvalidValue("must be a mapping with `jwt` or `api_keys`, or the word none", suggestion=suggestion)
    return value
