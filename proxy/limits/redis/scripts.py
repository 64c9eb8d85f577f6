"""The Lua scripts: each is one atomic step on the server, by the server's clock."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.limits.redis.channel import Channel, Command, Sent
    from proxy.limits.redis.errors import ServerError

_OF_TOKENS = ("reserve", "settle", "free", "hold", "restore_tokens", "stand")
_ROOM = files("proxy.limits.redis") / "lua"


def _read(name: str) -> str:
    return (_ROOM / f"{name}.lua").read_text("utf-8")


class Script:
    """One script: its source, and the commands that run it."""

    def __init__(self, source: str) -> None:
        self.source = source.encode()
        self.digest = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()

    def command(self, keys: Sequence[bytes], arguments: Sequence[bytes | str | int]) -> Command:
        """Run it by its digest; a server that does not know it answers NOSCRIPT."""
        return (b"EVALSHA", self.digest, len(keys), *keys, *arguments)

    def whole_command(self, keys: Sequence[bytes], arguments: Sequence[bytes | str | int]) -> Command:
        """Run it by its source, which every server understands, and knows from then on."""
        return (b"EVAL", self.source, len(keys), *keys, *arguments)


class Scripts:
    """All of them.

    Those that run all the time are run by their digests. One that the server must first be told runs behind what was
    sent meanwhile: harmless for an admission, a reservation or a settlement, which nobody else's command waits for, and
    for what an empty server is told, of which the larger holds; but a refund would come behind its user's next charge,
    so its source is always sent, and a renewal (`renew`, `hold`) behind the release, which it would undo, so it is made
    anew.

    Args:
        clock: Lua that sets `now` to the microseconds of a clock that all workers share. Only tests pass another one;
            nothing that a worker sends can.
    """

    def __init__(self, clock: str | None = None) -> None:
        prelude = (clock or _read("clock")) + _read("rates")
        names = ("admit", "refund", "renew", "restore", "greet", "open_ticket", "keep_ticket", "take_ticket")
        scripts = [Script(prelude + _read(name)) for name in names]
        self.admit, self.refund, self.renew, self.restore, self.greet = scripts[:5]
        self.open_ticket, self.keep_ticket, self.take_ticket = scripts[5:]
        prelude += _read("tokens")
        scripts = [Script(prelude + _read(name)) for name in _OF_TOKENS]
        self.reserve, self.settle, self.free, self.hold, self.restore_tokens, self.stand = scripts
        resent = (self.admit, self.reserve, self.settle, self.free, self.restore, self.restore_tokens)
        self._resent: dict[object, Script] = {script.digest: script for script in resent}

    @property
    def renewals(self) -> tuple[Script, Script]:
        """Those that must not run behind a release."""
        return self.renew, self.hold

    def resend(self, channel: Channel, sent: Sent, error: ServerError) -> bool:
        """Send a script again with its whole source, where the server does not know it (any more)."""
        command = sent.command
        script = self._resent.get(command[1]) if error.code == "NOSCRIPT" and len(command) > 1 else None
        if script is None:
            return False
        channel.send((b"EVAL", script.source, *command[2:]), sent.on_answer, asked_s=sent.asked_s)
        return True
