"""The failover's benchmark runs, on a few streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import failover

if TYPE_CHECKING:
    import pytest


def test_benchmark_of_the_failover(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both proxies serve every stream, and the command says what the dead upstream adds."""
    monkeypatch.setattr("sys.argv", ["failover", "--streams", "10", "--rounds", "2"])
    failover.main()
    printed = capsys.readouterr().out
    assert printed.count(" 0 refused") == 2
    assert "added while it is left out" in printed
