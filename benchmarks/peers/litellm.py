"""LiteLLM's proxy as its page on production has it: a master key, no database, no debugging, one worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from benchmarks.peers.peer import INSTALLED, Peer, Started, first_line, secret
from benchmarks.processes import free_port

if TYPE_CHECKING:
    from benchmarks.peers.peer import Site

_START_S = 120.0
_PYTHON = INSTALLED / "litellm" / "bin" / "python"
_COMMAND = INSTALLED / "litellm" / "bin" / "litellm"

# The page's settings as far as they do not need a database. Retries are off: a retried request would be counted twice.
_CONFIG = """
model_list:
  - model_name: bench
    litellm_params:
      model: openai/bench
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: vendor-key
general_settings:
  master_key: {key}
  disable_error_logs: true
litellm_settings:
  request_timeout: 600
  set_verbose: false
  json_logs: true
  telemetry: false
  num_retries: 0
router_settings:
  num_retries: 0
"""
_ENVIRONMENT = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_TELEMETRY": "False",
    # Its list of prices as installed: nothing of the benchmark leaves the machine.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NO_DOCS": "True",
}


class LiteLLM(Peer):
    """LiteLLM's proxy: a gateway that reads and rewrites every event."""

    name: ClassVar[str] = "litellm"
    title: ClassVar[str] = "LiteLLM"
    note: ClassVar[str] = (
        "gets a fortieth of the load, so that a round lasts seconds: it reads and rewrites every event"
    )
    share: ClassVar[float] = 1 / 40

    def absence(self) -> str | None:
        """Not installed by `make bench-peers`."""
        return None if _COMMAND.exists() else "not installed (make bench-peers)"

    def version(self) -> str:
        """Of the installed distribution; asking the program itself takes seconds."""
        return first_line([_PYTHON, "-c", "from importlib.metadata import version; print(version('litellm'))"])

    def start(self, site: Site) -> Started:
        """Run it with one worker."""
        port, key = free_port(), f"sk-{secret()}"
        config = site.directory / "litellm.yaml"
        config.write_text(_CONFIG.format(upstream=site.upstream_port, key=key))
        options = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        program = site.start("litellm", [_COMMAND, *options, "--telemetry", "False"], _ENVIRONMENT)
        program.wait_for_port(port, deadline_s=_START_S)
        return Started(port, (program,), (f"Authorization: Bearer {key}",))
