"""gunicorn's application object: what the arbiter and its workers share, and gunicorn's configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gunicorn.app.base import BaseApplication

from proxy.settings.fixed import keep_fixed

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from proxy.observability.logging import Redactor
    from proxy.server.workers.socket_handoff import SharedSockets
    from proxy.settings import Settings

# A worker notifies the arbiter every second; without a notification for this long it is stuck.
STUCK_S = 60


class WorkerApplication(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """The proxy as gunicorn's application. A worker inherits it by the fork, with the settings to serve."""

    def __init__(
        self, settings: Settings, load: Callable[[], Settings], redactor: Redactor, shared: SharedSockets
    ) -> None:
        self.settings = settings
        self.load_settings = load
        self.redactor = redactor
        self.shared = shared
        # The number of the worker that is started next, and the arbiter's end of each worker's control socket.
        self.next_number = 0
        self.controls: set[socket.socket] = set()
        super().__init__()

    def load_config(self) -> None:
        """Set the few options of gunicorn that are used."""
        self.cfg.set("workers", self.settings.workers)
        self.cfg.set("timeout", STUCK_S)
        self.cfg.set("worker_tmp_dir", str(self.shared.directory))
        # Another way to control the arbiter, which is not needed.
        self.cfg.set("control_socket_disable", True)  # noqa: FBT003 - gunicorn's signature

    def load(self) -> WorkerApplication:
        """Return this object: there is no WSGI application, each worker makes an aiohttp application."""
        return self

    def update_settings(self, settings: Settings) -> None:
        """Set what workers that start later serve; keys that need a restart keep their values."""
        self.settings = keep_fixed(settings, self.settings)
