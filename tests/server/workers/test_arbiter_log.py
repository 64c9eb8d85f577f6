"""Lines of several processes on one descriptor."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from proxy.observability.logging import LineWriter, Redactor, configure, pieces
from proxy.server.workers import arbiter_log as journal
from proxy.server.workers.arbiter_log import ArbiterLog, DirectWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def turn(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "turn", os.O_CREAT | os.O_RDWR)
    yield descriptor
    os.close(descriptor)


@given(st.lists(st.integers(0, 3 * select.PIPE_BUF), max_size=12))
def test_pieces(lengths: list[int]) -> None:
    """Nothing is lost or reordered; no piece is torn by the system unless it is one line that is too long by itself."""
    lines = [b"x" * length for length in lengths]
    written = list(pieces(lines))
    assert b"".join(written) == b"".join(line + b"\n" for line in lines)
    for piece in written:
        assert piece.endswith(b"\n")
        assert len(piece) <= select.PIPE_BUF or piece.count(b"\n") == 1


def test_line_writer_in_turns(tmp_path: Path, turn: int) -> None:
    """Lines that take turns arrive like others, long ones included, and the turn is given back."""
    descriptor = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    writer = LineWriter(descriptor, turn)
    lines = [b"%d" % number + b"x" * (number * 97 % 9000) for number in range(300)]
    for line in lines:
        writer.write(line)
    writer.close()
    os.close(descriptor)
    assert (tmp_path / "log").read_bytes().splitlines() == lines
    fcntl.lockf(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_direct_writer_does_not_wait_for_ever(turn: int, monkeypatch: pytest.MonkeyPatch) -> None:
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
    writer = DirectWriter(writing, turn)
    writer.write(b"lost")
    os.read(reading, filler)
    writer.write(b"kept")
    assert os.read(reading, 65536) == b"kept\n"
    os.close(reading)
    # Nobody reads any more.
    writer.write(b"unheard")
    writer.close()
    os.close(writing)


def test_direct_writer_ends_a_torn_line(turn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long line that a stuck reader took half of does not run into the next."""
    monkeypatch.setattr(journal, "WAIT_S", 0.05)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    writer = DirectWriter(writing, turn)
    writer.write(b"x" * 6000)
    assert os.read(reading, 65536) == b"x" * 4096
    writer.write(b"next")
    assert os.read(reading, 65536) == b"\nnext\n"
    os.close(reading)
    os.close(writing)


def test_journal_speaks_as_all_lines_do(tmp_path: Path, turn: int) -> None:
    """Gunicorn's words are one JSON line each; what it chats about is for who debugs it; a failure says where."""
    descriptor = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    configure(format_="json", level="info", redactor=Redactor(), writer=DirectWriter(descriptor, turn), worker="1-0")
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
