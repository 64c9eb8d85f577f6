"""`telemetry` and the standard's variables: what wins, what is refused, what is never shown."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from proxy.cli.check_report import report, warnings
from proxy.settings.build import secrets_of
from proxy.settings.build_telemetry import build_telemetry, sampling_of, targets_of
from proxy.settings.loading import ConfigurationError, load
from tests.conftest import CONFIG, SECRET, VENDOR_KEY

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.settings import Settings

ON = "telemetry: {traces: true, metrics: true"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://env.test:4318/base/"}
BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"opentelemetry", "requests"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from proxy.cli.commands import main
main()
"""


def loaded(tmp_path: Path, more: str, environ: dict[str, str] | None = None) -> Settings:
    path = tmp_path / "proxy.yaml"
    path.write_text(CONFIG.format(secret=SECRET, url="http://127.0.0.1:1", key=VENDOR_KEY) + more)
    return load(path, environ or {})


def refused(tmp_path: Path, more: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, more, environ)
    return [str(fault).replace(f"{tmp_path}/", "") for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("more", "environ", "traces", "metrics"),
    [
        (", otlp: 'http://c.test:4318/'}", ENDPOINT, "http://c.test:4318/v1/traces", "http://c.test:4318/v1/metrics"),
        ("}", ENDPOINT, "https://env.test:4318/base/v1/traces", "https://env.test:4318/base/v1/metrics"),
        (
            "}",
            ENDPOINT | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t.test/as/it/is"},
            "http://t.test/as/it/is",
            "https://env.test:4318/base/v1/metrics",
        ),
    ],
)
def test_address(tmp_path: Path, more: str, environ: dict[str, str], traces: str, metrics: str) -> None:
    """The file's address wins, then the variable for one kind, then that for all."""
    targets = targets_of(loaded(tmp_path, ON + more, environ))
    assert {kind: target.url for kind, target in targets.items()} == {"traces": traces, "metrics": metrics}


def test_variables_turn_nothing_on(tmp_path: Path) -> None:
    """An environment that is meant for other programs changes nothing, however faulty it is."""
    settings = loaded(tmp_path, "", ENDPOINT | {"OTEL_BSP_MAX_QUEUE_SIZE": "x", "OTEL_TRACES_SAMPLER": "?"})
    assert targets_of(settings) == {}
    assert build_telemetry(settings, bytes) is None
    assert "telemetry      off" in report(settings)


def test_values(tmp_path: Path) -> None:
    """Everything that the variables say is taken, in milliseconds."""
    environ = ENDPOINT | {
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
        "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "1500",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_BSP_MAX_QUEUE_SIZE": "300",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "400",
        "OTEL_BSP_EXPORT_TIMEOUT": "2000",
        "OTEL_METRIC_EXPORT_INTERVAL": "7000",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=a%20b, authorization=Bearer%20header-canary-1",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-traces=trace-canary-1",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "/ca.pem",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "/own.pem",
        "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY": "/own.key",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
        "OTEL_TRACES_EXPORTER": "",
    }
    settings = loaded(tmp_path, ON + "}", environ)
    targets, found = targets_of(settings), settings.otel
    assert (targets["traces"].timeout_s, targets["metrics"].timeout_s) == (2.0, 1.5)
    assert (found.most_waiting, found.most_in_batch, found.delay_s, found.metrics_every_s) == (300, 300, 0.1, 7.0)
    assert targets["traces"].headers == (("x-traces", "trace-canary-1"),)
    assert targets["metrics"].headers == (("x-key", "a b"), ("authorization", "Bearer header-canary-1"))
    assert targets["traces"].is_gzipped
    assert (targets["traces"].verify, targets["traces"].certificate) == ("/ca.pem", ("/own.pem", "/own.key"))
    assert targets["metrics"].certificate == "/own.pem"
    assert sampling_of(settings) == (0.25, True)
    assert {"trace-canary-1", "header-canary-1"} <= set(secrets_of(settings))
    assert "canary" not in report(settings) + repr(found) + repr(targets)


@pytest.mark.parametrize(
    ("more", "environ", "sampling"),
    [
        ("}", {}, (1.0, True)),
        (", sample: 0.1}", {"OTEL_TRACES_SAMPLER": "always_on"}, (0.1, True)),
        ("}", {"OTEL_TRACES_SAMPLER": "always_off"}, (0.0, False)),
        ("}", {"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, (0.0, True)),
        ("}", {"OTEL_TRACES_SAMPLER": "traceidratio"}, (1.0, False)),
        ("}", {"OTEL_TRACES_SAMPLER_ARG": "0.5"}, (1.0, True)),
    ],
)
def test_sampler(tmp_path: Path, more: str, environ: dict[str, str], sampling: tuple[float, bool]) -> None:
    """`sample` wins over the variables; without both everything is recorded that the caller records."""
    assert sampling_of(loaded(tmp_path, ON + more, ENDPOINT | environ)) == sampling


IN_FILE = [
    ("traces: true", "otlp: is required for traces, here or in OTEL_EXPORTER_OTLP_ENDPOINT"),
    ("sample: 2", "sample: must be a number from 0 to 1, such as 0.1"),
    ("otlp: 'http://a:canary@c.test'", "otlp: must not hold a user or a password"),
    ("user: name", "user: must be one of none, hashed, plain"),
    ("semconv: 1.40", "semconv: must be one of 1.41, latest (did you mean 1.41?)"),
    ("user: hashed, user_key: canary", "user_key: must have at least 16 bytes, such as `openssl rand -hex 32` prints"),
    ("user_key: canary-canary-canary", "user_key: has no effect without `user: hashed`"),
    ("trace: true", "trace: unknown key (did you mean traces?)"),
]
IN_VARIABLES = [
    ("OTEL_BSP_MAX_QUEUE_SIZE", "x", "must be a whole number of at least 1"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "1s", "must be a whole number of at least 1"),
    ("OTEL_TRACES_SAMPLER", "jaeger_remote", "must be one of always_on, always_off, traceidratio, "),
    ("OTEL_TRACES_SAMPLER_ARG", "7", "must be a number from 0 to 1, such as 0.1"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "is a protocol that is not supported: http/protobuf; or give"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "canary", "must be name=value, separated by commas"),
    ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "a=canary%0d%0ab", "must be headers as name=value, separated by commas,"),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "br", "must be gzip or none"),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318", "must begin with https:// or http://"),
    ("OTEL_RESOURCE_ATTRIBUTES", "a,b", "must be name=value, separated by commas"),
]


