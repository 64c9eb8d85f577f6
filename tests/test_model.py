"""The words of the domain, as far as they do anything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.model import FieldIndex, RequestHead

NAMES = st.sampled_from([b"Host", b"host", b"Via", b"VIA", b"X-A", b"x_a"])


@given(st.lists(st.tuples(NAMES, st.sampled_from([b"", b"1", b"2", b"3"])), max_size=8))
def test_field_index(fields: list[tuple[bytes, bytes]]) -> None:
    """Fields are found by their lower-case names: the first, all of them in order, and whether there are several."""
    index = FieldIndex(fields)

    for name in (b"host", b"via", b"x-a", b"x_a", b"HOST"):
        every = [value for key, value in fields if key.lower() == name]
        assert list(index.every(name)) == every
        assert index.get(name) == (every[0] if every else None)
        assert (name in index) is bool(every)
        assert (name in index.repeated) is (len(every) > 1)


def test_head_repr() -> None:
    """What is made of a head for a message shows no field's value by way of its index."""
    head = RequestHead("POST", b"/", None, ((b"Authorization", b"Bearer canary"),))

    assert "canary" not in repr(head.index)
    assert "index" not in repr(head)
