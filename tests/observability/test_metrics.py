"""What is counted of exchanges, and what a process tells of itself."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from proxy import __version__
from proxy.observability.metrics import Metrics
from proxy.observability.process_metrics import ProcessMetrics

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def scrape(metrics: Metrics) -> dict[str, float]:
    """The samples by `name{label="value",…}`, the labels in alphabetical order."""
    return {
        sample.name
        + ("{" + ",".join(f'{name}="{sample.labels[name]}"' for name in sorted(sample.labels)) + "}")
        * bool(sample.labels): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def settle(metrics: Metrics, *, events: int, first_byte_s: float | None = 1.0, duration_s: float = 3.0) -> None:
    metrics.exchange_settled(
        upstream="main",
        status=200,
        ending="complete",
        code=None,
        first_byte_s=first_byte_s,
        duration_s=duration_s,
        bytes_=1,
        events=events,
    )


def test_event_gap_is_the_streams_mean() -> None:
    """The gap is anything but the time from first byte to end over the events, or is counted for other answers."""
    metrics = Metrics()
    settle(metrics, events=20)
    settle(metrics, events=1)
    settle(metrics, events=0)
    settle(metrics, events=0, first_byte_s=None)
    scraped = scrape(metrics)
    assert scraped['forward_sse_mean_event_gap_seconds_count{upstream="main"}'] == 1
    assert scraped['forward_sse_mean_event_gap_seconds_sum{upstream="main"}'] == 0.1
    assert scraped['forward_sse_mean_event_gap_seconds_bucket{le="0.05",upstream="main"}'] == 0
    assert scraped['forward_sse_mean_event_gap_seconds_bucket{le="0.1",upstream="main"}'] == 1


def test_counters_have_no_second_series() -> None:
    """A counter comes with the time when it began: for Prometheus a gauge of its own, which nobody has asked for."""
    metrics = Metrics()
    settle(metrics, events=1)
    metrics.limits_store_failed()
    metrics.jwks_refreshed("tests", "ok")
    for is_openmetrics in (False, True):
        text = metrics.render(is_openmetrics=is_openmetrics).decode()
        assert "_created" not in text
        assert "forward_sse_limits_store_errors_total 1.0\n" in text
        assert 'forward_sse_jwks_refreshes_total{issuer="tests",outcome="ok"} 1.0\n' in text


def test_refusals_of_the_proxys_own_begin_at_zero() -> None:
    """The first refusal that an alert waits for is no increase, because the series begins with it."""
    scraped = {name: value for name, value in scrape(Metrics()).items() if "refusals_total" in name}
    codes = ("auth_unavailable", "internal_error", "limits_unavailable", "overloaded")
    assert scraped == {f'forward_sse_refusals_total{{code="{code}"}}': 0 for code in codes}


def test_usage_by_model_adds_up_to_usage_by_upstream() -> None:
    """The figures by model and plan are not those by upstream, or a model without a price has a cost."""
    metrics = Metrics()
    metrics.usage_settled("main", "pro", "gpt-4o", 100, 20, 10, 5, 2_000_000_000)
    metrics.usage_settled("main", "default", "gpt-4o", 10, 2, 1, 0, 500_000_000)
    metrics.usage_settled("main", "pro", "other", 1, 1, 0, 0, None)
    scraped = scrape(metrics)
    model = 'forward_sse_model_tokens_total{{kind="{}",model="{}",plan="{}",upstream="main"}}'
    assert scraped[model.format("input", "gpt-4o", "pro")] == 100
    assert scraped[model.format("reasoning", "gpt-4o", "pro")] == 5
    assert scraped[model.format("output", "other", "pro")] == 1
    for kind, total in (("input", 111), ("output", 23), ("cached", 11), ("reasoning", 5)):
        assert scraped[f'forward_sse_tokens_total{{kind="{kind}",upstream="main"}}'] == total
    costs = {name: value for name, value in scraped.items() if "cost_usd_total" in name}
    assert costs == {
        'forward_sse_cost_usd_total{upstream="main"}': 2.5,
        'forward_sse_model_cost_usd_total{model="gpt-4o",plan="pro",upstream="main"}': 2.0,
        'forward_sse_model_cost_usd_total{model="gpt-4o",plan="default",upstream="main"}': 0.5,
    }
    assert scraped['forward_sse_unpriced_exchanges_total{upstream="main"}'] == 1


def test_process_is_told_of() -> None:
    """A worker's CPU, memory and descriptors are missing, or are not this process's."""
    metrics = Metrics()
    metrics.watch_process("7-1", workers=3, is_alone=False)
    scraped = scrape(metrics)
    assert [
        name for name in scraped if f'version="{__version__}"' in name and name.startswith("forward_sse_build_info")
    ]
    assert scraped["forward_sse_workers_configured"] == 3
    assert not [name for name in scraped if name.startswith("forward_sse_workers{")]
    assert scraped['forward_sse_worker_cpu_seconds_total{worker="7-1"}'] > 0
    assert 1 << 20 < scraped['forward_sse_worker_resident_memory_bytes{worker="7-1"}'] < 1 << 40
    with open(os.devnull, "rb"), open(os.devnull, "rb"):  # noqa: PTH123 - descriptors are what is counted
        more = scrape(metrics)
    open_fds = 'forward_sse_worker_open_fds{worker="7-1"}'
    assert more[open_fds] == scraped[open_fds] + 2
    assert scraped['forward_sse_worker_max_fds{worker="7-1"}'] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_process_alone_counts_itself() -> None:
    """A service of one worker has no metric of its workers, so that the board is empty."""
    metrics = Metrics()
    metrics.watch_process("1", workers=1, is_alone=True)
    scraped = scrape(metrics)
    assert scraped['forward_sse_workers{state="answering"}'] == 1
    assert scraped['forward_sse_workers{state="silent"}'] == 0


def test_process_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without `/proc` has no scrape, instead of one without memory and descriptors."""
    gone = tmp_path / "gone"
    monkeypatch.setattr("proxy.observability.process_metrics._STATM", gone)
    monkeypatch.setattr("proxy.observability.process_metrics._DESCRIPTORS", gone)
    names = {family.name for family in ProcessMetrics("1", workers=1, is_alone=True).collect()}
    assert "forward_sse_worker_cpu_seconds" in names
    assert not names & {"forward_sse_worker_resident_memory_bytes", "forward_sse_worker_open_fds"}


def test_store_is_told_of() -> None:
    """A limits store that is away is shown as up."""
    metrics = Metrics()
    problem: list[str] = []
    metrics.watch_store(lambda: problem[0] if problem else None)
    assert scrape(metrics)["forward_sse_limits_store_up"] == 1
    problem.append("the connection was lost")
    assert scrape(metrics)["forward_sse_limits_store_up"] == 0
