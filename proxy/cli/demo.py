"""The demo: the mock vendor and the proxy in one process, no key and no network; prints a command that works."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import jwt

from proxy.mock.server import MockVendor
from proxy.observability.logging import Redactor, configure
from proxy.server.run import new_event_loop, serve
from proxy.settings.loading import load

if TYPE_CHECKING:
    from proxy.settings import Settings

# In a checkout, and where an installation puts it.
_CONFIGS = (
    Path(__file__).resolve().parent.parent.parent / "config" / "demo.yaml",
    Path(sys.prefix) / "share" / "forward-sse" / "demo.yaml",
)
# As a model would: fast enough not to bore, slow enough to be seen streaming.
_PACE_MS = 80
_TOKEN_TTL_S = 24 * 3600

_BANNER = """
forward-sse demo: the proxy on {base}, an offline vendor behind it.

Open the playground (the token is behind the #, which no browser sends):

{base}/playground#token={token}

Or watch a stream (paste this into another terminal):

curl -N {base}/forward-sse \\
  -H 'Authorization: Bearer {token}' \\
  -H 'Content-Type: application/json' \\
  -d '{{"model":"gpt-4o","stream":true,"messages":[{{"role":"user","content":"Why do streams matter?"}}]}}'

Press Ctrl-C in that terminal while it streams: the vendor's request is cancelled at once, and counted:
curl {mock}/mock/stats

What your requests have used, and what is left of your limits:
curl {base}/forward-sse/usage -H 'Authorization: Bearer {token}'

The operator's console, which shows every stream and can stop it:
{admin}/console

Each exchange leaves one line below. Ctrl-C here ends the demo.
"""


def run(host: str, port: int) -> int:
    """Serve the demo until it is interrupted, and return the exit code."""
    writer = None
    try:
        with (
            TemporaryDirectory(prefix="forward-sse-") as room,
            asyncio.Runner(loop_factory=new_event_loop) as runner,
        ):
            redactor = Redactor()
            writer = configure(format_="console", level="info", redactor=redactor)
            return runner.run(_demo(host, port, redactor, room))
    finally:
        if writer is not None:
            writer.close()


async def _demo(host: str, port: int, redactor: Redactor, room: str) -> int:
    secret = secrets.token_urlsafe(32)
    config = next((path for path in _CONFIGS if path.exists()), _CONFIGS[0])
    overrides = {"listen": f"{host}:{port}", "usage": {"ledger": f"sqlite:///{room}/ledger.db"}}
    async with MockVendor(host="127.0.0.1", port=0, interval_ms=_PACE_MS) as vendor:
        mock = f"http://127.0.0.1:{vendor.port}"

        def settings() -> Settings:
            return load(config, {**os.environ, "DEMO_SECRET": secret, "DEMO_MOCK_URL": mock}, overrides)

        now_s = int(time.time())
        claims = {"iss": "demo", "aud": "llm", "sub": "you", "iat": now_s, "exp": now_s + _TOKEN_TTL_S}
        token = jwt.encode(claims, secret, algorithm="HS256")

        def announce(address: str, admin: str) -> None:
            sys.stdout.write(_BANNER.format(base=f"http://{address}", admin=f"http://{admin}", mock=mock, token=token))
            sys.stdout.flush()

        return await serve(settings(), settings, redactor, announce=announce)
