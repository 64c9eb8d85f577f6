"""What the doctor's tests share: the verdicts on an address, and which of them are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.cli.doctor.remote import Examination, examine
from tests.conftest import token

if TYPE_CHECKING:
    from proxy.cli.doctor import Verdict
    from tests.conftest import Running

# Short of time, patient with a busy machine.
QUICK: dict[str, Any] = {
    "intervals_ms": (50, 150, 300),
    "left_for_s": (2.0, 5.0),
    "body_sizes": (65536, 2 * 1024 * 1024),
    "patience_s": 5.0,
    "silence_s": 0.5,
}


async def verdicts(url: str, **changes: Any) -> dict[str, Verdict]:
    """The verdicts by check; of several of one check the worst."""
    order = ("ok", "warn", "fail")
    found: dict[str, Verdict] = {}
    async for verdict in examine(Examination(url, **({"token": token()} | QUICK | changes))):
        old = found.get(verdict.check)
        if old is None or order.index(verdict.verdict) > order.index(old.verdict):
            found[verdict.check] = verdict
    return found


def wrong(found: dict[str, Verdict]) -> dict[str, str]:
    """What is not ok, besides that most tests speak no TLS."""
    assert found["tls"].verdict == "warn"
    return {check: one.verdict for check, one in found.items() if one.verdict != "ok" and check != "tls"}


def url_of(proxy: Running, scheme: str = "http") -> str:
    """The proxy's address."""
    return f"{scheme}://127.0.0.1:{proxy.address[1]}"
