"""Keys that verify signatures, each bound to the algorithms it may be used with.

Pure: from a secret, a PEM text or a JWK Set document to keys. The binding is made here, once, when a key is loaded, and
checked again at every use, because most forgeries are a good key used with another algorithm (RFC 8725 §2.1, §3.1).
Fetching is left to `jwks`, caching and rotation to `keysets`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm, get_default_algorithms
from jwt.exceptions import InvalidKeyError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jwt.algorithms import Algorithm

_CURVES: Final = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_JWK_CURVES: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_ED25519: Final = frozenset({"EdDSA", "Ed25519"})  # RFC 9864 gave EdDSA with this curve a name of its own
_FAMILIES: Final = {
    **{f"{family}{bits}": family for family in ("HS", "RS", "PS", "ES") for bits in (256, 384, 512)},
    **dict.fromkeys(_ED25519, "Ed"),
}
SUPPORTED_ALGORITHMS: Final = frozenset(_FAMILIES)

_PYJWT: Final = get_default_algorithms()
_VERIFIERS: Final[dict[str, Algorithm]] = {
    name: _PYJWT["EdDSA" if name == "Ed25519" else name] for name in SUPPORTED_ALGORITHMS
}

# NIST SP 800-131A's floor. The ceilings bound the time of one verification whatever an issuer publishes.
_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 8192
_MIN_RSA_EXPONENT: Final = 3
_MAX_RSA_EXPONENT: Final = 2**32
_MAX_JWK_MEMBER_CHARS: Final = 2048
MAX_KEYS: Final = 100

# RFC 7517 §4, RFC 7518 §6: members that only a private or a symmetric key has.
_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class KeyRefusedError(ValueError):
    """A key is not accepted; the message has the reason, and nothing of the key."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A key, the algorithms that it may verify, and a fingerprint by which two loads of it are equal."""

    kid: str | None
    algorithms: frozenset[str]
    fingerprint: bytes = field(repr=False)
    material: Any = field(repr=False, compare=False)

    def verifies(self, algorithm: str, signing_input: bytes, signature: bytes) -> bool:
        """Verify a signature; False for an algorithm that the key is not bound to."""
        if algorithm not in self.algorithms:
            return False
        return _VERIFIERS[algorithm].verify(signing_input, self.material, signature)


def check_algorithms(algorithms: Iterable[str]) -> frozenset[str]:
    """Check the algorithms' names, and return them as a set.

    Raises:
        ValueError: There are none, one is unknown, or HMAC stands beside public keys (CVE-2022-29217: a public key
            must never be taken for a secret).
    """
    names = frozenset(algorithms)
    unknown = sorted(names - SUPPORTED_ALGORITHMS)
    if not names or unknown:
        raise ValueError(f"unknown algorithms: {', '.join(unknown)}" if unknown else "no algorithms")
    families = {_FAMILIES[name] for name in names}
    if "HS" in families and len(families) > 1:
        raise ValueError("HS algorithms cannot stand beside public-key algorithms")
    return names


def secret_key(secret: str | bytes, algorithms: Iterable[str]) -> VerificationKey:
    """An HMAC key.

    Raises:
        KeyRefusedError: Not only HS algorithms, a secret shorter than the longest hash (RFC 7518 §3.2), or one
            that is a public key or certificate: all the operator's fault.
    """
    names = check_algorithms(algorithms)
    if {_FAMILIES[name] for name in names} != {"HS"}:
        raise KeyRefusedError("a secret goes with HS256, HS384 and HS512 only")
    data = secret.encode() if isinstance(secret, str) else secret
    hash_bytes = max(int(name[2:]) for name in names) // 8
    if len(data) < hash_bytes:
        raise KeyRefusedError(f"the secret is shorter than the {hash_bytes} bytes its algorithms need")
    try:
        material = _VERIFIERS["HS256"].prepare_key(data)
    except InvalidKeyError:
        # `from None`: the cause belongs to a secret.
        raise KeyRefusedError("the secret is a public key, certificate or JWK") from None
    return VerificationKey(None, names, hashlib.sha256(data).digest(), material)


def pem_key(pem: str | bytes, algorithms: Iterable[str]) -> VerificationKey:
    """A public key from PEM (SubjectPublicKeyInfo or PKCS #1).

    Raises:
        KeyRefusedError: Not a public key in PEM, a weak one, or one that cannot do every algorithm listed, or that
            two families would share: all the operator's fault.
    """
    names = check_algorithms(algorithms)
    try:
        key = load_pem_public_key(pem.encode() if isinstance(pem, str) else pem)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyRefusedError("not a public key in PEM") from None
    bound = _bind(key, names)
    if bound != names:
        raise KeyRefusedError("the public key does not fit all of the algorithms")
    return _public(None, bound, key)


