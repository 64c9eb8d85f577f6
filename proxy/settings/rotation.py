"""Secret rotation: reads upstreams' secrets and TLS files again while the proxy runs, and applies changes.

Kubernetes swaps a symbolic link, an agent renames a file. Every file is read each time, instead of its modification
time: that costs less than a request, and no file system, clock or link can hide a change.

Keys of issuers and the files of the limits server are read at a reload only.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from proxy.settings import InvalidValue
from proxy.settings.loading.faults import dotted
from proxy.settings.loading.substitution import read_secret_file
from proxy.settings.ways import tls_files
from proxy.upstream.tls import make_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping

    from proxy.model import TlsFiles
    from proxy.settings import Settings

# A change is noticed within a minute, also if reading is slow.
LOOK_EVERY_S = 30.0
# More than any system's trust store.
_MAX_AUTHORITY_BYTES = 4 << 20
# The keys of an upstream that name its TLS files, in the order of `TlsFiles`; and the one that a fault is told of.
_KEYS = ("ca_file", "client_certificate.certificate", "client_certificate.key")
_FIRST = ("ca_file", "client_certificate")


@dataclass(slots=True)
class _FileContents:
    """The result of reading the files: settings with the current secrets, and new TLS contexts.

    `tls` has what was read of each upstream's TLS files, which is compared the next time.
    """

    settings: Settings
    changed: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    tls: dict[TlsFiles, tuple[bytes, ...]] = field(default_factory=dict)
    contexts: dict[TlsFiles, ssl.SSLContext] = field(default_factory=dict)


class FileWatch:
    """Reads the files every 30 s, and calls `apply` if one of them has changed.

    Reading runs in a daemon thread, at most one: a file system that hangs blocks neither the event loop nor the exit.
    For a file that cannot be used the last good value stays, with one warning for each new cause.

    Attributes:
        settings: The settings whose files are read; a reload replaces it.
    """

    def __init__(
        self,
        settings: Settings,
        apply: Callable[[Settings, Mapping[TlsFiles, ssl.SSLContext]], None],
        *,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`apply` gets the new settings, and a TLS context for each set of files of which one has changed.

        `pause` waits for that many seconds.
        """
        self.settings = settings
        self._apply = apply
        self._pause = pause
        self._faults: dict[str, str] = {}
        self._tls: dict[TlsFiles, tuple[bytes, ...]] = {}

    @property
    def faulty(self) -> int:
        """How many of the files could not be used the last time."""
        return len(self._faults)

    async def run(self) -> None:
        """Read the files at once and then after each pause, until cancelled."""
        while True:
            await self.look()
            await self._pause(LOOK_EVERY_S)

    async def look(self) -> None:
        """Read the files once. When cancelled, the thread goes on and its result is dropped."""
        settings = self.settings
        if not settings.secret_files and not any(
            upstream.ca_file or upstream.client_certificate for upstream in settings.upstreams.values()
        ):
            return
        try:
            found = await _run_in_daemon_thread(partial(_read_files, settings, dict(self._tls)))
        except RuntimeError as exc:  # no thread can be started; the next time may succeed
            structlog.get_logger().warning("secret.unreadable", place="upstreams", reason=str(exc))
            return
        if self.settings is not settings:
            # A reload has replaced them meanwhile.
            return
        self.settings = found.settings
        self._tls = found.tls
        if found.contexts or found.settings is not settings:
            self._apply(found.settings, found.contexts)
        for place in found.changed:
            structlog.get_logger().info("secret.reread", place=place)
        for place, reason in found.faults.items():
            if self._faults.get(place) != reason:
                structlog.get_logger().warning("secret.unreadable", place=place, reason=reason)
        self._faults = found.faults


def _read_files(settings: Settings, known: Mapping[TlsFiles, tuple[bytes, ...]]) -> _FileContents:
    contents = _FileContents(settings)
    for location, source in settings.secret_files:
        place = dotted(location)
        try:
            changed = contents.settings.with_secret(location, read_secret_file(source))
        except InvalidValue as wrong:
            contents.faults[place] = wrong.message
            continue
        if changed is not None:
            contents.settings = changed
            contents.changed.append(place)
    for name, upstream in settings.upstreams.items():
        files = tls_files(upstream.ca_file, upstream.client_certificate)
        if any(files):
            _read_tls(contents, f"upstreams.{name}", files, known)
    return contents


def _read_tls(
    contents: _FileContents, place: str, files: TlsFiles, known: Mapping[TlsFiles, tuple[bytes, ...]]
) -> None:
    """Read an upstream's TLS files. A certificate that was replaced before its key is a fault until both fit."""
    before = known.get(files)
    if files not in contents.tls:
        try:
            read = tuple(b"" if path is None else _content_of(path) for path in files)
            if before != read:
                # Reads the files again. If one has changed since, the next run makes another.
                contents.contexts[files] = make_context(files)
            contents.tls[files] = read
        except OSError:  # ssl.SSLError is one
            what = "a file of authorities" if files.certificate is None else "TLS files: not readable, or not matching"
            contents.faults[f"{place}.{_FIRST[files.certificate is not None]}"] = f"cannot be used as {what}"
            if before is not None:
                contents.tls[files] = before
            return
    # The first run has nothing to compare; the files are most likely those in use.
    if files in contents.contexts and before is not None:
        read = contents.tls[files]
        contents.changed += [f"{place}.{key}" for key, old, new in zip(_KEYS, before, read, strict=True) if old != new]


def _content_of(path: str) -> bytes:
    if not Path(path).is_file():
        raise OSError
    with Path(path).open("rb") as file:
        return file.read(_MAX_AUTHORITY_BYTES)


async def _run_in_daemon_thread(function: Callable[[], _FileContents]) -> _FileContents:
    """Run a function in a daemon thread, which blocks neither the loop's executor nor the exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_FileContents] = loop.create_future()

    def run() -> None:
        try:
            deliver = partial(done.set_result, function())
        except BaseException as exc:  # noqa: BLE001 - raised again in the awaiting task
            deliver = partial(done.set_exception, exc)
        # The event loop may be closed, and the awaiting task cancelled.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: done.done() or deliver())

    threading.Thread(target=run, name="file-watch", daemon=True).start()
    return await done
