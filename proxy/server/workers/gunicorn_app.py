"""What the arbiter and its workers have in common, as gunicorn wants it: an application and its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gunicorn.app.base import BaseApplication

from proxy.app import FIXED_KEYS

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from proxy.observability.logging import Redactor
    from proxy.server.workers.socket_handoff import SharedSockets
    from proxy.settings import Settings

# Without a sign of life for this long a worker is stuck: its event loop turns at least once a second.
STUCK_S = 60


class Service(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """The proxy as gunicorn's application. A worker finds here, by the fork, what it is to serve."""

    def __init__(
        self, settings: Settings, load: Callable[[], Settings], redactor: Redactor, ground: SharedSockets
    ) -> None:
        self.settings = settings
        self.load_settings = load
        self.redactor = redactor
        self.ground = ground
        # The place of the worker that is made next, and the arbiter's ends of the workers' orders.
        self.place = 0
        self.controls: set[socket.socket] = set()
        super().__init__()

    def load_config(self) -> None:
        """Tell gunicorn what little of it is used."""
        self.cfg.set("workers", self.settings.workers)
        self.cfg.set("timeout", STUCK_S)
        self.cfg.set("worker_tmp_dir", str(self.ground.directory))
        # A door to the arbiter that nobody asked for.
        self.cfg.set("control_socket_disable", True)  # noqa: FBT003 - gunicorn's signature

    def load(self) -> Service:
        """There is no WSGI application; workers make an `App`."""
        return self

    def renew(self, settings: Settings) -> None:
        """Have workers that are made from now on serve these settings, but for those that need a restart."""
        fixed = {key: getattr(self.settings, key) for key in FIXED_KEYS}
        self.settings = settings.model_copy(update=fixed)
