"""Another model in a body: its value changes, every other byte stays."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import InvalidRequestError
from proxy.protocol.model_member import replace_model
from tests.steps import counted, finish


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"model":"a"}', b'{"model":"new"}'),
        (b' {\t"model" : "a" , "x": 1.0e5 }\n', b' {\t"model" : "new" , "x": 1.0e5 }\n'),
        (b'{"m\\u006fdel":"a"}', b'{"m\\u006fdel":"new"}'),
        (b'{"model":"\\u0061\\"b"}', b'{"model":"new"}'),
        (b'{"x":{"model":"inner"},"model":"a"}', b'{"x":{"model":"inner"},"model":"new"}'),
        (b'\xef\xbb\xbf{"model":"a","n":NaN}', b'\xef\xbb\xbf{"model":"new","n":NaN}'),
        (b'{"s":"\\"model\\":\\"x\\"","model":"a"}', b'{"s":"\\"model\\":\\"x\\"","model":"new"}'),
    ],
)
def test_replace_model(text: bytes, expected: bytes) -> None:
    """However the member is written, and whatever stands around it."""
    assert finish(replace_model(text, "new")) == expected


@pytest.mark.parametrize("text", [b'{"model":"a","model":"b"}', b'{"model":"a","\\u006dodel":"b"}', b"{}", b"[]", b"x"])
def test_replace_model_refused(text: bytes) -> None:
    """A member that is there twice, or not, is refused: two readers would read two models."""
    with pytest.raises(InvalidRequestError):
        finish(replace_model(text, "new"))


def test_replace_model_of_a_large_body() -> None:
    """A large body is copied in pieces, between which the loop serves others."""
    before, behind = b'{"a":"' + b"x" * 3_000_000 + b'","model":', b',"b":"' + b"y" * 3_000_000 + b'"}'
    changed, turns = counted(replace_model(before + b'"old"' + behind, 'ne"w'))

    assert bytes(changed) == before + b'"ne\\"w"' + behind
    assert turns > 6


@given(
    st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists), max_size=5),
    st.text(min_size=1),
    st.booleans(),
)
def test_replace_model_any(others: dict[str, object], model: str, is_ascii: bool) -> None:
    """Any object has the new model, and is otherwise the same."""
    text = json.dumps({**others, "model": "old"}, ensure_ascii=is_ascii).encode("utf-8", "replace")

    assert json.loads(finish(replace_model(text, model))) == {**json.loads(text), "model": model}
