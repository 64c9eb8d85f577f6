"""`forward-sse doctor --local`: whether the collector takes what the exporter would send."""

from __future__ import annotations

import gzip
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.auth.certificates import CertificateAuthority
from tests.cli.doctor.test_local import examine, of
from tests.collector import Collector
from tests.conftest import CONFIG, SECRET, VENDOR_KEY
from tests.proxies import free_port

if TYPE_CHECKING:
    from pathlib import Path

# An installation of which a part is missing: it is found, and cannot be loaded.
BROKEN = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("opentelemetry.proto.collector"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from proxy.cli.commands import main
main()
"""


async def test_telemetry_off(tmp_path: Path) -> None:
    """Nobody is asked where nothing would be sent: no `telemetry`, or histograms for the scrape only."""
    assert of(await examine(tmp_path), "telemetry") == []
    assert of(await examine(tmp_path, telemetry={"metrics": True}), "telemetry") == []


async def test_telemetry_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector gets an empty message of each kind that is on, with the headers and the coding of the exporter."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=header-canary")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip")
    async with Collector() as collector:
        found = await examine(tmp_path, telemetry={"otlp": collector.url, "traces": True, "metrics": True})

        assert sorted(path for path, _ in collector.requests) == ["/v1/metrics", "/v1/traces"]
        for _, fields in collector.requests:
            assert fields["x-key"] == "header-canary"
            assert fields["Content-Type"] == "application/x-protobuf"
        coded = dict(collector.requests)["/v1/traces"]
        assert coded["Content-Encoding"] == "gzip"
        assert collector.bodies == [b"", b""]  # aiohttp has decoded the one
        assert int(coded["Content-Length"]) == len(gzip.compress(b"", 5))
    assert of(found, "telemetry") == [
        ("ok", f"{collector.url}/v1/traces: accepted."),
        ("ok", f"{collector.url}/v1/metrics: accepted."),
    ]


@pytest.mark.parametrize("status", [302, 401, 404, 503])
async def test_telemetry_refused(tmp_path: Path, status: int) -> None:
    """A collector that answers with another status refuses, which is said once, without a second request."""
    async with Collector() as collector:
        collector.status = status
        found = await examine(tmp_path, telemetry={"otlp": collector.url, "traces": True})
        assert len(collector.requests) == 1
    assert of(found, "telemetry") == [("fail", f"{collector.url}/v1/traces: refused with status {status}.")]


async def test_telemetry_unreachable(tmp_path: Path) -> None:
    """A collector that is not there cannot be reached."""
    url = f"http://127.0.0.1:{free_port()}"
    found = await examine(tmp_path, telemetry={"otlp": url, "traces": True})
    assert of(found, "telemetry") == [("fail", f"{url}/v1/traces: no connection.")]


async def test_telemetry_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that does not answer is given up after the exporter's own timeout."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "50")
    async with Collector() as collector:
        collector.hold()
        found = await examine(tmp_path, telemetry={"otlp": collector.url, "traces": True})
    assert of(found, "telemetry") == [("fail", f"{collector.url}/v1/traces: no answer in time.")]


async def test_telemetry_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate is verified with the authorities that the variables name, as the exporter does."""
    authority = CertificateAuthority(tmp_path)
    async with Collector(authority.server()) as collector:
        telemetry = {"otlp": collector.url, "traces": True}
        untrusted = await examine(tmp_path, telemetry=telemetry)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(authority.file))
        trusted = await examine(tmp_path, telemetry=telemetry)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "absent.pem"))
        unread = await examine(tmp_path, telemetry=telemetry)
    url = f"{collector.url}/v1/traces"
    assert of(untrusted, "telemetry") == [("fail", f"{url}: no TLS connection.")]
    assert of(trusted, "telemetry") == [("ok", f"{url}: accepted.")]
    assert of(unread, "telemetry") == [
        ("fail", f"{url}: an address, a proxy or a file of certificates cannot be used.")
    ]


def test_telemetry_not_installed(tmp_path: Path) -> None:
    """An extra that cannot be loaded is a verdict that says what to install, not a traceback."""
    path = tmp_path / "proxy.yaml"
    text = CONFIG.format(secret=SECRET, url="http://127.0.0.1:1", key=VENDOR_KEY)
    path.write_text(text + "telemetry: {otlp: 'http://127.0.0.1:1', traces: true}\n")
    command = [sys.executable, "-c", BROKEN, "doctor", "--local", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    (line,) = [line for line in done.stdout.splitlines() if "otel" in line]
    assert line.startswith("fail")
    assert "pip install 'forward-sse[otel]'" in line
