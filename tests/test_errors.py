"""The answers that are the proxy's own: what their fields tell a client to do."""

from __future__ import annotations

import pytest

from proxy.dialects import openai
from proxy.errors import RateLimitExceededError, refusal


@pytest.mark.parametrize(
    ("seconds", "retry_after", "should_retry"),
    [
        (0.0, b"1", None),
        (59.2, b"60", None),
        (60.0, b"60", None),
        (60.5, b"61", b"false"),
        (86_400.0, b"86400", b"false"),
    ],
)
def test_refusal_should_retry(seconds: float, retry_after: bytes, should_retry: bytes | None) -> None:
    """A client is told not to wait where the wait is longer than a person's."""
    fields = dict(refusal(RateLimitExceededError(retry_after_s=seconds), openai.OpenAI()).fields)

    assert fields[b"Retry-After"] == retry_after
    assert fields.get(b"X-Should-Retry") == should_retry
