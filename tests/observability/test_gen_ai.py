"""Histograms by the conventions: their names and bounds, their labels, and exemplars on a scrape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics as names
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from proxy.observability.gen_ai import MOST_MODELS, OTHER_MODEL, GenAiMetrics, Series, Traced
from proxy.observability.metrics import render, wants_openmetrics
from tests.collector import Collector, values
from tests.conftest import token
from tests.observability.test_spans import ANSWER, AT_ONCE, BODY, traced
from tests.peers import LAST, STREAM_HEAD, chunk, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.peers import Upstream

SERIES = Series("main", "openai", "chat", "gpt-x")
TRACED = Traced("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 1_700_000_000.5)


def test_names_are_the_conventions() -> None:
    """The names are those of the installed package, and of the repository that it moved to."""
    old, latest = GenAiMetrics("1.41"), GenAiMetrics("latest")
    for metrics in (old, latest):
        metrics.observe_operation(SERIES, 1, "", None)
        metrics.observe_first_token(SERIES, 1, None)
        metrics.observe_output_token(SERIES, 1, None)
        metrics.observe_tokens(SERIES, input_=5, output=3, cached=2, cache_write=1, reasoning=1)
    server = {names.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN, names.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN}
    assert {one.name for one, _ in old.read()} == server | {
        names.GEN_AI_CLIENT_OPERATION_DURATION,
        names.GEN_AI_CLIENT_TOKEN_USAGE,
    }
    prefix = "gen_ai.client.inference."
    usage = ("input_tokens", "output_tokens", "cache_read.input_tokens", "cache_write.input_tokens", "reasoning.output_tokens")  # fmt: skip # noqa: E501
    counted = {one.name: readings[0].total for one, readings in latest.read()}
    assert set(counted) == server | {f"{prefix}duration"} | {f"{prefix}usage.{kind}" for kind in usage}
    assert [counted[f"{prefix}usage.{kind}"] for kind in usage] == [5, 3, 2, 1, 1]


def test_bounds_are_the_conventions() -> None:
    """The buckets are those that the conventions advise."""
    metrics = GenAiMetrics("1.41")
    metrics.observe_operation(SERIES, 0.01, "", None)
    metrics.observe_tokens(SERIES, input_=4, output=70_000_000, cached=0, cache_write=0, reasoning=0)
    (operation, (duration,)), (tokens, (sent, made)) = metrics.read()
    assert operation.bounds == tuple(0.01 * 2**power for power in range(14))
    assert tokens.bounds == tuple(4**power for power in range(14))
    # A bucket takes what is at most its bound.
    assert duration.counts[0] == sent.counts[1] == made.counts[-1] == 1
    assert sum(duration.counts) == 1


def test_models_are_few() -> None:
    """Only known models are labels, and no more than a bound of them; those of the configuration always are."""
    metrics = GenAiMetrics("1.41", ["own"])
    assert metrics.model_label(None, has_price=False) == OTHER_MODEL
    assert metrics.model_label("a client's text", has_price=False) == OTHER_MODEL
    found = {metrics.model_label(f"model-{number}", has_price=True) for number in range(MOST_MODELS * 3)}
    assert len(found) == MOST_MODELS + 1
    assert metrics.model_label("model-0", has_price=True) == "model-0"
    assert metrics.model_label("own", has_price=False) == "own"


@pytest.mark.parametrize("is_traced", [True, False])
def test_exemplars(is_traced: bool) -> None:
    """A bucket's exemplar is its latest traced observation; the old format has none."""
    metrics, registry = GenAiMetrics("1.41"), CollectorRegistry()
    registry.register(metrics)
    metrics.observe_operation(SERIES, 0.5, "500", TRACED if is_traced else None)
    metrics.observe_operation(SERIES, 0.6, "500", None)
    text = render(registry, is_openmetrics=True).decode()
    families = {family.name: family for family in read_openmetrics(text)}  # type: ignore[no-untyped-call]  # the library's
    samples = families["gen_ai_client_operation_duration_seconds"].samples
    buckets = {sample.labels["le"]: sample for sample in samples if sample.name.endswith("_bucket")}
    assert buckets["0.64"].value == 2
    assert (
        buckets["0.64"].labels
        | {
            "upstream": "main",
            "gen_ai_provider_name": "openai",
            "gen_ai_operation_name": "chat",
            "gen_ai_request_model": "gpt-x",
            "error_type": "500",
        }
        == buckets["0.64"].labels
    )
    exemplars = {le: sample.exemplar for le, sample in buckets.items() if sample.exemplar is not None}
    assert set(exemplars) == ({"0.64"} if is_traced else set())
    if is_traced:
        assert exemplars["0.64"].labels == {"trace_id": TRACED.trace_id, "span_id": TRACED.span_id}
        assert exemplars["0.64"].value == 0.5
        assert float(exemplars["0.64"].timestamp or 0) == TRACED.at_s
    assert b"# {" not in render(registry, is_openmetrics=False)
    assert list(read_text(render(registry, is_openmetrics=False).decode()))


PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6",
    "application/openmetrics-text;version=0.0.1;q=0.5",
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4",
    "text/plain;version=0.0.4;q=0.3",
    "*/*;q=0.2",
)


@pytest.mark.parametrize(
    ("accept", "wants"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text; version=1.0.0; q=0", False),
        ("application/openmetrics-text; q=much", False),
        # Prometheus 2.20, 2.42 and 3, by default; then 3 with text named first in `scrape_protocols`.
        ("application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", True),
        (
            ",".join(PROMETHEUS_3),
            True,
        ),
        ("text/plain;version=0.0.4;q=0.4,application/openmetrics-text;version=1.0.0;q=0.3,*/*;q=0.2", False),
    ],
)
def test_wants_openmetrics(accept: str, wants: bool) -> None:
    """OpenMetrics is given to whoever names it and prefers no text: Prometheus does by itself, a browser does not."""
    assert wants_openmetrics(accept) is wants


async def test_scrape_and_push(start: Callable[..., Any], upstream: Upstream) -> None:
    """An exchange is counted once, on the scrape and at the collector, with its trace; a refused one is not."""
    async with Collector() as collector:
        proxy = await start(traced(collector, metrics="true"), environ=AT_ONCE)
        client = await proxy.client()
        client.write(request(body=BODY | {"model": "gpt-4o"}, token=token()))
        vendor, _ = await upstream.take()
        usage = b'{"prompt_tokens":3,"completion_tokens":5}'
        vendor.write(STREAM_HEAD + chunk(ANSWER) + chunk(b'data: {"choices":[],"usage":%b}\n\n' % usage) + LAST)
        await client.read_until(LAST)
        refused = await proxy.client()
        refused.write(request(body=BODY, token="x"))
        await refused.read_message()
        line = next(line for line in await proxy.settled(2) if line["status"] == 200)
        admin = await proxy.admin()
        admin.write(request("/metrics", method="GET", fields=(("Accept", "application/openmetrics-text"),)))
        answer = await admin.read_message()
        admin.write(request("/metrics", method="GET"))
        plain = await admin.read_message()
        await proxy.close()
    assert answer.get("content-type") == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert plain.get("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in read_openmetrics(answer.body.decode())}  # type: ignore[no-untyped-call]  # as above
    shown = {family.name for family in read_text(plain.body.decode())}
    assert set(shown) == set(families)
    counted: dict[str, dict[str | None, float]] = {}
    for name, family in families.items():
        for sample in family.samples:
            if name.startswith("gen_ai") and sample.name.endswith("_count"):
                counted.setdefault(name, {})[sample.labels.get("gen_ai_token_type")] = sample.value
    assert counted == {
        "gen_ai_client_operation_duration_seconds": {None: 1},
        "gen_ai_client_token_usage": {"input": 1, "output": 1},
        "gen_ai_server_time_to_first_token_seconds": {None: 1},
        "gen_ai_server_time_per_output_token_seconds": {None: 1},
    }
    first = families["gen_ai_server_time_to_first_token_seconds"].samples
    assert {sample.exemplar.labels["trace_id"] for sample in first if sample.exemplar} == {line["trace_id"]}
    assert {sample.labels["gen_ai_request_model"] for sample in first} == {"gpt-4o"}
    pushed = collector.metrics["gen_ai.client.token.usage"]
    by_type = {values(point.attributes)["gen_ai.token.type"]: point for point in pushed.histogram.data_points}
    assert {kind: (point.count, point.sum) for kind, point in by_type.items()} == {"input": (1, 3), "output": (1, 5)}
    assert pushed.unit == "{token}"
    duration = collector.metrics["gen_ai.client.operation.duration"].histogram.data_points[0]
    assert duration.exemplars[0].trace_id.hex() == line["trace_id"]
    assert "error.type" not in values(duration.attributes)


async def test_metrics_without_an_address(start: Callable[..., Any], upstream: Upstream) -> None:
    """Histograms are on the scrape without a collector, too, and nothing is sent or traced then."""
    proxy = await start("telemetry: {metrics: true}\n")
    client = await proxy.client()
    client.write(request(body=BODY, token=token(), fields=(("traceparent", "00-x"),)))
    vendor, asked = await upstream.take()
    vendor.write(STREAM_HEAD + chunk(ANSWER) + LAST)
    await client.read_until(LAST)
    assert asked.get("traceparent") == "00-x"
    await proxy.settled()
    text = proxy.service.metrics.render().decode()
    assert 'gen_ai_server_time_to_first_token_seconds_count{gen_ai_operation_name="chat"' in text
    assert f'gen_ai_request_model="{OTHER_MODEL}"' in text
    assert "forward_sse_telemetry" not in text
