"""Logging: structlog to standard output, one JSON object a line, no secret in it.

A worker must not wait for whoever reads its log. Lines are handed to one thread that writes them in batches; when the
reader is stuck the lines that do not fit are dropped, counted, and the count is logged when the reader is back.

Secrets are kept out twice: nothing here is given a field that holds one, and every line is searched for the configured
secrets' values before it is written.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import sys
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, Protocol

import orjson
import structlog

from proxy.observability.terminal import escape_json, for_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping

# What waits for a stuck reader at most: about 4 MiB of lines.
MAX_WAITING_LINES = 10_000
# Lines that come within this time share one write, and one wake of the thread.
BATCH_S = 0.02
# A disk that is full is so for a while. What does not fit meanwhile is dropped and counted, as for a stuck reader.
FULL_DISK_RETRY_S = 0.5
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Of several workers: less than PIPE_BUF on Linux (4096), so that a line is written whole. An exchange's line never
# reaches it: what a client chooses of it (path, user, id) is bounded.
MAX_LINE_BYTES = 4000
MIN_SECRET_LENGTH = 6
# What lines of the proxy's own have: no field of an operator's may stand in its place, nor in lines that lack it, where
# it would mean something else.
OWN_FIELDS = frozenset(
    """
    event level time worker id user issuer plan upstream method path status ending ttfb_ms duration_ms bytes events code
    reason attempts client limits model input_tokens output_tokens cached_tokens reasoning_tokens cost_usd usage row_id
    dialect price_version trace_id span_id error frames lines logger at pid version name
    action operator role target by result unlogged stopped silent
    admin_listen again_s auth delay_s exit_code faults issuer key listen message needs_restart on_store_error out_for_s
    outcome pause_s place proxy rest_s rows rows_waiting signal source spans sqlstate state streams streams_ended
    timeout_s workers
    """.split()  # noqa: SIM905 - as a list it would be ninety lines
)
REDACTED = b"[redacted]"


class LineWriter:
    """Writes lines to a file descriptor from a thread of its own, in order. `close` writes what waits, then ends.

    Where several processes write to the same descriptor (`is_shared`), each write has at most PIPE_BUF bytes, which the
    system writes whole or not at all: no line is interleaved with another process's.
    """

    def __init__(self, descriptor: int, *, is_shared: bool = False) -> None:
        self._descriptor = descriptor
        self._is_shared = is_shared
        # Its `put` is in C, and wakes the thread only where it waits; an event's `set` is not. `close` puts None.
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._dropped = 0
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue a line without its end; never blocks."""
        if self._lines.qsize() >= MAX_WAITING_LINES:
            self._dropped += 1
            return
        self._lines.put(shorten(line) if self._is_shared and len(line) > MAX_LINE_BYTES else line)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, for at most `timeout_s`. Idempotent."""
        self._is_closing = True
        self._lines.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            first = self._lines.get()
            if not self._is_closing:
                time.sleep(BATCH_S)
            if not self._flush(first) or (self._is_closing and self._lines.empty()):
                return

    def _flush(self, first: bytes | None) -> bool:
        """Write the line and those that wait behind it; False where the descriptor takes no more."""
        taken = [first, *(self._lines.get() for _ in range(self._lines.qsize()))]
        batch = [line for line in taken if line is not None]
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            batch.append(orjson.dumps({"event": "log.lines_dropped", "level": "warning", "lines": dropped}))
        if not batch:
            return True
        if self._is_shared:
            return all(self._write(piece) for piece in pieces(batch))
        return self._write(b"\n".join(batch) + b"\n")

    def _write(self, piece: bytes) -> bool:
        data = memoryview(piece)
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                time.sleep(BATCH_S)
            except OSError as exc:
                if exc.errno not in _FULL or self._is_closing:
                    # Whoever read the log is gone; streams go on without it.
                    return False
                time.sleep(FULL_DISK_RETRY_S)
        return True


def pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Join the lines, each with its end, into as few pieces of at most PIPE_BUF bytes as possible.

    POSIX write(2) on a pipe: up to PIPE_BUF bytes are atomic, even when the process is killed. A longer line is a piece
    of its own; `LineWriter` keeps none.
    """
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) >= select.PIPE_BUF:
            yield piece
            piece = b""
        piece += line + b"\n"
    if piece:
        yield piece


