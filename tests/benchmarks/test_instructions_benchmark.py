"""What the count of instructions reads in callgrind's file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import instructions

if TYPE_CHECKING:
    from pathlib import Path

# Two calls of one Python function at two places, the second from within itself, and one of a C function between them.
DUMP = """\
events: Ir
fn=(1) _PyEval_EvalFrameDefault
12 100
cfn=(2) 0x0000000004936718
calls=3 0
12 600
cfn=(3) 0x0000000004936000
calls=1 0
12 50
fn=(2)
0 40
cfn=(4) 0x0000000004936718'2
calls=1 0
0 70
cfn=(5) memcpy
calls=9 0
0 5
totals: 860
"""


def test_counts_of_python_functions(tmp_path: Path) -> None:
    """Each Python function has what its calls cost; what is not Python is in the total alone."""
    path = tmp_path / "counts.1-01"
    path.write_text(DUMP)
    counted = instructions.read(path, {0x4936718: "relay.py feed", 0x4936000: "app.py forward"})
    assert counted.total == 860
    assert counted.functions == {"relay.py feed": 670, "app.py forward": 50}