@pytest.mark.parametrize(("keys", "fault"), IN_FILE)
def test_faults_of_the_file(tmp_path: Path, keys: str, fault: str) -> None:
    """What cannot be is refused with its line, and never repeated."""
    assert refused(tmp_path, f"telemetry: {{{keys}}}\n") == [f"proxy.yaml:14: telemetry.{fault}"]


@pytest.mark.parametrize(("name", "value", "fault"), IN_VARIABLES)
def test_faults_of_variables(tmp_path: Path, name: str, value: str, fault: str) -> None:
    """A variable that is used and cannot be is refused by its name, and never repeated."""
    environ = ENDPOINT | {"OTEL_TRACES_SAMPLER": "traceidratio", name: value}
    (found,) = refused(tmp_path, ON + "}\n", environ)
    assert found.startswith(f"{name}: {fault}")
    assert "canary" not in found


def test_warnings(tmp_path: Path) -> None:
    """What is allowed but hardly meant is told."""
    idle = loaded(tmp_path, "telemetry: {otlp: 'http://c.test'}\n")
    assert "telemetry.otlp: nothing is sent there: neither `traces` nor `metrics` is on" in warnings(idle)
    plain = loaded(tmp_path, ON + ", otlp: 'http://c.test'}\n", {"OTEL_EXPORTER_OTLP_HEADERS": "x-key=abcdef"})
    assert "telemetry: the headers for http://c.test/v1/traces travel unencrypted (http://)" in warnings(plain)
    ledger = loaded(tmp_path, f"log: {{access: off}}\nusage: {{ledger: 'sqlite:///{tmp_path}/l.db'}}\n")
    assert "log.access: off: `usage import` cannot complete the ledger from such a log" in warnings(ledger)
    blind = "log.access: off without telemetry.traces: streams that break are in the metrics only"
    assert blind in warnings(loaded(tmp_path, "log: {access: off}\n"))
    assert blind not in warnings(loaded(tmp_path, "log: {access: off}\n" + ON + ", otlp: 'http://c.test'}\n"))


def test_report(tmp_path: Path) -> None:
    """`check` says what would be sent where."""
    text = report(loaded(tmp_path, ON + ", otlp: 'http://c.test', sample: 0.1, user: hashed}\n"))
    traces = "traces (sample 0.1, or as the caller says, user hashed) to http://c.test/v1/traces"
    metrics = "metrics on /metrics and to http://c.test/v1/metrics"
    assert f"telemetry      {traces} and {metrics}, names of 1.41" in text
    assert "log            json, info\n" in text
    keyed = report(loaded(tmp_path, ON + ", otlp: 'http://c.test', user: hashed, user_key: 0123456789abcdef-canary}\n"))
    assert "user hashed by a key)" in keyed
    assert "canary" not in keyed
    assert "telemetry      off (OTEL_SDK_DISABLED)" in report(
        loaded(tmp_path, ON + ", otlp: 'http://c.test'}\n", {"OTEL_SDK_DISABLED": "TRUE"})
    )


@pytest.mark.parametrize("command", ["check", "serve"])
def test_without_the_extra(tmp_path: Path, command: str) -> None:
    """Without the extra, a configuration that needs it is refused in one line that says what to install."""
    path = tmp_path / "proxy.yaml"
    text = CONFIG.format(secret=SECRET, url="http://127.0.0.1:1", key=VENDOR_KEY)
    path.write_text(text + "telemetry: {otlp: 'http://127.0.0.1:1', traces: true}\n")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, command, "--config", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"{path}:14: telemetry: needs the extra `otel`, which is not installed: pip install 'forward-sse[otel]'\n"
    )


def test_without_the_extra_and_without_need(tmp_path: Path) -> None:
    """What sends nothing needs nothing: histograms on the scrape, and everything that is off."""
    path = tmp_path / "proxy.yaml"
    text = CONFIG.format(secret=SECRET, url="http://127.0.0.1:1", key=VENDOR_KEY)
    path.write_text(text + "telemetry: {metrics: true}\n")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, "check", "--config", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "telemetry      metrics on /metrics, names of 1.41" in done.stdout


def test_off_loads_nothing(tmp_path: Path) -> None:
    """A worker that traces nothing does not pay for what would send it."""
    script = (
        "import sys, proxy.app, proxy.cli.commands, proxy.settings, proxy.server.run;"
        "sys.exit(bool({'opentelemetry', 'google.protobuf', 'requests'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
