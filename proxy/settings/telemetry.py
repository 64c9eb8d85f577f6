"""`telemetry`: traces and metrics by OpenTelemetry, and what the standard's variables say of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field, PlainValidator, SecretStr, WithJsonSchema

from proxy.settings.model import Contradiction, Model, default
from proxy.settings.scalars import BaseUrl, Flag, text_schema
from proxy.settings.secret_values import read_secret
from proxy.settings.units import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# RFC 2104 §3: as long as the digest; here half of it is used.
LEAST_KEY_BYTES: Final = 16
_SHARE: Final = re.compile(r"(0(\.[0-9]{1,9})?|1(\.0{1,9})?)", re.ASCII)


def read_sample(value: object) -> float:
    """Read the share of traces that are recorded: a number from 0 to 1.

    Raises:
        InvalidValue: Anything else.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, float):
        text = str(text)
    if isinstance(text, str) and _SHARE.fullmatch(text):
        return float(text)
    raise InvalidValue("must be a number from 0 to 1, such as 0.1")


Sample = Annotated[
    float,
    PlainValidator(read_sample),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1, "examples": [0.1]}),
]


def _read_digest_key(value: object) -> SecretStr:
    secret = read_secret(value)
    if len(secret.get_secret_value().encode()) < LEAST_KEY_BYTES:
        raise InvalidValue(f"must have at least {LEAST_KEY_BYTES} bytes, such as `openssl rand -hex 32` prints")
    return secret


DigestKey = Annotated[SecretStr, PlainValidator(_read_digest_key), text_schema(minLength=LEAST_KEY_BYTES)]


class TelemetrySettings(Model):
    """Traces and metrics by OpenTelemetry; both off unless asked for."""

    otlp: BaseUrl | None = Field(
        None, description="The collector's URL for OTLP over HTTP, without /v1/…; else OTEL_EXPORTER_OTLP_ENDPOINT."
    )
    traces: Flag = Field(default=False, description="Whether exchanges are traced, and sent to the collector.")
    metrics: Flag = Field(
        default=False,
        description="Whether the GenAI histograms are kept: on /metrics, and pushed where there is `otlp`.",
    )
    sample: Sample = Field(
        default("1.0"), description="The share of traces recorded, of those that begin here; others as the caller says."
    )
    user: Literal["none", "hashed", "plain"] = Field(
        "none", description="Whether spans name the user: not at all, by a digest, or as the token does."
    )
    user_key: DigestKey | None = Field(
        None,
        description="The key of the digests of `user: hashed`: without it, names that are guessed can be verified.",
    )
    semconv: Literal["1.41", "latest"] = Field(
        "1.41", description="Names by the conventions that boards know, or those of semantic-conventions-genai."
    )

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[Contradiction]:
        """Refuse a key for digests that are not made."""
        if data.get("user_key") is not None and data.get("user") != "hashed":
            yield ("user_key",), InvalidValue("has no effect without `user: hashed`")


@dataclass(frozen=True, slots=True)
class OtlpVariables:
    """What the variables OTEL_EXPORTER_OTLP_… say of one kind of telemetry. Headers are secrets."""

    url: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 10.0
    is_gzipped: bool = False
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None

    def __repr__(self) -> str:
        """Without the headers."""
        return f"OtlpVariables(url={self.url!r})"


@dataclass(frozen=True, slots=True)
class OtelVariables:
    """What the standard's variables say, where `telemetry` is on.

    `sampler` is None where they name none: its ratio, and whether callers' decisions count.
    """

    is_disabled: bool = False
    traces: OtlpVariables = OtlpVariables()
    metrics: OtlpVariables = OtlpVariables()
    resource: tuple[tuple[str, str], ...] = ()
    sampler: tuple[float, bool] | None = None
    is_latest: bool = False
    most_waiting: int = 2048
    most_in_batch: int = 512
    delay_s: float = 5.0
    metrics_every_s: float = 60.0

    @property
    def secrets(self) -> Mapping[str, str]:
        """The headers of both kinds."""
        return dict((*self.traces.headers, *self.metrics.headers))
