"""`forward-sse doctor --local`: what the proxy's machine lacks, without a secret in its words."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import yaml
from aiohttp import web

from proxy.cli.doctor import local
from proxy.cli.doctor import verdict as report
from proxy.mock.server import MockVendor
from tests.conftest import SECRET
from tests.limits.redis_support import RedisServer
from tests.settings_builder import values

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from pytest_aiohttp.plugin import AiohttpServer

    from proxy.cli.doctor import Verdict

KEY, BAD_KEY = "good-key-canary", "bad-key-canary"
MODELS = {"data": [{"id": "text-1"}, {"id": "gpt-9"}]}


class Vendor:
    """Knows one key; counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.status = 200
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.method, request.path))
        if self.status != 200:
            return web.Response(status=self.status)
        if KEY not in {request.headers.get("Authorization", "")[7:], request.headers.get("x-api-key", "")}:
            # As careless vendors do.
            return web.json_response({"error": f"bad {request.headers.get('Authorization')}"}, status=401)
        if request.method == "GET":
            return web.json_response(MODELS)
        body = await request.json()
        return web.json_response({"model": body["model"], "max_tokens": body["max_tokens"]})


@pytest.fixture
async def vendor(aiohttp_server: AiohttpServer) -> Vendor:
    one = Vendor()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", one.answer)
    server = await aiohttp_server(app)
    one.url = str(server.make_url("")).rstrip("/")
    return one


async def examine(path: Path, *, is_paid: bool = False, **changes: Any) -> list[Verdict]:
    """The verdicts on a configuration; none of their lines has a secret."""
    file = path / "proxy.yaml"
    file.write_text(yaml.safe_dump(values(**changes)))
    found = [verdict async for verdict in local.examine(file, is_paid=is_paid)]
    for verdict in found:
        assert "canary" not in report.line(verdict)
        assert SECRET not in report.line(verdict)
    return found


def of(found: list[Verdict], check: str) -> list[tuple[str, str]]:
    return [(verdict.verdict, verdict.says) for verdict in found if verdict.check == check]


async def test_local_fine(tmp_path: Path, vendor: Vendor) -> None:
    """Where nothing is wrong, nothing fails; vendors are asked only for their models."""
    found = await examine(tmp_path, url=vendor.url, main={"api_key": KEY})

    assert report.exit_code(found) == 0
    assert [verdict for verdict, _ in of(found, "vendor")] == ["ok"]
    assert of(found, "keys") == [("ok", "tests: its key stands in the file.")]
    assert vendor.asked == [("GET", "/v1/models")]
    checks = [verdict.check for verdict in found]
    assert list(dict.fromkeys(checks)) == [
        "configuration",
        "port",
        "descriptors",
        "uvloop",
        "store",
        "keys",
        "vendor",
        "clock",
    ]


async def test_local_faulty_file(tmp_path: Path) -> None:
    """Every fault of the file is a verdict, and nothing else is tried."""
    found = await examine(tmp_path, url="ftp://x", workers=0)

    assert {verdict.check for verdict in found} == {"configuration"}
    assert len(found) >= 2
    assert report.exit_code(found) == 1


async def test_local_keys_of_a_vendor(tmp_path: Path, vendor: Vendor) -> None:
    """Each key is judged; what a vendor repeats of it is not shown."""
    upstream = {"url": vendor.url, "dialect": "openai", "api_keys": [KEY, BAD_KEY]}
    found = await examine(tmp_path, url=vendor.url, upstreams={"main": upstream})

    assert [verdict for verdict, _ in of(found, "vendor")] == ["ok", "fail"]
    assert "key 2 of 2" in of(found, "vendor")[1][1]


@pytest.mark.parametrize(
    ("status", "expected"), [(500, "fail"), (429, "warn"), (404, "warn"), (403, "fail"), (302, "warn")]
)
async def test_local_vendor_answers(tmp_path: Path, vendor: Vendor, status: int, expected: str) -> None:
    """What a vendor answers is judged by its status."""
    vendor.status = status
    found = await examine(tmp_path, url=vendor.url, main={"api_key": KEY})

    assert [verdict for verdict, _ in of(found, "vendor")] == [expected]


