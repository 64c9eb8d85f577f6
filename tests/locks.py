"""`python -m tests.locks`: whether the lock files of Python are complete, a step of `make check`.

Installing resolves nothing (`.ci/install.sh`), so a lock file must hold every requirement of every package in it, with
those of the extras that one package asks of another, which `pip check` ignores. The requirements are read from the
metadata of installed packages, without a network. Packages that are not installed, as those of the benchmark may be,
are checked for the form of their lock file and for what it was made for, not for their own requirements.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ROOT = Path(__file__).parent.parent
# The versions that the project supports: a marker may ask for a package on some of them only.
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
_ADDRESS = re.compile(r"[a-z+]+://|(^|\s)(-i|-f|--(extra-)?index-url|--find-links|--trusted-host)\b")


@dataclass(frozen=True)
class Pin:
    """One entry of a lock file: a package at one version, with the hashes of its files."""

    requirement: Requirement
    version: str
    hashes: frozenset[str]

    def applies(self, environment: dict[str, str]) -> bool:
        """Report whether the entry is installed in this environment."""
        marker = self.requirement.marker
        return marker is None or marker.evaluate(environment)


@dataclass(frozen=True)
class Lock:
    """A lock file: its entries by canonical name, and what is wrong with its form."""

    pins: dict[str, Pin] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Installed:
    """The version and the requirements of an installed package, as its metadata has them."""

    version: str
    requires: tuple[str, ...] = ()


def read(text: str) -> Lock:
    """Parse a lock file; every fault of its form is collected, with its line."""
    lock = Lock()
    entry, first = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        if _ADDRESS.search(line):
            lock.faults.append(f"{number}: names an index: a lock file has versions and hashes only")
        if not entry:
            first = number
        entry += line.partition("#")[0].strip().removesuffix("\\")
        if not line.endswith("\\"):
            if entry:
                _add(lock, entry, first)
            entry = ""
    return lock


def _add(lock: Lock, entry: str, line: int) -> None:
    hashes = frozenset(_HASH.findall(entry))
    try:
        requirement = Requirement(entry.partition(" --")[0])
    except InvalidRequirement:
        lock.faults.append(f"{line}: not a requirement: {entry[:60]}")
        return
    name = canonicalize_name(requirement.name)
    pinned = re.fullmatch(r"==([^*,]+)", str(requirement.specifier))
    if pinned is None:
        lock.faults.append(f"{line}: {name} is not pinned to one version")
        return
    if not hashes or entry.count("--hash") != len(_HASH.findall(entry)):
        lock.faults.append(f"{line}: {name} has no hash, or one that is not SHA-256")
    if name in lock.pins:
        lock.faults.append(f"{line}: {name} is there twice")
    lock.pins[name] = Pin(requirement, pinned[1], hashes)


def _environment() -> dict[str, str]:
    return {name: str(value) for name, value in default_environment().items()}


def environments() -> list[dict[str, str]]:
    """List this platform's marker environments: the running one, and the first release of each supported Python."""
    here = _environment()
    return [here] + [here | {"python_version": python, "python_full_version": f"{python}.0"} for python in PYTHONS]


def _extras(requirement: Requirement) -> frozenset[str]:
    return frozenset(canonicalize_name(extra) for extra in requirement.extras)


def missing(roots: Iterable[str], lock: Lock, installed: Mapping[str, Installed] | None) -> list[str]:
    """List the requirements that a lock file does not satisfy.

    Every requirement is followed: of the roots, of each entry, and of each extra that one of them asks for. Takes time
    proportional to the requirements.

    Args:
        roots: What the lock file was made for.
        lock: The lock file.
        installed: The installed packages by canonical name; without them only the roots are looked at.
    """
    faults: dict[str, None] = {}
    for environment in environments():
        walk = _Walk(lock, installed, environment, faults)
        for root in roots:
            walk.follow("the project", Requirement(root), frozenset())
        for name, pin in lock.pins.items():
            if pin.applies(environment):
                walk.visit(name, _extras(pin.requirement))
    return list(faults)


