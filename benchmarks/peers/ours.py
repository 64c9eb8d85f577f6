"""This proxy as its users run it: tokens, limits, log, metrics and observer on, every other setting at its default."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, ClassVar

from benchmarks.peers.peer import REPOSITORY, Peer, Started, first_line, secret
from benchmarks.processes import StartFailed, free_port

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.peers.peer import Site

_START_S = 30.0

# The rates and the bound are high enough to refuse nobody.
CONFIG = """
listen: 127.0.0.1:{port}
admin_listen: 127.0.0.1:{admin_port}
auth:
  jwt:
    - {{issuer: bench, audience: llm, algorithms: [HS256], secret: "{key}"}}
plans:
  default: {{requests: [1000000/1s, 100000000/1d], concurrent_streams: 100000}}
upstreams:
  bench:
    url: http://127.0.0.1:{upstream}
    dialect: openai
    api_key: vendor-key
    models: ["bench*"]
"""


class Ours(Peer):
    """`forward-sse serve`."""

    name: ClassVar[str] = "ours"
    title: ClassVar[str] = "forward-sse"
    note: ClassVar[str] = "tokens verified, two rates and a bound on streams, log, metrics and observer on"
    path: ClassVar[str] = "/forward-sse"

    def absence(self) -> str | None:
        """Never."""
        return None

    def version(self) -> str:
        """As it says itself."""
        return first_line([sys.executable, "-m", "proxy", "--version"]).rpartition(" ")[2]

    def start(self, site: Site) -> Started:
        """Run the repository's command with the interpreter of the benchmark."""
        port, key = free_port(), secret()
        config = site.directory / "proxy.yaml"
        text = CONFIG.format(port=port, admin_port=free_port(), key=key, upstream=site.upstream_port)
        config.write_text(text)
        command = [sys.executable, "-m", "proxy", "serve", "--config", str(config)]
        program = site.start("forward-sse", command, {"PYTHONPATH": str(REPOSITORY)})
        bearer = token(config)
        program.wait_for_port(port, deadline_s=_START_S)
        return Started(port, (program,), (f"Authorization: Bearer {bearer}",))


def token(config: Path) -> str:
    """A token as the command makes it."""
    command = [sys.executable, "-m", "proxy", "token", "--user", "bench", "--ttl", "1d", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_START_S, cwd=REPOSITORY)
    if done.returncode:
        raise StartFailed(f"`token` failed:\n{done.stderr}")
    return done.stdout.strip()
