"""The bound of output that a request's own body sets, in each vendor's words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects import DIALECTS
from tests.steps import counted, finish

if TYPE_CHECKING:
    from proxy.errors import Field


def bound(dialect: str, body: bytes, fields: tuple[Field, ...] = ()) -> int | None:
    return finish(DIALECTS[dialect].output_bound(fields, body))


@pytest.mark.parametrize(
    ("dialect", "body", "expected"),
    [
        ("openai", b'{"model": "m", "max_tokens": 32000}', 32_000),
        ("openai", b'{"max_completion_tokens":7,"max_tokens":32000}', 7),
        ("openai", b'{"input": "x", "max_output_tokens": 9}', 9),
        ("openai", b'{"max_tokens": 100, "n": 3}', 300),
        ("openai", b'{"max_tokens": 100, "n": null}', 100),
        ("anthropic", b'{"max_tokens": 4096, "n": 3}', 4096),
        ("anthropic", b'{"prompt": "x", "max_tokens_to_sample": 4}', 4),
        ("gemini", b'{"contents": [], "generationConfig": {"maxOutputTokens": 50, "candidateCount": 2}}', 100),
        ("gemini", b'{"generation_config": {"max_output_tokens": 50}}', 50),
        ("gemini", b'{"generationConfig": null, "maxOutputTokens": 5}', None),
        ("gemini", b'{"maxOutputTokens": 5}', None),
        ("dashscope", b'{"model": "m", "input": {}, "parameters": {"max_tokens": 6}}', 6),
        ("dashscope", b'{"parameters": "max_tokens", "max_tokens": 6}', None),
        ("dashscope", b'{"input": {"max_tokens": 6}}', None),
        ("raw", b'{"max_tokens": 6}', None),
        # In a text, or in a message, it bounds nothing.
        ("openai", b'{"messages": [{"content": "\\"max_tokens\\": 5", "max_tokens": 5}]}', None),
    ],
)
def test_bound(dialect: str, body: bytes, expected: int | None) -> None:
    """The smallest of the dialect's own members, times the answers that are asked for; each only where it belongs."""
    assert bound(dialect, body) == expected


@pytest.mark.parametrize(
    "value", [b"0", b"-1", b"1.5", b"1e3", b'"7"', b"null", b"true", b"[7]", b"007", b"9" * 13, b"9" * 5000, b""]
)
def test_bound_that_is_no_positive_integer(value: bytes) -> None:
    """Anything else is no bound, and refuses nothing."""
    assert bound("openai", b'{"max_tokens": %b}' % value) is None
    assert bound("openai", b'{"max_tokens": 5, "n": %b}' % value) in {5, None}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"max_tokens=5", ()),
        (b'["max_tokens"]', ()),
        (b'{"max_tokens": 5', ()),
        (b'{"max_tokens": 5, "x": undefined}', ()),
        (b'{"max_tokens": 5}', ((b"content-encoding", b"gzip"),)),
        (b'{"x": "' + b"x" * 300_000 + b'", "max_tokens": 5}', ()),
        (b"", ()),
    ],
)
def test_bound_of_a_body_that_is_not_read(body: bytes, fields: tuple[Field, ...]) -> None:
    """What is no strict JSON object, coded or huge has no bound."""
    assert bound("openai", body, fields) is None


def test_bound_behind_a_long_conversation() -> None:
    """A body of two hundred kilobytes is read."""
    assert bound("openai", b'{"messages": [{"content": "' + b"x" * 200_000 + b'"}], "max_tokens": 5}') == 5


def test_bound_of_a_body_that_takes_long() -> None:
    """A body that was made to be slow is read in pieces, between which the loop serves others."""
    body = b'{"x": [' + b"[[[[[[[[[[]]]]]]]]]]," * 12_000 + b'0], "max_tokens": 5}'
    found, turns = counted(DIALECTS["openai"].output_bound((), body))
    assert found == 5
    assert turns > 5


@given(
    body=st.one_of(
        st.binary(max_size=80),
        st.lists(
            st.sampled_from(
                [
                    b"{",
                    b"}",
                    b'"max_tokens"',
                    b'"parameters"',
                    b":",
                    b",",
                    b"5",
                    b"\\",
                    b'"',
                    b"[",
                    b'"generationConfig"',
                ]
            ),
            max_size=14,
        ).map(b"".join),
    ),
    dialect=st.sampled_from(sorted(DIALECTS)),
)
def test_bound_of_nonsense(body: bytes, dialect: str) -> None:
    """Whatever the body, it raises nothing."""
    found = bound(dialect, body)
    assert found is None or found > 0
