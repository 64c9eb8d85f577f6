"""What is told of the configuration in force and of the last reload."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from proxy.observability.logging import Redactor
from proxy.server.configuration import ConfigurationStatus, note_refused
from proxy.settings.loading import ConfigurationError, load
from tests.conftest import VENDOR_KEY
from tests.settings_builder import settings

if TYPE_CHECKING:
    from pathlib import Path


def faulty(tmp_path: Path) -> ConfigurationError:
    path = tmp_path / "faulty.yaml"
    path.write_text("auth: none\nupstreams: {main: {url: 'https://h', dialect: opnai, api_key: none}}\n")
    with pytest.raises(ConfigurationError) as refused:
        load(path, {})
    return refused.value


def test_before_any_reload() -> None:
    """Before a reload there is no result of one."""
    told = ConfigurationStatus(Redactor()).report(settings())
    assert (told["last_reload"], set(told)) == (None, {"config", "loaded_at", "last_reload"})


def test_reloads(tmp_path: Path) -> None:
    """The last reload is told, whatever came of it."""
    status = ConfigurationStatus(Redactor())
    status.refused(faulty(tmp_path))
    last = status.report(settings())["last_reload"]
    assert (last["result"], last["needs_restart"]) == ("failed", [])
    assert "did you mean openai?" in last["faults"][0]
    status.loaded(["listen"])
    last = status.report(settings())["last_reload"]
    assert (last["result"], last["needs_restart"], last["faults"]) == ("ok", ["listen"], [])
    status.refused(OSError("a file cannot be read"))
    assert status.report(settings())["last_reload"]["faults"] == ["a file cannot be read"]


def test_secrets_are_searched_for() -> None:
    """A configured secret that stands where none should is not told."""
    status = ConfigurationStatus(Redactor([VENDOR_KEY]))
    status.refused(OSError(f"{VENDOR_KEY} is in a fault"))
    assert VENDOR_KEY not in json.dumps(status.report(settings(main={"models": [VENDOR_KEY]})))


def test_note_of_the_arbiter(tmp_path: Path) -> None:
    """What the arbiter refused is told by every worker that ran then, until it has read a good file."""
    status = ConfigurationStatus(Redactor(), tmp_path)
    assert status.report(settings())["last_reload"] is None
    note_refused(tmp_path, faulty(tmp_path), now=lambda: 1.0)
    assert status.report(settings())["last_reload"] is None
    note_refused(tmp_path, faulty(tmp_path))
    assert status.report(settings())["last_reload"]["result"] == "failed"
    assert ConfigurationStatus(Redactor(), tmp_path).report(settings())["last_reload"] is None
    status.loaded([])
    assert status.report(settings())["last_reload"]["result"] == "ok"
    for broken in (b"{", b"[]"):
        (tmp_path / "reload.json").write_bytes(broken)
        assert status.report(settings())["last_reload"]["result"] == "ok"
    # A full disk, or no directory, is no reason not to go on.
    note_refused(tmp_path / "nowhere", faulty(tmp_path))