@dataclass(frozen=True)
class _Walk:
    """One pass over the requirements, for one environment. `faults` keeps their order and each of them once."""

    lock: Lock
    installed: Mapping[str, Installed] | None
    environment: dict[str, str]
    faults: dict[str, None]
    seen: set[tuple[str, str]] = field(default_factory=set)

    def visit(self, name: str, extras: frozenset[str]) -> None:
        """Follow the requirements of an entry, with these extras."""
        pin, known = self.lock.pins[name], (self.installed or {}).get(name)
        if self.installed is None:
            return
        if known is None or known.version != pin.version:
            if pin.applies(_environment()):
                there = f"{known.version} is" if known else "nothing is"
                self.faults[
                    f"{name} {pin.version} is locked, but {there} installed, so its requirements are unknown"
                ] = None
            return
        new = [extra for extra in ("", *sorted(extras)) if (name, extra) not in self.seen]
        self.seen.update((name, extra) for extra in new)
        for text in known.requires if new else ():
            requirement = Requirement(text)
            for extra in new:
                self.follow(f"{name} {pin.version}" + (f" [{extra}]" if extra else ""), requirement, frozenset({extra}))

    def follow(self, origin: str, requirement: Requirement, extras: frozenset[str]) -> None:
        """Look for one requirement in the lock file, then follow its own."""
        values = [{**self.environment, "extra": extra} for extra in extras or {""}]
        if requirement.marker is not None and not any(requirement.marker.evaluate(value) for value in values):
            return
        name = canonicalize_name(requirement.name)
        pin = self.lock.pins.get(name)
        wanted = f"{origin} requires {requirement}"
        if pin is None or not pin.applies(self.environment):
            self.faults[f"{wanted}, which is not in the lock file"] = None
        elif not requirement.specifier.contains(pin.version, prereleases=True):
            self.faults[f"{wanted}, but {pin.version} is locked"] = None
        else:
            # Where pip resolves, an entry without the extra pins nothing: pip looks for the newest one with it.
            if not _extras(requirement) <= _extras(pin.requirement):
                self.faults[f"{wanted}, but the lock file has it without that extra"] = None
            self.visit(name, _extras(requirement))


def differences(part: Lock, whole: Lock) -> list[str]:
    """List the entries of a lock file that the larger one has not, or has with another version or other hashes."""
    faults = []
    for name, pin in part.pins.items():
        other = whole.pins.get(name)
        if other is None:
            faults.append(f"{name} is not in the development's lock file")
        elif (other.version, other.hashes) != (pin.version, pin.hashes):
            faults.append(
                f"{name} {pin.version} is not what the development's lock file has ({other.version}), or its hashes"
            )
    return faults


def packages(environment: Path | None = None) -> dict[str, Installed]:
    """Read the metadata of what is installed in a virtual environment; by default in the running one."""
    path = sys.path if environment is None else [str(site) for site in environment.glob("lib/python*/site-packages")]
    found: dict[str, Installed] = {}
    for one in distributions(path=path):
        found.setdefault(canonicalize_name(one.name), Installed(one.version, tuple(one.requires or ())))
    return found


def _report(name: str, lock: Lock, faults: Sequence[str], remark: str) -> bool:
    found = [f"{name}:{fault}" for fault in lock.faults] + [f"{name}: {fault}" for fault in faults]
    print("\n".join(found) if found else f"{name}: {len(lock.pins)} packages, {remark}")  # noqa: T201 - a command's output
    return not found


def main() -> int:
    """Check each lock file and print its faults; exit code 1 when there is one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = project["project"]["dependencies"]
    development = runtime + project["project"]["optional-dependencies"]["dev"] + project["build-system"]["requires"]
    traced = runtime + project["project"]["optional-dependencies"]["otel"]
    names = (".ci/requirements.txt", ".ci/requirements-dev.txt", ".ci/requirements-otel.txt")
    part, whole, otel = (read((ROOT / name).read_text()) for name in names)
    here = packages()
    fine = [
        _report(names[0], part, missing(runtime, part, here) + differences(part, whole), "complete"),
        _report(names[1], whole, missing(development, whole, here), "complete"),
        _report(names[2], otel, missing(traced, otel, here) + differences(otel, whole), "complete"),
    ]
    for directory, stamp in (("benchmarks", ".venv/.ready"), ("benchmarks/peers", "../.peers/litellm/.ready")):
        text = (ROOT / directory / "requirements.txt").read_text()
        lines = (ROOT / directory / "requirements.in").read_text().splitlines()
        roots = [root for line in lines if (root := line.partition("#")[0].strip())]
        ready = ROOT / directory / stamp
        # The stamp is a copy of the lock file that was installed.
        there = packages(ready.parent) if ready.exists() and ready.read_text() == text else None
        remark = (
            "complete"
            if there
            else "pinned; whether complete is checked once they are installed (make bench, bench-peers)"
        )
        lock = read(text)
        fine.append(_report(f"{directory}/requirements.txt", lock, missing(roots, lock, there), remark))
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
