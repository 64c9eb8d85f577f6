"""Builds from settings what telemetry needs: where it goes, what is recorded, under which names."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, NamedTuple

from proxy import __version__
from proxy.exchange.telemetry import Telemetry
from proxy.observability.exporter import Batching, Exporter
from proxy.observability.gen_ai import GenAiMetrics
from proxy.observability.otlp_http import Target, post_nothing
from proxy.observability.tracing import Sampling, Tracer
from proxy.settings.build_prices import is_plain, listed_models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.observability.gen_ai import Semconv
    from proxy.settings import Settings
    from proxy.settings.telemetry import OtlpVariables

# Of the names in the spans and metrics; those of `latest` have no published schema yet.
_SCHEMA = "https://opentelemetry.io/schemas/1.41.0"


class Built(NamedTuple):
    """What telemetry is on: its hook in every exchange, and where any, what is sent and counted."""

    telemetry: Telemetry
    exporter: Exporter | None
    metrics: GenAiMetrics | None
    metrics_every_s: float


def build_telemetry(settings: Settings, redact: Callable[[bytes], bytes]) -> Built | None:
    """Build it for one worker, in its process; None where neither traces nor metrics are on. The caller opens it."""
    telemetry, variables = settings.telemetry, settings.otel
    if variables.is_disabled or not (telemetry.traces or telemetry.metrics):
        return None
    semconv = semconv_of(settings)
    metrics = (
        GenAiMetrics(semconv, frozenset(filter(is_plain, (*settings.prices, *listed_models(settings)))))
        if telemetry.metrics
        else None
    )
    targets = targets_of(settings)
    exporter = None
    if targets:
        exporter = Exporter(
            traces=targets.get("traces"),
            metrics=targets.get("metrics"),
            batching=Batching(variables.most_waiting, variables.most_in_batch, variables.delay_s),
            resource=_resource(settings),
            version=__version__,
            schema_url=_SCHEMA if semconv == "1.41" else "",
            redact=redact,
        )
    hook = Telemetry(
        tracer=Tracer(sampling_of(settings)) if telemetry.traces else None,
        spans=exporter,
        metrics=metrics,
        user=telemetry.user,
        user_key=None if telemetry.user_key is None else telemetry.user_key.get_secret_value().encode(),
        semconv=semconv,
    )
    return Built(hook, exporter, metrics, variables.metrics_every_s)


def sampling_of(settings: Settings) -> Sampling:
    """Which traces are recorded: by `sample`, else by the variables' sampler."""
    found = settings.otel.sampler
    return Sampling(settings.telemetry.sample) if found is None else Sampling(*found)


def semconv_of(settings: Settings) -> Semconv:
    """Whose names are used: by `semconv`, else by the variables."""
    if settings.otel.is_latest and "semconv" not in settings.telemetry.model_fields_set:
        return "latest"
    return settings.telemetry.semconv


def targets_of(settings: Settings) -> dict[str, Target]:
    """Where traces and metrics go, those that are on and have an address."""
    telemetry, variables = settings.telemetry, settings.otel
    if variables.is_disabled:
        return {}
    kinds = (("traces", telemetry.traces, variables.traces), ("metrics", telemetry.metrics, variables.metrics))
    return {
        kind: _target(url, found)
        for kind, is_on, found in kinds
        if is_on and (url := found.url if telemetry.otlp is None else f"{telemetry.otlp}/v1/{kind}") is not None
    }


def ask_collector(settings: Settings, kind: str) -> str:
    """Ask the collector of a kind of `targets_of` whether it takes what is sent: what went wrong, empty for nothing.

    Blocks for as long as the exporter would wait.

    Raises:
        ImportError: the extra `otel` is not installed.
    """
    return post_nothing(targets_of(settings)[kind], __version__)


def telemetry_secrets(settings: Settings) -> Iterator[str]:
    """Yield the key of users' digests, the headers that the collector wants, and the credentials in them."""
    if settings.telemetry.user_key is not None:
        yield settings.telemetry.user_key.get_secret_value()
    for value in settings.otel.secrets.values():
        yield from {value, value.rpartition(" ")[2]}


def _target(url: str, found: OtlpVariables) -> Target:
    certificate: tuple[str, str] | str | None = found.client_certificate
    if found.client_certificate is not None and found.client_key is not None:
        certificate = (found.client_certificate, found.client_key)
    return Target(url, found.headers, found.timeout_s, found.is_gzipped, found.certificate or True, certificate)


def _resource(settings: Settings) -> dict[str, str | int]:
    """What sends: each worker is an instance of its own, because each counts for itself."""
    return {
        "service.name": "forward-sse",
        "service.version": __version__,
        "service.instance.id": str(uuid.uuid4()),
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "forward-sse",
        "telemetry.sdk.version": __version__,
        **dict(settings.otel.resource),
        "process.pid": os.getpid(),
    }
