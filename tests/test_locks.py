"""The check of the lock files: it passes on ours, and finds each way in which one can be wrong."""

from __future__ import annotations

import pytest

from tests.locks import Installed, differences, main, missing, read

HASH = "--hash=sha256:" + "0" * 64
OTHER_HASH = "--hash=sha256:" + "1" * 64
# What a vendor's SDK did: it asked for a package with an extra, and the extra for one more.
INSTALLED = {
    "google-genai": Installed("3.4.0", ("google-auth[requests]<3.0.0,>=2.56.0",)),
    "google-auth": Installed(
        "2.62.2", ("pyasn1>=0.4", 'requests<3,>=2.20; extra == "requests"', 'grpcio; extra == "grpc"')
    ),
    "pyasn1": Installed("0.6.5", ('tomli; python_version < "3.11"', 'pywin32; sys_platform == "win32"')),
    "requests": Installed("2.34.2"),
}


def lock_of(*pins: str) -> str:
    return "\n".join(f"{pin} \\\n    {HASH}\n    # via something" for pin in pins)


INDEX = "names an index: a lock file has versions and hashes only"
EXTRA_MISSING = (
    'google-auth 2.62.2 [requests] requires requests<3,>=2.20; extra == "requests", which is not in the lock file'
)
EXTRA_STRIPPED = (
    "google-genai 3.4.0 requires google-auth[requests]<3.0.0,>=2.56.0, but the lock file has it without that extra"
)
COMPLETE = ("google-genai==3.4.0", "google-auth[requests]==2.62.2", "pyasn1==0.6.5", "requests==2.34.2")


def test_locks_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    """Every lock file of the project is complete, as far as its packages are installed."""
    assert main() == 0, capsys.readouterr().out


def test_lock_complete() -> None:
    """A complete lock file has no fault; the requirements of other platforms and of other extras are not asked for."""
    lock = read(lock_of(*COMPLETE))
    assert not lock.faults
    assert not missing(["google-genai>=1"], lock, INSTALLED)


@pytest.mark.parametrize(
    ("pins", "fault"),
    [
        pytest.param(
            (COMPLETE[0], "google-auth==2.62.2", *COMPLETE[2:]),
            EXTRA_STRIPPED,
            id="extras-stripped",
        ),
        pytest.param(
            (COMPLETE[0], "google-auth==2.62.2", COMPLETE[2]),
            EXTRA_MISSING,
            id="requirement-of-a-stripped-extra",
        ),
        pytest.param(
            COMPLETE[:3],
            EXTRA_MISSING,
            id="requirement-of-an-extra",
        ),
        pytest.param(
            (*COMPLETE[:2], COMPLETE[3]),
            "google-auth 2.62.2 requires pyasn1>=0.4, which is not in the lock file",
            id="requirement-of-a-requirement",
        ),
        pytest.param(
            COMPLETE[1:],
            "the project requires google-genai>=1, which is not in the lock file",
            id="requirement-of-the-project",
        ),
        pytest.param(
            (*COMPLETE, 'colorama==1 ; sys_platform == "win32"', 'win==1 ; sys_platform == "win32"'),
            "the project requires win, which is not in the lock file",
            id="locked-for-another-platform-only",
        ),
        pytest.param(
            (*COMPLETE[:3], "requests==2.19.0"),
            'google-auth 2.62.2 [requests] requires requests<3,>=2.20; extra == "requests", but 2.19.0 is locked',
            id="version-below-the-range",
        ),
        pytest.param(
            (COMPLETE[0], "google-auth==3.0.0", *COMPLETE[2:]),
            "google-genai 3.4.0 requires google-auth[requests]<3.0.0,>=2.56.0, but 3.0.0 is locked",
            id="version-above-the-range",
        ),
        pytest.param(
            (*COMPLETE, "unheard-of==1"),
            "unheard-of 1 is locked, but nothing is installed, so its requirements are unknown",
            id="not-installed",
        ),
        pytest.param(
            (*COMPLETE[:3], "requests==2.35.0"),
            "requests 2.35.0 is locked, but 2.34.2 is installed, so its requirements are unknown",
            id="another-version-installed",
        ),
    ],
)
def test_lock_incomplete(pins: tuple[str, ...], fault: str) -> None:
    """A requirement that is not satisfied is named with who asks for it."""
    roots = ["google-genai>=1"] + (["win"] if "win==1" in " ".join(pins) else [])
    assert fault in missing(roots, read(lock_of(*pins)), INSTALLED)


