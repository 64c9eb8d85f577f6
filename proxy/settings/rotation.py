"""Upstreams' secrets and authorities in files that change while the proxy runs: read again, and passed on.

Mounted secrets rotate: Kubernetes swaps a link, an agent renames a file, a token expires within the hour. Every file is
read at each look, not only asked for its time of change: it costs less than a request, and no file system, clock or
link can hide a change.

What the keys of issuers and the limits server are made of is left to a reload.
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
from proxy.upstream.tls import make_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping

    from proxy.settings import Settings

# A change is noticed within a minute, also where a look takes its time.
LOOK_EVERY_S = 30.0
# More than any system's list of authorities.
_MAX_AUTHORITY_BYTES = 4 << 20


@dataclass(slots=True)
class _Look:
    """What one look found: settings with the secrets as they are now, and authorities that are new."""

    settings: Settings
    changed: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    authorities: dict[str, bytes] = field(default_factory=dict)
    contexts: dict[str, ssl.SSLContext] = field(default_factory=dict)


class FileWatch:
    """Looks at the files every half minute, and calls `apply` where one of them has changed.

    A look runs in a thread of its own, for a file system that hangs must stop neither the loop nor the process's end;
    there is never more than one. A file that cannot be used changes nothing, and is told in one warning until that
    changes.

    Attributes:
        settings: Whose files are looked at; a reload replaces it.
    """

    def __init__(
        self,
        settings: Settings,
        apply: Callable[[Settings, Mapping[str, ssl.SSLContext]], None],
        *,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`apply` is given the settings of now, and a TLS context for each file of authorities that has changed.

        `pause` waits for that many seconds.
        """
        self.settings = settings
        self._apply = apply
        self._pause = pause
        self._faults: dict[str, str] = {}
        self._authorities: dict[str, bytes] = {}

    async def run(self) -> None:
        """Look, at once and then after each pause, until cancelled."""
        while True:
            await self.look()
            await self._pause(LOOK_EVERY_S)

    async def look(self) -> None:
        """Look once. Cancelling leaves the thread to itself; what it finds is dropped."""
        settings = self.settings
        if not settings.secret_files and not any(upstream.ca_file for upstream in settings.upstreams.values()):
            return
        try:
            found = await _in_thread(partial(_look, settings, dict(self._authorities)))
        except RuntimeError as exc:  # the system has no thread left; the next look may get one
            structlog.get_logger().warning("secret.unreadable", place="upstreams", reason=str(exc))
            return
        if self.settings is not settings:
            # A reload has read them meanwhile.
            return
        self.settings = found.settings
        self._authorities = found.authorities
        if found.contexts or found.settings is not settings:
            self._apply(found.settings, found.contexts)
        for place in found.changed:
            structlog.get_logger().info("secret.reread", place=place)
        for place, reason in found.faults.items():
            if self._faults.get(place) != reason:
                structlog.get_logger().warning("secret.unreadable", place=place, reason=reason)
        self._faults = found.faults


def _look(settings: Settings, known: Mapping[str, bytes]) -> _Look:
    look = _Look(settings)
    for location, source in settings.secret_files:
        place = dotted(location)
        try:
            changed = look.settings.with_secret(location, read_secret_file(source))
        except InvalidValue as wrong:
            look.faults[place] = wrong.message
            continue
        if changed is not None:
            look.settings = changed
            look.changed.append(place)
    for name, upstream in settings.upstreams.items():
        if upstream.ca_file is not None:
            _look_at_authorities(look, f"upstreams.{name}.ca_file", str(upstream.ca_file), known)
    return look


def _look_at_authorities(look: _Look, place: str, path: str, known: Mapping[str, bytes]) -> None:
    if path not in look.authorities:
        try:
            if not Path(path).is_file():
                raise OSError  # noqa: TRY301 - told as any file that cannot be had
            with Path(path).open("rb") as file:
                content = file.read(_MAX_AUTHORITY_BYTES)
            if known.get(path) != content:
                # Of the file as it is then. If that is newer than what was read, the next look makes another.
                look.contexts[path] = make_context(path)
            look.authorities[path] = content
        except OSError:  # ssl.SSLError is one
            look.faults[place] = "cannot be used as a file of authorities"
            if path in known:
                look.authorities[path] = known[path]
            return
    # At the first look nothing is known, and what is read is most likely what is used.
    if path in look.contexts and path in known:
        look.changed.append(place)


async def _in_thread(function: Callable[[], _Look]) -> _Look:
    """Call it in a thread that holds nobody up: neither others' look-ups, as the loop's own few would, nor the exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Look] = loop.create_future()

    def deliver(found: _Look | None, error: BaseException | None) -> None:
        if done.done():
            return
        if found is not None:
            done.set_result(found)
        elif error is not None:
            done.set_exception(error)

    def run() -> None:
        found, error = None, None
        try:
            found = function()
        except BaseException as exc:  # noqa: BLE001 - it is whoever waits that has to know
            error = exc
        # The loop may be closed by now.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(deliver, found, error)

    threading.Thread(target=run, name="file-watch", daemon=True).start()
    return await done
