"""Lines of several processes on one descriptor."""

from __future__ import annotations

import json
import logging
import os
import select
from typing import TYPE_CHECKING

import orjson
import structlog
from hypothesis import given
from hypothesis import strategies as st

from proxy.observability.logging import MAX_LINE_BYTES, LineWriter, Redactor, configure, pieces, shorten
from proxy.server.workers import arbiter_log as journal
from proxy.server.workers.arbiter_log import ArbiterLog, DirectWriter

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


@given(st.lists(st.integers(0, 3 * select.PIPE_BUF), max_size=12))
def test_pieces(lengths: list[int]) -> None:
    """Nothing is lost or reordered; no piece is torn by the system unless it is one line that is too long by itself."""
    lines = [b"x" * length for length in lengths]
    written = list(pieces(lines))
    assert b"".join(written) == b"".join(line + b"\n" for line in lines)
    for piece in written:
        assert piece.endswith(b"\n")
        assert len(piece) <= select.PIPE_BUF or piece.count(b"\n") == 1


def test_line_writer_shared(tmp_path: Path) -> None:
    """Each line of a shared descriptor arrives, whole where it is short enough to be written at once."""
    descriptor = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    writer = LineWriter(descriptor, is_shared=True)
    lines = [b"%d" % number + b"x" * (number * 97 % 9000) for number in range(300)]
    for line in lines:
        writer.write(line)
    writer.close()
    os.close(descriptor)
    assert (tmp_path / "log").read_bytes().splitlines() == [line[:MAX_LINE_BYTES] for line in lines]


@given(
    st.dictionaries(st.text(max_size=20), st.text() | st.lists(st.text()), max_size=5),
    st.text(max_size=5),
    st.integers(1, 3000),
)
def test_shorten(event: dict[str, object], text: str, times: int) -> None:
    """A line that is too long is cut in its longest values, and stays a JSON object with the same names."""
    event = {"event": "configuration.refused", **event, "faults": [text + '"\u0000' * times]}
    line = orjson.dumps(event)
    shortened = shorten(line)
    if len(line) <= MAX_LINE_BYTES:
        assert shortened == line
    else:
        assert len(shortened) <= MAX_LINE_BYTES
        assert list(json.loads(shortened)) == list(event)


def test_direct_writer_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is stuck costs the lines meant for it, not the arbiter; later lines are whole again."""
    monkeypatch.setattr(journal, "WAIT_S", 0.05)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    filler = 0
    while True:
        try:
            filler += os.write(writing, b"f" * 4095 + b"\n")
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    writer = DirectWriter(writing)
    writer.write(b"lost")
    os.read(reading, filler)
    writer.write(b"kept")
    assert os.read(reading, 65536) == b"kept\n"
    os.close(reading)
    # Nobody reads any more.
    writer.write(b"unheard")
    writer.close()
    os.close(writing)


def test_direct_writer_shortens(tmp_path: Path) -> None:
    """A line that could not be written at once is cut."""
    descriptor = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    DirectWriter(descriptor).write(orjson.dumps({"event": "configuration.refused", "faults": ["x" * 9000]}))
    os.close(descriptor)
    line = (tmp_path / "log").read_bytes()
    assert len(line) <= select.PIPE_BUF
    assert json.loads(line)["event"] == "configuration.refused"


def test_journal_speaks_as_all_lines_do(tmp_path: Path) -> None:
    """Gunicorn's words are one JSON line each; what it chats about is for who debugs it; a failure says where."""
    descriptor = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    configure(format_="json", level="info", redactor=Redactor(), writer=DirectWriter(descriptor), worker="1-0")
    log = ArbiterLog()
    try:
        log.info("Booting worker with pid: %s", 7)
        log.warning("half %s", "done")
        log.critical("100%")
        try:
            int("secret words of an exception")
        except ValueError:
            log.exception("it failed")
        log.reopen_files()
        log.close_on_exec()
    finally:
        structlog.reset_defaults()
        logging.getLogger().handlers = []
        os.close(descriptor)
    lines = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    assert [(line["event"], line["level"], line.get("message")) for line in lines] == [
        ("arbiter.reported", "warning", "half done"),
        ("arbiter.reported", "error", "100%"),
        ("arbiter.reported", "error", "it failed"),
    ]
    assert lines[-1]["error"] == "ValueError"
    assert lines[-1]["at"].startswith("test_arbiter_log.py:")
    assert {line["worker"] for line in lines} == {"1-0"}
    assert b"secret words" not in (tmp_path / "log").read_bytes()
