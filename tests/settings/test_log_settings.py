"""`log`: its fields, and which exchanges have a line."""

from __future__ import annotations

import ast
import json
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from pydantic import ValidationError

from proxy.observability.logging import OWN_FIELDS, Redactor, configure, exchange_logger
from proxy.settings.log import MOST_BYTES, Log
from tests.conftest import token
from tests.observability.test_logging import Lines
from tests.peers import LAST, STREAM_HEAD, chunk, connect, event, request
from tests.whole.test_commands import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Running
    from tests.peers import Upstream

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "fields",
    [
        {"level": "x"},
        {"trace_id": "x"},
        {"operator": "x"},
        {"user": "x"},
        {"a b": "x"},
        {"": "x"},
        {"a": ["x"]},
        {"a": "line\nbreak"},
        {"a": None},
        {f"n{number}": "x" for number in range(17)},
        {"a": "x" * MOST_BYTES},
        "text",
    ],
)
def test_fields_are_refused(fields: Any) -> None:
    """Names of the proxy's own, what is no name, no single value, or too much of it."""
    with pytest.raises(ValidationError):
        Log.model_validate({"fields": fields})


@pytest.mark.parametrize("access", [True, "true", "yes", "none", 1])
def test_access_is_refused(access: object) -> None:
    """Only the two words, as the file has them."""
    with pytest.raises(ValidationError):
        Log.model_validate({"access": access})


async def test_own_fields_are_all_there(proxy: Running, upstream: Upstream) -> None:
    """No name in an exchange's line is free for an operator's field."""
    client = await proxy.client()
    parent = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    client.write(request(body={"model": "gpt-x"}, token=token(), fields=(parent,)))
    vendor, _ = await upstream.take()
    vendor.write(STREAM_HEAD + LAST)
    await client.read_until(LAST)
    line = (await proxy.settled())[0]
    assert "trace_id" in line
    assert set(line) <= OWN_FIELDS


def test_fields_of_all_lines_are_there() -> None:
    """No name that a line of any event has is free for an operator's field."""
    for file in (ROOT / "proxy").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            first = node.args[0] if node.args else None
            is_event = isinstance(first, ast.Constant) and re.fullmatch(r"[a-z_]+\.[a-z_]+", str(first.value))
            is_noted = ast.unparse(node.func) in {"note", "note_more"}
            if is_event or is_noted:
                assert {keyword.arg for keyword in node.keywords if keyword.arg} <= OWN_FIELDS, (file, node.lineno)


@pytest.fixture
def lines() -> Iterator[Lines]:
    yield Lines()
    structlog.reset_defaults()


def test_fields_in_every_line(lines: Lines) -> None:
    """Every line has the fields, and its own where both have one."""
    configure(format_="json", level="info", redactor=Redactor(), writer=lines, fields={"region": "eu-1", "zone": 3})
    structlog.get_logger().warning("something.happened", zone="own")
    exchange_logger()({"event": "exchange.settled", "code": None})
    found = [json.loads(line) for line in lines]
    assert [(line["region"], line["zone"]) for line in found] == [("eu-1", "own"), ("eu-1", 3)]


def test_access_off(lines: Lines) -> None:
    """Without a line for each, those that were refused or failed have one, under a name of its own."""
    configure(format_="json", level="info", redactor=Redactor(), writer=lines, is_access_logged=False)
    log = exchange_logger()
    log({"event": "exchange.settled", "id": "1", "code": None})
    log({"event": "exchange.settled", "id": "2", "code": "invalid_token"})
    structlog.get_logger().warning("something.happened")
    found = [json.loads(line) for line in lines]
    named = [(line["event"], line.get("id")) for line in found]
    assert named == [("exchange.refused", "2"), ("something.happened", None)]


async def test_access_off_keeps_the_ledger(tmp_path: Path, upstream: Upstream) -> None:
    """The command writes no line for a stream that ended well, one for a refusal, and a row for the stream."""
    more = f"log: {{access: off, fields: {{region: eu-1}}}}\nusage: {{ledger: 'sqlite:///{tmp_path}/ledger.db'}}\n"
    async with serve(tmp_path, upstream, more) as (served, address):
        async with await connect(address) as client:
            client.write(request(body={"model": "gpt-x"}, token=token()))
            vendor, _ = await upstream.take()
            vendor.write(STREAM_HEAD + chunk(event("one")) + LAST)
            await client.read_until(LAST)
        async with await connect(address) as client:
            client.write(request(body={"model": "gpt-x"}))
            assert (await client.read_message()).status == 401
        served.process.terminate()
        written = await served.rest()
    assert [line for line in written if line["event"] == "exchange.settled"] == []
    assert [line["code"] for line in written if line["event"] == "exchange.refused"] == ["missing_token"]
    assert {line["region"] for line in written} == {"eu-1"}
    with sqlite3.connect(tmp_path / "ledger.db") as book:
        tables = [name for (name,) in book.execute("select name from sqlite_master where type = 'table'")]
        table = next(name for name in tables if name.startswith("exchange"))
        assert book.execute(f"select count(*) from {table}").fetchone() == (1,)
    book.close()