@pytest.mark.parametrize(("dialect", "path"), [("openai", "/v1/chat/completions"), ("anthropic", "/v1/messages")])
async def test_local_paid(tmp_path: Path, vendor: Vendor, dialect: str, path: str) -> None:
    """With `--paid` the first model that the file's globs match generates one token."""
    found = await examine(tmp_path, url=vendor.url, main={"api_key": KEY, "dialect": dialect}, is_paid=True)

    assert [verdict for verdict, _ in of(found, "vendor")] == ["ok", "ok"]
    assert "gpt-9: it generated a token" in of(found, "vendor")[1][1]
    assert vendor.asked == [("GET", "/v1/models"), ("POST", path)]


async def test_local_paid_in_every_dialect(tmp_path: Path) -> None:
    """The smallest request of each dialect is one that its vendor takes."""
    async with MockVendor() as mock:
        url = f"http://127.0.0.1:{mock.port}"
        models = {"openai": "gpt-4o", "anthropic": "claude-1", "gemini": "gemini-1", "dashscope": "qwen-1"}
        upstreams = {
            dialect: {"url": url, "dialect": dialect, "api_key": "mock-key", "models": [model]}
            for dialect, model in models.items()
        }
        found = await examine(tmp_path, upstreams=upstreams, default_upstream="openai", is_paid=True)
    generated = [says for verdict, says in of(found, "vendor") if "generated a token" in says and verdict == "ok"]
    assert sorted(says.partition(",")[0] for says in generated) == sorted(models)


async def test_local_vendor_unreachable(tmp_path: Path) -> None:
    """A vendor that is not there, or has no name, is told by which."""
    upstreams = {
        "gone": {"url": "http://127.0.0.1:1", "dialect": "openai", "api_key": KEY},
        "away": {"url": "https://nowhere.invalid", "dialect": "openai", "api_key": KEY},
    }
    found = await examine(tmp_path, upstreams=upstreams, default_upstream="gone")

    assert of(found, "vendor") == [
        ("fail", "away: nowhere.invalid has no address."),
        ("fail", "gone: the connection was refused."),
    ]
    assert of(found, "clock") == [("warn", "No vendor told its time.")]


async def test_local_ports(tmp_path: Path, vendor: Vendor) -> None:
    """A port that something else has fails, an address that is not this machine's too."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = await examine(
            tmp_path,
            url=vendor.url,
            main={"api_key": KEY},
            listen=[f"127.0.0.1:{port}", "192.0.2.1:8080"],
            admin_listen="off",
        )

    assert [verdict.change for verdict in found if verdict.check == "port"] == [
        "Stop what listens there, or choose another port.",
        "Use an address of this machine, or 0.0.0.0.",
    ]


async def test_local_store(tmp_path: Path, vendor: Vendor) -> None:
    """A limits server says what it is; a wrong policy is a warning, an absent server a failure."""
    server = RedisServer()
    await server.start()
    try:
        limits = {"store": server.url}
        found = await examine(tmp_path, url=vendor.url, main={"api_key": KEY}, limits=limits)
        # How fast it is on a busy machine is not asserted.
        says = of(found, "store")[0][1]
        assert "version " in says
        assert "noeviction" in says
        await server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        found = await examine(tmp_path, url=vendor.url, main={"api_key": KEY}, limits=limits)
        assert of(found, "store")[0][0] == "warn"
    finally:
        server.close()
    found = await examine(tmp_path, url=vendor.url, main={"api_key": KEY}, limits=limits)
    assert [verdict for verdict, _ in of(found, "store")] == ["fail"]


async def test_local_key_set(tmp_path: Path, vendor: Vendor) -> None:
    """An issuer whose keys cannot be fetched fails, with the reason."""
    issuer = {"issuer": "i", "audience": "llm", "algorithms": ["RS256"], "jwks_url": "http://127.0.0.1:1/jwks"}
    found = await examine(tmp_path, url=vendor.url, main={"api_key": KEY}, auth={"jwt": [issuer]})

    assert [verdict for verdict, _ in of(found, "keys")] == ["fail"]


@pytest.mark.parametrize(("directory", "expected"), [("", "ok"), ("absent/", "fail")])
async def test_local_ledger(tmp_path: Path, vendor: Vendor, directory: str, expected: str) -> None:
    """A ledger whose directory is there can be used."""
    usage = {"ledger": f"sqlite:///{tmp_path}/{directory}l.db"}
    found = await examine(tmp_path, url=vendor.url, main={"api_key": KEY}, usage=usage)

    assert [verdict for verdict, _ in of(found, "ledger")] == [expected]