@pytest.mark.parametrize("marker", ['python_version >= "3.13"', 'python_full_version < "3.11.3"'])
def test_lock_incomplete_on_another_python(marker: str) -> None:
    """A requirement of one supported Python is missing even where the check runs on another."""
    installed = {"a": Installed("1", (f"other; {marker}",))}
    assert missing([], read(lock_of("a==1")), installed) == [
        f"a 1 requires other; {marker}, which is not in the lock file"
    ]


def test_lock_roots_without_metadata() -> None:
    """Of a lock file whose packages are not installed, the first requirements are checked all the same."""
    lock = read(lock_of("matplotlib==4.0"))
    assert missing(["matplotlib>=3.9,<4", "numpy"], lock, None) == [
        "the project requires matplotlib<4,>=3.9, but 4.0 is locked",
        "the project requires numpy, which is not in the lock file",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        pytest.param("a==1\n", "1: a has no hash, or one that is not SHA-256", id="no-hash"),
        pytest.param("a==1 --hash=md5:00", "1: a has no hash, or one that is not SHA-256", id="weak-hash"),
        pytest.param(f"a==1 {HASH} --hash=sha256:0", "1: a has no hash, or one that is not SHA-256", id="cut-hash"),
        pytest.param(f"# top\na>=1 \\\n  {HASH}", "2: a is not pinned to one version", id="range"),
        pytest.param(f"a==1.* {HASH}", "1: a is not pinned to one version", id="wildcard"),
        pytest.param(f"a {HASH}", "1: a is not pinned to one version", id="no-version"),
        pytest.param(f"a==1 {HASH}\nA==2 {HASH}", "2: a is there twice", id="twice"),
        pytest.param("-e .", "1: not a requirement: -e .", id="editable"),
        pytest.param(
            "--index-url https://index.example/simple",
            f"1: {INDEX}",
            id="index",
        ),
        pytest.param("-i index.example", f"1: {INDEX}", id="index-short"),
        pytest.param("--find-links wheels", f"1: {INDEX}", id="find-links"),
        pytest.param(
            "--extra-index-url=file:///wheels",
            f"1: {INDEX}",
            id="extra-index",
        ),
        pytest.param(
            f"a @ https://index.example/a-1.whl {HASH}",
            f"1: {INDEX}",
            id="direct-address",
        ),
        pytest.param(
            f"a==1 {HASH}\n# from https://index.example",
            f"2: {INDEX}",
            id="address-in-a-comment",
        ),
    ],
)
def test_lock_form(text: str, fault: str) -> None:
    """A lock file has pins with hashes and nothing of an index; each fault comes with its line."""
    assert fault in read(text).faults


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        pytest.param(f"a==1 {HASH}", None, id="the-same"),
        pytest.param(f"c==1 {HASH}", "c is not in the development's lock file", id="absent"),
        pytest.param(
            f"a==2 {HASH}", "a 2 is not what the development's lock file has (1), or its hashes", id="version"
        ),
        pytest.param(
            f"a==1 {OTHER_HASH}", "a 1 is not what the development's lock file has (1), or its hashes", id="hashes"
        ),
    ],
)
def test_lock_part(part: str, fault: str | None) -> None:
    """The runtime's lock file is a part of the development's: one environment serves both."""
    assert differences(read(part), read(f"a==1 {HASH}\nb==1 {HASH}")) == ([fault] if fault else [])