class Redactor:
    """Replaces the configured secrets' values wherever they stand in a line."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: tuple[bytes, ...] = ()
        self.add_secrets(secrets)

    def add_secrets(self, secrets: Iterable[str]) -> None:
        """Add secrets to look for; those of earlier configurations are kept, since their streams may still run."""
        known = set(self._secrets)
        # Shorter ones would redact ordinary words; the settings refuse secrets that short where they are ours.
        long = [secret for secret in secrets if len(secret) >= MIN_SECRET_LENGTH]
        known.update(secret.encode() for secret in long)
        # As they stand in a line of JSON: of most the same.
        known.update(escape_json(orjson.dumps(secret)[1:-1]) for secret in long)
        self._secrets = tuple(known)

    def redact(self, line: bytes) -> bytes:
        """The line without secrets."""
        for secret in self._secrets:
            # Not `in`, which for bytes tries first whether the secret is a number, and fails at some cost.
            if line.find(secret) >= 0:
                line = line.replace(secret, REDACTED)
        return line


def shorten(line: bytes) -> bytes:
    """Cut the longest values of a line until it has at most `MAX_LINE_BYTES`; a line of JSON stays JSON.

    Lines that long are those that list an operator's faults. Done after redaction, so that no half of a secret is left.
    """
    try:
        event: dict[str, Any] = orjson.loads(line)
    except ValueError:
        # The console's format is for reading only.
        return line[:MAX_LINE_BYTES]
    while len(line) > MAX_LINE_BYTES:
        longest = max(event, key=lambda name: len(orjson.dumps(event[name])))
        value = event[longest]
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        event[longest] = text[: len(text) // 2] + "…"
        line = escape_json(orjson.dumps(event))
    return line


class _Logger:
    """The logger that structlog passes a rendered line to."""

    def __init__(self, writer: Writer, redactor: Redactor, *, is_access_logged: bool) -> None:
        self.writer = writer
        self.redactor = redactor
        self.is_access_logged = is_access_logged

    def msg(self, line: bytes) -> None:
        self.writer.write(self.redactor.redact(line))

    debug = info = warning = error = critical = msg


class _ThirdParty(logging.Handler):
    """Libraries log here: their messages may repeat what a client sent, so only where and what kind is kept."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        structlog.get_logger().log(
            record.levelno, "library.reported", logger=record.name, at=f"{record.module}:{record.lineno}", error=error
        )


def _render_json(_logger: object, _name: str, event: MutableMapping[str, Any]) -> bytes:
    try:
        line = orjson.dumps(event, default=repr)
    except orjson.JSONEncodeError:
        # Somewhere a key is no text. Allowing for that takes twice as long, also where all are.
        line = orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS)
    return line if line.isascii() else escape_json(line)


def _render_console() -> structlog.typing.Processor:
    render = structlog.dev.ConsoleRenderer(colors=False)

    def render_bytes(logger: object, name: str, event: MutableMapping[str, Any]) -> bytes:
        return for_terminal(render(logger, name, event)).encode()

    return render_bytes


_MILLISECONDS = tuple(f".{millisecond:03d}Z" for millisecond in range(1000))


