"""The keys of one upstream: which one is used next, and which ones rest because the vendor refused them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from proxy.dialects import DIALECTS
from proxy.protocol.header_fields import fold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from proxy.errors import Field
    from proxy.model import KeyRules, Upstream

# The vendor does not know the key, or does not want it: by itself that does not pass.
REFUSED: Final = frozenset({401, 403})
UNPAID: Final = 402
LIMITED: Final = 429
# All by which a vendor refuses a key, and not the request.
REFUSALS: Final = REFUSED | {UNPAID, LIMITED}
# How long a key without credit rests, and one that was refused, before one request tries it again.
ASIDE_S: Final = 600.0
# The first rest of a limited key whose vendor does not say how long; it doubles up to `cooldown`.
FIRST_REST_S: Final = 1.0
# A vendor may say a day, and mean a quota that its operator raises in a minute.
LONGEST_REST_S: Final = 3600.0
_DIGEST_DIGITS: Final = 8


class Key:
    """One key and its state. Times are the loop's, in seconds.

    Attributes:
        name: The first 8 hexadecimal digits of the key's SHA-256, for logs and metrics.
        field: The header field that carries it.
        running: How many requests use it now.
        resting_until_s: When it is used again; 0 where it does not rest.
        refused_with: The status for which it rests; None where it does not.
    """

    __slots__ = (
        "_rested_since_s",
        "_rests",
        "credit",
        "digest",
        "field",
        "name",
        "refused_with",
        "resting_until_s",
        "running",
        "weight",
    )

    def __init__(self, key: bytes, field: Field, weight: int = 1) -> None:
        self.digest = hashlib.sha256(key).hexdigest()
        self.name = self.digest[:_DIGEST_DIGITS]
        self.field = field
        self.weight = weight
        self.running = 0
        # Of the weighted turns: who has most is next.
        self.credit = 0
        self.resting_until_s = 0.0
        self.refused_with: int | None = None
        self._rested_since_s = 0.0
        self._rests = 0

    def __repr__(self) -> str:
        """Hide the key."""
        return f"Key({self.name})"

    def rests(self, now_s: float) -> bool:
        """Whether it should not be used now."""
        return now_s < self.resting_until_s

    def refused(self, status: int, rest_s: float | None, now_s: float, cooldown_s: float) -> float | None:
        """Have the key rest; return for how long, or None where it rested already.

        `rest_s` is what the vendor said, None where it did not.
        """
        was_resting = self.rests(now_s)
        if status != LIMITED:
            rest_s = ASIDE_S
        elif rest_s is None:
            rest_s = min(FIRST_REST_S * 2**self._rests, cooldown_s)
        if not was_resting and FIRST_REST_S * 2**self._rests < cooldown_s:
            self._rests += 1
        rest_s = min(rest_s, LONGEST_REST_S)
        self.refused_with = status
        self._rested_since_s = now_s
        self.resting_until_s = max(self.resting_until_s, now_s + rest_s)
        return None if was_resting else rest_s

    def accepted(self, begun_s: float) -> None:
        """A request that began then was not refused for the key: it is well, unless it was refused since."""
        if self.refused_with is not None and begun_s >= self._rested_since_s:
            self.wake()

    def wake(self) -> None:
        """End its rest."""
        self.resting_until_s = 0.0
        self.refused_with = None
        self._rests = 0

    def begin_probe(self, now_s: float) -> None:
        """Where the key was set aside and its time is over, have everybody else wait for what this request finds."""
        if self.refused_with is not None and self.refused_with != LIMITED and not self.rests(now_s):
            self.resting_until_s = now_s + ASIDE_S


class KeyPool:
    """All keys of one upstream. Nothing here waits.

    Attributes:
        is_choice: There are several.
        only: The one key; None where there are several, or none.
    """

    __slots__ = ("_now", "is_choice", "keys", "only", "rules")

    def __init__(self, keys: Sequence[Key], rules: KeyRules, now: Callable[[], float]) -> None:
        self.keys = tuple(keys)
        self.is_choice = len(self.keys) > 1
        self.only = self.keys[0] if len(self.keys) == 1 else None
        self.rules = rules
        self._now = now

    @property
    def all_rest(self) -> bool:
        """Whether there are keys, and none of them should be used now."""
        now_s = self._now()
        # Asked for each target of each request of a route: nearly always the first key answers it.
        for key in self.keys:
            if now_s >= key.resting_until_s:
                return False
        return bool(self.keys)

    def pick(self) -> Key | None:
        """Choose the key of a request; where all rest, the one that rests shortest; None where there are none."""
        keys = self.keys
        if not self.is_choice:
            return self.only
        now_s = self._now()
        awake = [key for key in keys if not key.rests(now_s)]
        if not awake:
            return min(keys, key=lambda key: key.resting_until_s)
        key = self._choose(awake)
        key.begin_probe(now_s)
        return key

    def next_after(self, tried: Iterable[Key], status: int) -> Key | None:
        """Choose the key with which a request is tried again that was refused with that status; None for none.

        One that does not rest. After a refusal for the key itself also one that is only limited: it may be well by
        now. After 429 not: with all keys at their limits, every request would ask with each of them.
        """
        now_s = self._now()
        untried = [key for key in self.keys if key not in tried]
        awake = [key for key in untried if not key.rests(now_s)]
        if awake:
            key = self._choose(awake)
            key.begin_probe(now_s)
            return key
        limited = [] if status == LIMITED else [key for key in untried if key.refused_with == LIMITED]
        return min(limited, key=lambda key: key.resting_until_s, default=None)

    def _choose(self, keys: list[Key]) -> Key:
        """By fewest running streams for their weight, unless turns are asked for; equals take weighted turns."""
        if self.rules.strategy == "least_busy":
            least = min(key.running / key.weight for key in keys)
            keys = [key for key in keys if key.running / key.weight == least]
        # Smooth weighted turns, as nginx has them: all get their weight, and who is chosen pays for all.
        for key in keys:
            key.credit += key.weight
        chosen = max(keys, key=lambda key: key.credit)
        chosen.credit -= sum(key.weight for key in keys)
        return chosen


def credential_field(upstream: Upstream, key: bytes) -> Field:
    """Return the field that carries the vendor's key: the operator's choice carries it bare, else the dialect knows."""
    if upstream.credential_header is not None:
        return upstream.credential_header, key
    return DIALECTS[upstream.dialect].credential_field(key.decode())


def keys_of(upstream: Upstream) -> list[Key]:
    """Return the keys of an upstream, those of which the operator's headers leave no trace left out; none twice."""
    keys: dict[str, Key] = {}
    names = {fold(name) for name, _ in upstream.headers}
    weights = upstream.key_weights or (1,) * len(upstream.keys)
    for text, weight in zip(upstream.keys, weights, strict=True):
        value = text.encode()
        field = credential_field(upstream, value)
        if fold(field[0]) not in names:
            key = Key(value, field, weight)
            keys.setdefault(key.digest, key)
    return list(keys.values())
