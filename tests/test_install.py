"""The installing script, on wheels that are made here: what it prints, and what counts as ready afterwards."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / ".ci/install.sh"
VENV_S = 120  # a virtual environment with pip in it takes seconds, on a busy machine many


class Site:
    """A directory with wheels, a lock file and the environment that is made of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = directory / "requirements.txt"
        self.venv = directory / "venv"
        self.stamp = self.venv / ".ready"
        self.settings = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "TMPDIR": str(directory),
            "PYTHON": sys.executable,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            # pip warns of the second, whatever it installs.
            "PIP_FIND_LINKS": f"{directory} {directory / 'nowhere'}",
            "PIP_NO_CACHE_DIR": "1",
        }

    def wheel(self, name: str, *requires: str) -> str:
        """Make a wheel of one module, and give its line of a lock file."""
        path = self.directory / f"{name}-1-py3-none-any.whl"
        needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
        with zipfile.ZipFile(path, "w") as files:
            files.writestr(f"{name}.py", "")
            files.writestr(f"{name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{needs}")
            files.writestr(
                f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            files.writestr(f"{name}-1.dist-info/RECORD", "")
        return f"{name}==1 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"

    def start(self) -> subprocess.Popen[str]:
        """Start the script, in a process group of its own as make does."""
        return subprocess.Popen(
            ["sh", SCRIPT, self.lock, self.stamp],
            env=self.settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def install(self) -> tuple[int, str, str]:
        """Run the script to its end: exit code, standard output, standard error."""
        with self.start() as process:
            out, err = process.communicate(timeout=VENV_S)
        return process.returncode, out, err

    def modules(self) -> set[str]:
        """Name the modules that are installed beside pip's own."""
        return {path.stem for path in self.venv.glob("lib/python*/site-packages/*.py")}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_install_says_one_line(site: Site) -> None:
    """An installation prints one line whatever pip warns of; one that is there already prints nothing and stays."""
    first = site.wheel("first")
    site.lock.write_text(first + site.wheel("second", "first"))
    assert site.install() == (0, f"installing into {site.venv} …\n", "")
    assert site.modules() == {"first", "second"}
    assert site.stamp.read_text() == site.lock.read_text()

    mark = site.venv / "mark"
    mark.touch()
    site.lock.touch()
    assert site.install() == (0, "", "")
    assert mark.exists()


@pytest.mark.parametrize("before", ["interrupted", "another-lock"])
def test_install_starts_from_nothing(site: Site, before: str) -> None:
    """What an interrupted installation or another lock file left is not in the environment afterwards."""
    packages = site.venv / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "leftover.py").touch()
    (site.venv / "bin").mkdir()
    (site.venv / "bin/python").symlink_to(sys.executable)  # but no pip
    if before == "another-lock":
        site.stamp.write_text("leftover==1\n")
    site.lock.write_text(site.wheel("first"))
    assert site.install()[0] == 0
    assert site.modules() == {"first"}


@pytest.mark.parametrize(
    ("requires", "lock", "said"),
    [
        pytest.param((), "first==1 --hash=sha256:" + "0" * 64, "DO NOT MATCH THE HASHES", id="another-file"),
        pytest.param(("absent",), None, "first 1 requires absent, which is not installed", id="incomplete"),
    ],
)
def test_install_fails_aloud(site: Site, requires: tuple[str, ...], lock: str | None, said: str) -> None:
    """Where pip fails its words are shown, and the environment does not count as ready."""
    line = site.wheel("first", *requires)
    site.lock.write_text(lock or line)
    code, out, err = site.install()
    assert code != 0
    assert out == f"installing into {site.venv} …\n"
    assert said in err
    assert f"installing into {site.venv} failed" in err
    assert not site.stamp.exists()


def test_install_interrupted(site: Site) -> None:
    """An installation that is interrupted while pip waits for its index leaves no environment that counts as ready."""
    site.lock.write_text(site.wheel("first").replace("first", "other"))
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(VENV_S)
        del site.settings["PIP_NO_INDEX"]
        site.settings["PIP_INDEX_URL"] = f"http://127.0.0.1:{index.getsockname()[1]}/"
        with site.start() as process:
            asked, _ = index.accept()
            with asked:
                os.killpg(process.pid, signal.SIGINT)
                process.communicate(timeout=VENV_S)
    assert process.returncode != 0
    assert not site.stamp.exists()
    assert not list(site.directory.glob("tmp.*")), "pip's messages are removed"


def test_install_old_python(site: Site) -> None:
    """A Python that is too old is named before anything is installed."""
    old = site.directory / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    site.settings["PYTHON"] = str(old)
    site.lock.write_text("")
    code, out, err = site.install()
    assert (code, out) == (1, "")
    assert "Python 3.11 or later is needed" in err
    assert not site.venv.exists()


@pytest.mark.parametrize("name", ["Makefile", "Dockerfile", ".ci/run", "benchmarks/peers/install.sh"])
def test_install_is_written_once(name: str) -> None:
    """No other file of the build has a way of its own of installing Python packages."""
    assert not re.search(r"\bpip3?\b.*\binstall\b|-m venv", (ROOT / name).read_text())
