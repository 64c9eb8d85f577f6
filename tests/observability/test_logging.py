"""The log: its writer when there is nowhere to write, and the line of an exchange."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Literal

import pytest
import structlog

from proxy.model import Ending
from proxy.observability import logging as logs
from proxy.observability.logging import LineWriter, Redactor, configure, exchange_logger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Lines(list[bytes]):
    """A writer that keeps what it is given."""

    write = list.append

    def close(self) -> None:
        """Nothing waits."""


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Where lines go while a test configures logging."""
    yield Lines()
    structlog.reset_defaults()


@pytest.mark.parametrize("worker", [None, "2"])
@pytest.mark.parametrize("format_", ["json", "console"])
def test_exchange_line_is_like_any(lines: Lines, format_: Literal["json", "console"], worker: str | None) -> None:
    """An exchange's line is, but for its time, what structlog makes of the same event; no secret is in it either."""
    redactor = Redactor(["a-secret-of-ours"])
    configure(format_=format_, level="info", redactor=redactor, writer=lines, worker=worker)
    event = {"id": "x", "ending": Ending.COMPLETE, "path": "/a-secret-of-ours/é", "status": None, "ttfb_ms": 1.5}

    structlog.get_logger().info("exchange.settled", **event)
    exchange_logger()({**event, "event": "exchange.settled"})

    one, other = (re.sub(rb"[0-9-]+T[0-9:.]+Z", b"TIME", line) for line in lines)
    assert re.search(rb"[0-9]T[0-9:.]+Z", lines[1])
    if format_ == "json":
        assert json.loads(one) == json.loads(other)
        assert json.loads(other)["ending"] == "complete"
        assert json.loads(other).get("worker") == worker
    else:
        assert one == other
    assert b"a-secret" not in other
    assert b"/[redacted]/" in other


@pytest.mark.parametrize(
    "text",
    ["\x1b[2J", "\x1b]0;x\x07", "\x9b2J", "a\r\n[info] b", "a\n", "\x00", "\u202eb", "\u2028", "\x7f", "a\udce9"],
)
def test_console_line_of_a_hostile_name(lines: Lines, text: str) -> None:
    """A terminal is given nothing that it obeys, and one line, whatever a user, an id or a model is called."""
    configure(format_="console", level="info", redactor=Redactor([]), writer=lines, worker=None)
    structlog.get_logger().info("operator.acted", target=text, others=[text], more={text: text}, name="Émile 王")
    (line,) = lines
    shown = line.decode()
    assert shown.rstrip("\n").isprintable()
    assert "name='Émile 王'" in shown


# C1, what turns the direction of writing, and line ends beyond ASCII.
OBEYED = [
    *map(chr, range(0x80, 0xA0)),
    *"\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
]


@pytest.mark.parametrize("key", ["name", 7])
def test_json_line_of_a_hostile_name(lines: Lines, key: str | int) -> None:
    """A terminal that is shown a line of JSON obeys nothing of it, or whoever parses it reads another text."""
    configure(format_="json", level="info", redactor=Redactor([]), writer=lines, worker=None)
    text = "Émile 王 " + "".join(f"{char}2J" for char in OBEYED)
    structlog.get_logger().info("operator.acted", target=text, more={text: text, key: 1})
    (line,) = lines
    assert not set(line.decode()) & set(OBEYED)
    assert "Émile 王" in line.decode()
    told = json.loads(line)
    assert (told["target"], told["more"][text]) == (text, text)


def test_json_line_that_is_shortened(lines: Lines) -> None:
    """A long line of several workers has, cut, what a terminal obeys, which the whole one has not."""
    configure(format_="json", level="info", redactor=Redactor([]), writer=lines, worker="1")
    structlog.get_logger().info("configuration.refused", faults=["\x9b2J" * 2000])
    cut = logs.shorten(lines[0])
    assert len(cut) <= logs.MAX_LINE_BYTES
    assert b"\\u009b2J" in cut
    assert "\x9b" not in cut.decode()


@pytest.mark.parametrize("secret", ['quo"ted-secret', "back\\slash-secret", "turned\u202e-secret"])
@pytest.mark.parametrize("format_", ["json", "console"])
def test_secret_that_is_escaped(lines: Lines, format_: Literal["json", "console"], secret: str) -> None:
    """A secret of which the line escapes a character stays in it."""
    configure(format_=format_, level="info", redactor=Redactor([secret]), writer=lines)
    structlog.get_logger().info("upstream.failed", reason=f"the key {secret} is bad")
    assert b"-secret" not in lines[0]
    assert b"[redacted]" in lines[0]


def test_exchange_line_below_the_level(lines: Lines) -> None:
    """With a level above its own the line is not written."""
    configure(format_="json", level="warning", redactor=Redactor(), writer=lines)
    exchange_logger()({"event": "exchange.settled"})
    assert lines == []


@pytest.mark.skipif(sys.platform != "linux", reason="writes to /dev/full")
def test_log_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines wait while the disk is full, and are written when there is room again."""
    monkeypatch.setattr(logs, "FULL_DISK_RETRY_S", 0.01)
    full = os.open("/dev/full", os.O_WRONLY)
    room = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    tried = 0
    write = os.write

    def counted(descriptor: int, data: bytes) -> int:
        nonlocal tried
        tried += descriptor == full
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", counted)
    writer = LineWriter(full)
    writer.write(b"while it was full")
    until_s = time.monotonic() + 10
    while tried < 3 and time.monotonic() < until_s:
        time.sleep(0.005)
    os.dup2(room, full)
    writer.write(b"afterwards")
    until_s = time.monotonic() + 10
    while b"afterwards" not in (tmp_path / "log").read_bytes() and time.monotonic() < until_s:
        time.sleep(0.005)
    writer.close()
    for descriptor in (full, room):
        os.close(descriptor)

    assert tried >= 3
    assert (tmp_path / "log").read_bytes().splitlines() == [b"while it was full", b"afterwards"]


@pytest.mark.skipif(sys.platform != "linux", reason="writes to /dev/full")
def test_log_full_disk_at_the_end() -> None:
    """A disk that stays full keeps no process from ending."""
    full = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(full)
    writer.write(b"nobody will read this")
    writer.close()
    os.close(full)
    assert not writer._thread.is_alive()