class _Timestamp:
    """Adds `time`, in UTC with milliseconds; the whole seconds are formatted once a second, not once a line."""

    def __init__(self) -> None:
        self._second = 0
        self._text = ""

    def __call__(self, _logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        now_s = time.time()
        second = int(now_s)
        if self._second != second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        event["time"] = self._text + _MILLISECONDS[int((now_s - second) * 1000)]
        return event


def _name_worker(worker: str) -> structlog.typing.Processor:
    def name(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["worker"] = worker
        return event

    return name


def _add_fields(fields: Mapping[str, Any]) -> structlog.typing.Processor:
    def add(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for name, value in fields.items():
            event.setdefault(name, value)
        return event

    return add


class Writer(Protocol):
    """Where lines go."""

    def write(self, line: bytes) -> None:
        """Take a line without its end; never blocks for long."""
        ...

    def close(self) -> None:
        """Write what waits."""
        ...


def configure(
    *,
    format_: Literal["json", "console"],
    level: str,
    redactor: Redactor,
    descriptor: int | None = None,
    writer: Writer | None = None,
    worker: str | None = None,
    fields: Mapping[str, Any] | None = None,
    is_access_logged: bool = True,
) -> Writer:
    """Set up structlog and take over the libraries' loggers; the caller closes the writer.

    `descriptor` is standard output unless given, `writer` writes to it unless given. Where there are several workers,
    every line names its own. `fields` are those that every line has. Without `is_access_logged` those exchanges
    have a line that have a code: those that the proxy refused, or could not serve.
    """
    if writer is None:
        writer = LineWriter(sys.stdout.fileno() if descriptor is None else descriptor)
    number = logging.getLevelNamesMapping()[level.upper()]
    render: structlog.typing.Processor = _render_json if format_ == "json" else _render_console()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            *([] if worker is None else [_name_worker(worker)]),
            *([_add_fields(fields)] if fields else []),
            _Timestamp(),
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_args: _Logger(writer, redactor, is_access_logged=is_access_logged),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_ThirdParty()]
    root.setLevel(max(number, logging.WARNING))
    return writer


def exchange_logger() -> Callable[[dict[str, Any]], None]:
    """What writes an exchange's line, by the configuration of the moment.

    The line is what structlog would make of the event, with the processors of `configure`, but for the loggers,
    contexts and copies that other lines have: this one is written for every request.
    """
    config = structlog.get_config()
    if not structlog.get_logger().is_enabled_for(logging.INFO):
        return lambda _event: None
    logger = config["logger_factory"]()
    if not isinstance(logger, _Logger):
        # An application around this one has its own way of logging, or none.
        return lambda event: structlog.get_logger().info(**event)
    *constant, stamp, render = config["processors"]
    write, redact = logger.writer.write, logger.redactor.redact
    # What the first ones add is the same in every line.
    added: dict[str, Any] = {}
    for process in constant:
        added = process(logger, "info", added)

    def write_exchange(event: dict[str, Any]) -> None:
        event.update(added)
        write(redact(render(logger, "info", stamp(logger, "info", event))))

    if logger.is_access_logged:
        return write_exchange

    def write_refused(event: dict[str, Any]) -> None:
        if event["code"] is not None:
            event["event"] = "exchange.refused"
            write_exchange(event)

    return write_refused


def log_failure(id_: str) -> None:
    """Log the exception being handled as a defect of ours: where it was, never its text, which may repeat a request."""
    kind, _, trace = sys.exc_info()
    frames: list[str] = []
    while trace is not None:
        frames.append(f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}")
        trace = trace.tb_next
    structlog.get_logger().error(
        "exchange.failed", id=id_, error=None if kind is None else kind.__name__, frames=frames[-8:]
    )


def log_credentials_refused(id_: str, upstream: str, status: int) -> None:
    """Warn the operator that an upstream does not accept a key of theirs: no user can mend that."""
    structlog.get_logger().warning("upstream.credentials_refused", id=id_, upstream=upstream, status=status)


def log_limits_change(on_store_error: str, problem: str | None) -> None:
    """Tell that the limits server is lost, and what is done meanwhile; or that it is back."""
    if problem is None:
        structlog.get_logger().info("limits.store_regained")
    else:
        structlog.get_logger().warning("limits.store_lost", reason=problem, on_store_error=on_store_error)


class UpstreamLog:
    """Logs what changes about upstreams: no key, only the first digits of its SHA-256."""

    def upstream_out(self, upstream: str, out_for_s: float | None) -> None:
        """Routes leave an upstream out, or take it back."""
        if out_for_s is None:
            structlog.get_logger().info("upstream.back", upstream=upstream)
        else:
            structlog.get_logger().warning("upstream.out", upstream=upstream, out_for_s=out_for_s)

    def key_rests(self, upstream: str, key: str, status: int, rest_s: float, *, is_only: bool) -> None:
        """A vendor refused a key. Where there is no other, the refusal itself is what an operator is warned of."""
        log = structlog.get_logger()
        (log.info if is_only else log.warning)(
            "upstream.key_resting", upstream=upstream, key=key, status=status, rest_s=round(rest_s, 3)
        )

    def upstream_switched(self, upstream: str, *, is_off: bool) -> None:
        """An operator has turned an upstream off, or on."""
        structlog.get_logger().warning("upstream.switched", upstream=upstream, state="off" if is_off else "on")
