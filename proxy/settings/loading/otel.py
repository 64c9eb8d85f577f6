"""Reads OpenTelemetry's variables (`OTEL_…`), once, with the configuration; only where `telemetry` is on.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ An empty variable is none. Keys of the
file win. Times are milliseconds, as the standard says (the Python SDK takes some of them for seconds).
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import unquote

from proxy.settings.loading.faults import Fault, SourceLocation, dotted, place_of
from proxy.settings.scalars import is_field_name, split_http_url
from proxy.settings.telemetry import OtelVariables, OtlpVariables, read_sample
from proxy.settings.units import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.settings.loading.faults import SourceLocations
    from proxy.settings.server import Settings

_T = TypeVar("_T")

_PROTOCOL: Final = "http/protobuf"
_LATEST: Final = "gen_ai_latest_experimental"
_NO_PAIRS: Final[tuple[tuple[str, str], ...]] = ()
_WHOLE: Final = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_FIELD_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?")
# What the extra brings, of which nothing is loaded here.
_NEEDED: Final = ("opentelemetry.proto", "requests")
EXTRA: Final = "needs the extra `otel`, which is not installed: pip install 'forward-sse[otel]'"


def read_variables(
    settings: Settings, environ: Mapping[str, str], places: SourceLocations
) -> tuple[OtelVariables, list[Fault]]:
    """Return what the variables say, and a fault for each that is used and cannot be, or for what is missing."""
    telemetry = settings.telemetry
    if not (telemetry.traces or telemetry.metrics):
        return OtelVariables(), []
    found = _Variables(environ)
    # The standard: anything but `true` is false.
    if found.text("OTEL_SDK_DISABLED").lower() == "true":
        return OtelVariables(is_disabled=True), found.faults
    is_own = telemetry.otlp is not None
    traces = _otlp(found, "TRACES", is_own=is_own) if telemetry.traces else OtlpVariables()
    metrics = _otlp(found, "METRICS", is_own=is_own) if telemetry.metrics else OtlpVariables()
    most_waiting = found.get("OTEL_BSP_MAX_QUEUE_SIZE", _read_whole, default=2048)
    variables = OtelVariables(
        traces=traces,
        metrics=metrics,
        resource=_resource(found),
        sampler=None if "sample" in telemetry.model_fields_set else _sampler(found),
        is_latest=_LATEST in found.text("OTEL_SEMCONV_STABILITY_OPT_IN").replace(" ", "").split(","),
        most_waiting=most_waiting,
        most_in_batch=min(most_waiting, found.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", _read_whole, default=512)),
        delay_s=found.get("OTEL_BSP_SCHEDULE_DELAY", _read_ms, default=5.0),
        metrics_every_s=found.get("OTEL_METRIC_EXPORT_INTERVAL", _read_ms, default=60.0),
    )
    faults = [*found.faults]
    if telemetry.traces and not is_own and traces.url is None:
        where = ("telemetry", "otlp")
        words = "is required for traces, here or in OTEL_EXPORTER_OTLP_ENDPOINT"
        faults.append(Fault(place_of(where, places), dotted(where), words))
    elif (telemetry.traces or is_own or metrics.url is not None) and not _is_installed():
        faults.append(Fault(place_of(("telemetry",), places), "telemetry", EXTRA))
    return variables, faults


class _Variables:
    """The variables of an environment, and what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.faults: list[Fault] = []

    def text(self, name: str) -> str:
        return self._environ.get(name, "").strip()

    def get(self, name: str, read: Callable[[str], _T], *, default: _T) -> _T:
        text = self.text(name)
        if not text:
            return default
        try:
            return read(text)
        except InvalidValue as wrong:
            self.faults.append(Fault(SourceLocation(name), "", wrong.message))
            return default

    def either(self, kind: str, name: str) -> str:
        """The name of the variable for one kind where it is set, else of that for all."""
        own = f"OTEL_EXPORTER_OTLP_{kind}_{name}"
        return own if self.text(own) else f"OTEL_EXPORTER_OTLP_{name}"


