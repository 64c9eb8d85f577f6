"""A real Prometheus for the tests, which scrapes once a second; and what a board asks it."""

from __future__ import annotations

import asyncio
import json
import math
import re
import socket
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.needs import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    import aiohttp

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "config/grafana/forward-sse.json"
RULES = ROOT / "config/prometheus/rules.yaml"
# Until Prometheus answers, and until it has ended.
_WAIT_S = 30.0


def panels() -> list[dict[str, Any]]:
    """The board's panels without its rows."""
    return [panel for panel in json.loads(BOARD.read_text())["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Each panel's title with each of its queries."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def with_values(query: str, values: Mapping[str, str]) -> str:
    """The query as Grafana sends it, with the variables' values."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values[found[1]], query)


def promtool(*arguments: str | Path, stdin: str = "") -> str:
    """Run it, and return what it has to say against what it was given; fail with all it says where it fails."""
    ran = subprocess.run(
        [need("promtool"), *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stderr


class Prometheus:
    """One that runs."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(self, path: str, **parameters: str) -> Any:
        """What the API answers."""
        async with self._session.get(f"{self._url}/api/v1/{path}", params=parameters) as response:
            answer = await response.json()
        assert answer["status"] == "success", (path, parameters, answer)
        return answer["data"]

    async def has_data(self, query: str) -> bool:
        """Whether a query returns at least one number now."""
        found = await self.ask("query", query=query)
        return any(not math.isnan(float(sample["value"][1])) for sample in found["result"])

    async def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            async with self._session.get(f"{self._url}/-/ready") as response:
                return response.status == 200
        except OSError:
            return False


@asynccontextmanager
async def prometheus(
    folder: Path, session: aiohttp.ClientSession, target: tuple[str, int]
) -> AsyncIterator[Prometheus]:
    """One with our rules that scrapes the target as the job `forward-sse`; it has ended when this is left."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "forward-sse", "static_configs": [{"targets": [f"{target[0]}:{target[1]}"]}]}],
    }
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        need("prometheus"),
        *(f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address={address}", "--log.level=error"),
    )
    try:
        one = Prometheus(session, f"http://{address}")
        async with asyncio.timeout(_WAIT_S):
            while not await one.is_ready():
                assert process.returncode is None
                await asyncio.sleep(0.05)
        yield one
    finally:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(_WAIT_S):
                await process.wait()
