"""`admin`: who may use the operator's listener. Without it the listener must be on loopback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainValidator

from proxy.settings.auth import Sha256  # noqa: TC001 - pydantic reads the annotation
from proxy.settings.listeners import ADMIN_LISTEN_DEFAULT, read_admin_listen
from proxy.settings.model import Contradiction, Model, closest, mapping, repeated, sequence
from proxy.settings.scalars import is_loopback, read_text, text_schema
from proxy.settings.units import InvalidValue, valid_or_none

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# It stands in every console cookie and in log lines.
MAX_NAME_CHARACTERS = 64
# Each is compared with each token that is sent.
_MAX_TOKENS = 64


def _read_name(value: object) -> str:
    text = read_text(value)
    if len(text) > MAX_NAME_CHARACTERS:
        raise InvalidValue(f"must be at most {MAX_NAME_CHARACTERS} characters")
    return text


OperatorName = Annotated[
    str,
    PlainValidator(_read_name),
    text_schema(maxLength=MAX_NAME_CHARACTERS),
]


class OperatorToken(Model):
    """An operator's token, by its SHA-256 digest."""

    name: OperatorName = Field(description="Whose it is; each of the operator's actions is logged with it.")
    sha256: Sha256 = Field(description="SHA-256 of the token; `forward-sse key new --admin` prints it.")
    role: Literal["view", "operate"] = Field(
        "view", description="`view` reads; `operate` may also stop streams and turn upstreams off and on."
    )


class Admin(Model):
    """The operators, and what is served without a token."""

    tokens: tuple[OperatorToken, ...] = Field(description="The tokens that the admin listener accepts.")
    metrics: Literal["open", "token"] = Field("open", description="Whether /metrics needs a token, too.")

    @property
    def is_open(self) -> bool:
        """Whether everybody is let in: `admin: open`."""
        return not self.tokens

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Check that there is a token, and no name or token twice."""
        tokens = sequence(data.get("tokens"))
        if "tokens" in data and data["tokens"] in ([], ()):
            yield ("tokens",), InvalidValue("lets nobody in: `forward-sse key new --admin NAME` prints an entry")
        if len(tokens) > _MAX_TOKENS:
            yield ("tokens",), InvalidValue(f"must be at most {_MAX_TOKENS}")
            return
        yield from repeated(data, "tokens", "name", "name")
        yield from repeated(data, "tokens", "sha256", "token")


def read_admin(value: Any) -> Any:
    """Read `admin`: the word `open` lets everybody in; an empty value does not.

    Raises:
        InvalidValue: Neither `open` nor a mapping.
    """
    if value == "open":
        return Admin.model_construct(tokens=(), metrics="open")
    if value is None or isinstance(value, str | bool | int):
        suggestion = "open" if closest(value, ["open"]) else None
        raise InvalidValue("must be a mapping with `tokens`, or the word open", suggestion=suggestion)
    return value


def admin_faults(data: Mapping[str, object]) -> Iterator[Contradiction]:
    """Check that a listener beyond loopback has `admin`, and that no user's API key is an operator's token."""
    address = valid_or_none(read_admin_listen, data.get("admin_listen", ADMIN_LISTEN_DEFAULT))
    if address is not None and "admin" not in data and not is_loopback(address.host):
        words = (
            "is reachable from other machines, so it needs `admin: {tokens: […]}` (`forward-sse key new --admin NAME` "
            "prints an entry), or `admin: open` to let everybody in"
        )
        yield ("admin_listen",), InvalidValue(words)
    keys = {_digest(key) for key in sequence(mapping(data.get("auth")).get("api_keys"))} - {""}
    for index, token in enumerate(sequence(mapping(data.get("admin")).get("tokens"))):
        if _digest(token) in keys:
            yield ("admin", "tokens", index, "sha256"), InvalidValue("is also one of auth.api_keys; make another token")


def _digest(entry: object) -> str:
    value = mapping(entry).get("sha256")
    return value.lower() if isinstance(value, str) else ""
