"""Metrics summed over workers, and the counters of workers that ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest
import structlog
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from proxy.observability.metrics import Metrics
from proxy.server.workers.counter_files import (
    CounterFile,
    Exemplar,
    Family,
    Sample,
    add,
    counts,
    read,
    read_file,
    render,
    take,
)

if TYPE_CHECKING:
    from pathlib import Path


def worker(*, requests: int = 1, active: int = 0, upstream: str = "main") -> Metrics:
    metrics = Metrics()
    for number in range(requests):
        metrics.exchange_settled(
            upstream=upstream,
            status=200,
            ending="complete",
            code=None,
            first_byte_s=0.02 * (number + 1),
            duration_s=1.5,
            bytes_=100,
            events=3,
        )
    for _ in range(active):
        metrics.stream_began(upstream)
    return metrics


def families(metrics: Metrics) -> list[Family]:
    return take(metrics.registry.collect())


def values(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_render_is_the_librarys_own() -> None:
    """One worker's figures read the same as if the library had rendered them."""
    metrics = worker(requests=3, active=2)
    assert render(add(families(metrics))) == generate_latest(metrics.registry)


def test_exemplars() -> None:
    """Of a bucket's exemplars in several workers the latest is shown, also after a way through JSON."""
    labels = {"le": "1.0"}

    def of(at_s: float | None) -> list[Family]:
        exemplar = None if at_s is None else Exemplar({"trace_id": f"{at_s}"}, 0.5, at_s)
        given = [Family("x", "histogram", "words", [Sample("x_bucket", labels, 1.0, exemplar)])]
        return read(orjson.loads(orjson.dumps(given)))

    (family,) = add(of(2.0), of(None), of(3.0), of(1.0))
    assert family.samples == [Sample("x_bucket", labels, 4.0, Exemplar({"trace_id": "3.0"}, 0.5, 3.0))]
    assert b'x_bucket{le="1.0"} 4.0 # {trace_id="3.0"} 0.5 3.0' in render([family], is_openmetrics=True)
    assert b"trace_id" not in render([family])
    sample = {"name": "x", "labels": {}, "value": 1, "exemplar": 3}
    with pytest.raises(ValueError, match="not metrics"):
        read([{"name": "x", "kind": "", "documentation": "", "samples": [sample]}])


def test_add() -> None:
    """Counts, buckets and states are summed label by label; a series of one worker alone stands as it is."""
    one, two = worker(requests=3, active=2), worker(requests=1, active=1)
    other = worker(requests=1, upstream="other")
    summed = values(render(add(families(one), families(two), families(other))))
    alone = [values(generate_latest(metrics.registry)) for metrics in (one, two, other)]

    assert summed.keys() == alone[0].keys() | alone[1].keys() | alone[2].keys()
    for key, value in summed.items():
        parts = [worker_values[key] for worker_values in alone if key in worker_values]
        assert value == pytest.approx(sum(parts)), key
    assert summed["forward_sse_active_streams", (("upstream", "main"),)] == 3


def test_add_states_are_not_summed() -> None:
    """What is 0 or 1 becomes 2 with two workers, or a store that one worker cannot reach counts as up."""

    def one(*, is_out: bool, is_up: bool) -> Metrics:
        metrics = Metrics()
        keys = [{"key": "0a1b2c3d", "resting": is_out}]
        metrics.watch_upstreams(lambda: [{"name": "main", "state": "out" if is_out else "on", "keys": keys}])
        metrics.watch_store(lambda: None if is_up else "lost")
        metrics.watch_process("1" if is_out else "2", workers=2, is_alone=False)
        return metrics

    workers = one(is_out=True, is_up=True), one(is_out=True, is_up=False), one(is_out=False, is_up=True)
    for order in (workers, workers[::-1]):
        summed = values(render(add(*map(families, order))))
        by_name = {name: value for (name, _), value in summed.items()}
        assert by_name["forward_sse_upstream_out"] == 1
        assert by_name["forward_sse_upstream_key_resting"] == 1
        assert by_name["forward_sse_limits_store_up"] == 0
        assert by_name["forward_sse_build_info"] == 1
        assert by_name["forward_sse_workers_configured"] == 2


def test_families_survive_json() -> None:
    """What another worker is told is what was taken."""
    taken = families(worker(active=1))
    assert read(orjson.loads(orjson.dumps(taken))) == taken


@pytest.mark.parametrize("data", [None, 1, "x", [1], [{}], {"name": 1}, [{"name": "a", "samples": 3}], [[["a"]]]])
def test_read_refuses_other_values(data: object) -> None:
    """Whatever a worker answers, it is read as metrics or a ValueError."""
    with pytest.raises(ValueError, match="metrics"):
        read(data)


def test_counter_file_starts_from_the_last_workers(tmp_path: Path) -> None:
    """Counters of replaced workers are added once, however often they are collected; gauges are not."""
    CounterFile(tmp_path, "a", worker(requests=2, active=5).registry.collect).collect()
    for _ in range(3):
        counters = CounterFile(tmp_path, "a", worker(requests=1).registry.collect)
        counters.collect()
        counters.collect()

    kept = values(render(read_file(tmp_path / "a.counters")))
    key = "forward_sse_requests_total", (("ending", "complete"), ("status", "200"), ("upstream", "main"))
    assert kept[key] == 5
    assert kept["forward_sse_stream_duration_seconds_count", (("upstream", "main"),)] == 5
    assert not [name for name, _ in kept if "active_streams" in name]
    assert [path.name for path in tmp_path.iterdir()] == ["a.counters"]


def test_counter_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A directory that is gone costs the counters of a worker that ends, not the scrape."""
    metrics = worker(requests=2)
    counters = CounterFile(tmp_path / "gone", "a", metrics.registry.collect)
    with structlog.testing.capture_logs() as lines:
        assert counters.collect() == families(metrics)
    assert [line["event"] for line in lines] == ["counters.not_written"]


@pytest.mark.parametrize("data", [b"", b"{", b'{"a":1}', b"\xff"])
def test_read_file_unreadable(tmp_path: Path, data: bytes) -> None:
    """A file that is broken costs its counts, not the scrape."""
    (tmp_path / "a.counters").write_bytes(data)
    assert read_file(tmp_path / "a.counters") == []


def test_counts_only_grow() -> None:
    """Gauges are no counts."""
    assert {family.kind for family in counts(families(worker(active=1)))} == {"counter", "histogram"}