def _otlp(found: _Variables, kind: str, *, is_own: bool) -> OtlpVariables:
    """What is said of one kind; of its address nothing where the file has one (`is_own`)."""
    url = None
    if not is_own:
        url = found.get(f"OTEL_EXPORTER_OTLP_{kind}_ENDPOINT", _read_url, default=None)
        base = found.get("OTEL_EXPORTER_OTLP_ENDPOINT", _read_url, default=None) if url is None else None
        if base is not None:
            url = f"{base.rstrip('/')}/v1/{kind.lower()}"
        if url is not None:
            found.get(found.either(kind, "PROTOCOL"), _read_protocol, default=_PROTOCOL)
    timeout_s = found.get(found.either(kind, "TIMEOUT"), _read_ms, default=10.0)
    if kind == "TRACES":
        timeout_s = min(timeout_s, found.get("OTEL_BSP_EXPORT_TIMEOUT", _read_ms, default=30.0))
    return OtlpVariables(
        url=url,
        headers=found.get(found.either(kind, "HEADERS"), _read_headers, default=_NO_PAIRS),
        timeout_s=timeout_s,
        is_gzipped=found.get(found.either(kind, "COMPRESSION"), _read_compression, default=False),
        certificate=found.text(found.either(kind, "CERTIFICATE")) or None,
        client_certificate=found.text(found.either(kind, "CLIENT_CERTIFICATE")) or None,
        client_key=found.text(found.either(kind, "CLIENT_KEY")) or None,
    )


def _sampler(found: _Variables) -> tuple[float, bool] | None:
    name = found.get("OTEL_TRACES_SAMPLER", _read_sampler, default="")
    if not name:
        return None
    kind, is_based = name.removeprefix("parentbased_"), name.startswith("parentbased_")
    if kind == "traceidratio":
        return found.get("OTEL_TRACES_SAMPLER_ARG", read_sample, default=1.0), is_based
    return float(kind == "always_on"), is_based


def _resource(found: _Variables) -> tuple[tuple[str, str], ...]:
    resource = dict(found.get("OTEL_RESOURCE_ATTRIBUTES", _read_pairs, default=_NO_PAIRS))
    if name := found.text("OTEL_SERVICE_NAME"):
        resource["service.name"] = name
    return tuple(resource.items())


def _is_installed() -> bool:
    try:
        return all(find_spec(name) is not None for name in _NEEDED)
    except ImportError:
        return False


def _read_whole(text: str) -> int:
    if _WHOLE.fullmatch(text) is None:
        raise InvalidValue("must be a whole number of at least 1")
    return int(text)


def _read_ms(text: str) -> float:
    return _read_whole(text) / 1000


def _read_url(text: str) -> str | None:
    split_http_url(text)
    return text


def _read_protocol(text: str) -> str:
    if text != _PROTOCOL:
        raise InvalidValue(f"is a protocol that is not supported: {_PROTOCOL}; or give the address as telemetry.otlp")
    return text


def _read_compression(text: str) -> bool:
    if text not in {"gzip", "none"}:
        raise InvalidValue("must be gzip or none")
    return text == "gzip"


def _read_sampler(text: str) -> str:
    names = [f"{base}{kind}" for base in ("", "parentbased_") for kind in ("always_on", "always_off", "traceidratio")]
    if text not in names:
        raise InvalidValue(f"must be one of {', '.join(names)}")
    return text


def _read_pairs(text: str) -> tuple[tuple[str, str], ...]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(mark and name.strip() for name, mark, _ in pairs):
        raise InvalidValue("must be name=value, separated by commas")
    return tuple((name.strip(), unquote(value.strip())) for name, _, value in pairs)


def _read_headers(text: str) -> tuple[tuple[str, str], ...]:
    pairs = _read_pairs(text)
    if not all(is_field_name(name) and _FIELD_VALUE.fullmatch(value) for name, value in pairs):
        raise InvalidValue("must be headers as name=value, separated by commas, special characters percent-encoded")
    return pairs