def jwks_keys(document: object, algorithms: frozenset[str]) -> tuple[tuple[VerificationKey, ...], tuple[str, ...]]:
    """Read the usable keys of a JWK Set, and for each other key the reason why it is not used (RFC 7517 §5).

    One bad key never spoils the others. At most `MAX_KEYS` members are looked at.

    Raises:
        KeyRefusedError: Not a JWK Set at all.
    """
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise KeyRefusedError(_what_else(document))
    keys: list[VerificationKey] = []
    skipped: list[str] = []
    for index, jwk in enumerate(members[:MAX_KEYS]):
        try:
            keys.append(_jwk_key(jwk, algorithms))
        except KeyRefusedError as refusal:
            skipped.append(f"keys[{index}]: {refusal}")
        except (ValueError, TypeError, OverflowError, InvalidKeyError, UnsupportedAlgorithm):
            skipped.append(f"keys[{index}]: not a valid key")
    if len(members) > MAX_KEYS:
        skipped.append(f"keys[{MAX_KEYS}:]: more than {MAX_KEYS} keys")
    return tuple(keys), tuple(skipped)


def _what_else(document: object) -> str:
    """Name the usual mistake that stands in place of a JWK Set."""
    members = document if isinstance(document, dict) else {}
    if isinstance(members.get("jwks_uri"), str):
        return "a discovery document, not a JWK Set (use its jwks_uri, or `discovery: true`)"
    if "kty" in members:
        return "a single JWK, not a JWK Set"
    pems = [text for text in members.values() if isinstance(text, str) and text.startswith("-----BEGIN CERTIFICATE")]
    if pems and len(pems) == len(members):
        # Google's /oauth2/v1/certs and Firebase's; both have a JWK Set at another URL.
        return "a map of x509 certificates, not a JWK Set (the issuer publishes one at another URL)"
    return "not a JWK Set"


def _jwk_key(jwk: object, algorithms: frozenset[str]) -> VerificationKey:
    if not isinstance(jwk, dict):
        raise KeyRefusedError("not an object")
    kid, use, operations, declared = (jwk.get(name) for name in ("kid", "use", "key_ops", "alg"))
    if kid is not None and not isinstance(kid, str):
        raise KeyRefusedError("kid is not a string")
    if not _PRIVATE_MEMBERS.isdisjoint(jwk):
        raise KeyRefusedError("a private or symmetric key is published")
    if use is not None and use != "sig":
        raise KeyRefusedError("not for signatures")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        raise KeyRefusedError("not for verifying")
    if declared is not None:
        if not isinstance(declared, str):
            raise KeyRefusedError("alg is not a string")
        # Both names of Ed25519 say the same; any other `alg` narrows the key to itself.
        algorithms = algorithms & (_ED25519 if declared in _ED25519 else frozenset({declared}))
    if any(isinstance(jwk.get(name), str) and len(jwk[name]) > _MAX_JWK_MEMBER_CHARS for name in ("n", "e", "x", "y")):
        raise KeyRefusedError("a key far too large")
    key = _material(jwk)
    return _public(kid, _bind(key, algorithms), key)


def _material(jwk: dict[str, Any]) -> object:
    # PyJWT takes the numbers out of the members, cryptography checks them (RFC 8725 §3.4: points on the curve).
    match jwk.get("kty"):
        case "RSA":
            return RSAAlgorithm.from_jwk(jwk)
        case "EC" if jwk.get("crv") in _JWK_CURVES:
            return ECAlgorithm.from_jwk(jwk)
        case "OKP" if jwk.get("crv") == "Ed25519":
            return OKPAlgorithm.from_jwk(jwk)
        case _:  # RFC 7517 §5: unknown types SHOULD be ignored
            raise KeyRefusedError("a key type or curve that is not used here")


def _bind(key: object, algorithms: frozenset[str]) -> frozenset[str]:
    """Select the algorithms that this key may be used with: at least one, of one family."""
    match key:
        case rsa.RSAPublicKey():
            if not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
                raise KeyRefusedError(f"an RSA key of {key.key_size} bits")
            exponent = key.public_numbers().e
            if not _MIN_RSA_EXPONENT <= exponent <= _MAX_RSA_EXPONENT or exponent % 2 == 0:
                raise KeyRefusedError("a bad RSA exponent")
            fitting = {name for name in algorithms if _FAMILIES[name] in {"RS", "PS"}}
        case ec.EllipticCurvePublicKey():
            fitting = {name for name in algorithms if _CURVES.get(name) == key.curve.name}
        case ed25519.Ed25519PublicKey():
            fitting = {name for name in algorithms if name in _ED25519}
        case _:
            fitting = set()
    if not fitting:
        raise KeyRefusedError("none of the issuer's algorithms")
    if len({_FAMILIES[name] for name in fitting}) > 1:
        raise KeyRefusedError("RS and PS algorithms would share the key; its `alg` must say which")
    return frozenset(fitting)


def _public(kid: str | None, algorithms: frozenset[str], key: Any) -> VerificationKey:
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return VerificationKey(kid, algorithms, hashlib.sha256(der).digest(), key)


def decode_json(data: bytes) -> object:
    """Decode the JSON of an issuer's document.

    Raises:
        KeyRefusedError: Not JSON in UTF-8.
    """
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise KeyRefusedError("not JSON") from None
