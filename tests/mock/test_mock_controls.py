from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.mock.controls import Controls, Fault, Newline, RefusedError, read_controls


def test_controls_absent() -> None:
    """Without controls there is no fault, no wait but the default pace, and the mock's own text."""
    assert read_controls([("alt", "sse"), ("key", "k")], [("Accept", "*/*")], interval_ms=7) == Controls(interval_ms=7)


def test_controls_complete() -> None:
    """Every control is read from the query and, with a prefix and dashes, from header fields alike."""
    values = {
        "events": "3",
        "size": "5",
        "interval_ms": "0",
        "first_byte_ms": "9",
        "status": "429",
        "fault": "stall",
        "fault_after": "2",
        "newline": "crlf",
    }
    expected = Controls(3, 5, 0, 9, 429, Fault.STALL, 2, Newline.CRLF)

    assert read_controls(values.items(), [], interval_ms=1) == expected
    fields = [("X-Mock-" + name.replace("_", "-").title(), value) for name, value in values.items()]
    assert read_controls([], fields, interval_ms=1) == expected


def test_controls_field_over_member() -> None:
    """A header field wins over the query member of the same name."""
    assert read_controls([("events", "1")], [("x-mock-events", " 2 ")], interval_ms=0).events == 2


@pytest.mark.parametrize(
    ("query", "fields", "named"),
    [
        ([("events", "10000001")], [], "'events'"),
        ([("events", "-1")], [], "'events'"),
        ([("events", "+1")], [], "'events'"),
        ([("events", "1_0")], [], "'events'"),
        ([("events", "٣")], [], "'events'"),
        ([("events", "")], [], "'events'"),
        ([("size", "0")], [], "'size'"),
        ([("size", "16777217")], [], "'size'"),
        ([("interval_ms", "1.5")], [], "'interval_ms'"),
        ([("first_byte_ms", "86400001")], [], "'first_byte_ms'"),
        ([("status", "200")], [], "'status'"),
        ([("status", "600")], [], "'status'"),
        ([("fault", "explode")], [], "reset, stall, truncate"),
        ([("newline", "cr")], [], "lf, crlf"),
        ([("fault_after", "x")], [], "'fault_after'"),
        ([("events", "1"), ("events", "1")], [], "given twice"),
        ([], [("X-Mock-Size", "1"), ("x-mock-size", "2")], "given twice"),
        ([], [("X-Mock-Evnts", "1")], "'evnts' is unknown"),
    ],
)
def test_controls_bad(query: list[tuple[str, str]], fields: list[tuple[str, str]], named: str) -> None:
    """A control that is unknown, out of range or ambiguous is refused with a message that names it."""
    with pytest.raises(RefusedError) as refused:
        read_controls(query, fields, interval_ms=0)
    assert refused.value.status == 400
    assert named in refused.value.message


@given(st.lists(st.tuples(st.sampled_from(["events", "size", "fault", "status", "other"]), st.text())))
def test_controls_any_text(query: list[tuple[str, str]]) -> None:
    """Whatever stands in a query, the controls are read or refused, and are within their bounds."""
    try:
        controls = read_controls(query, [], interval_ms=0)
    except RefusedError:
        return
    assert controls.events is None or 0 <= controls.events <= 10_000_000
    assert controls.size is None or 1 <= controls.size <= 16 * 1024 * 1024
