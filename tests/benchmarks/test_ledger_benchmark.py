"""The ledger's benchmark runs, on a few rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import ledger

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_benchmark_of_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fills a file, and times each query on it."""
    monkeypatch.setattr("sys.argv", ["ledger", "--rows", "2500", "--keep", str(tmp_path / "ledger.db")])
    ledger.main()
    told = capsys.readouterr().out
    assert "filled 2500 rows" in told
    assert "--since 30d --by user,model" in told
