"""What every peer is to the benchmark."""

from __future__ import annotations

import importlib.metadata
import secrets
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.processes import Program, Programs

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# Where `make bench-peers` puts what it installs.
INSTALLED = REPOSITORY / "benchmarks" / ".peers"


@dataclass(frozen=True)
class Site:
    """What a peer is given to set itself up with."""

    directory: Path  # its own, for its configuration and logs
    programs: Programs
    upstream_port: int
    descriptors: int  # how many one process may open

    def start(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Program:
        """Start a program that ends with the run.

        Raises:
            StartFailed: there is no such program.
        """
        return self.programs.start(name, command, self.directory, env)


@dataclass(frozen=True)
class Started:
    """A peer that answers."""

    port: int
    programs: tuple[Program, ...]
    headers: tuple[str, ...] = ()

    @property
    def roots(self) -> list[int]:
        """The processes whose trees are its cost."""
        return [program.pid for program in self.programs]


class Peer(ABC):
    """A proxy, or none."""

    name: ClassVar[str]  # in the JSON
    title: ClassVar[str]  # in the table
    note: ClassVar[str] = ""
    path: ClassVar[str] = "/v1/chat/completions"
    # The share of the load that it gets, so that a round of each lasts about as long; figures are per event or request.
    share: ClassVar[float] = 1.0

    @abstractmethod
    def absence(self) -> str | None:
        """Why it cannot be started on this machine; None when it can."""

    @abstractmethod
    def version(self) -> str:
        """What is measured."""

    @abstractmethod
    def start(self, site: Site) -> Started:
        """Write its configuration, start it, and wait until it accepts.

        Raises:
            StartFailed: it did not come up; the message has the tail of its log.
        """


def first_line(command: Sequence[str | Path]) -> str:
    """The first line that a command prints, wherever it prints it; empty when it cannot be run."""
    try:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=60, check=False, cwd=REPOSITORY
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter((done.stdout + done.stderr).splitlines()), "")


def library(name: str) -> str:
    """`NAME VERSION` of an installed library."""
    return f"{name} {importlib.metadata.version(name)}"


def secret() -> str:
    """A secret of one run."""
    return secrets.token_urlsafe(32)
