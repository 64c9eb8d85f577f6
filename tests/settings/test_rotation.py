"""Secrets and authorities in files that change: what is taken, what is kept, what is told."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from proxy.settings.loading import load
from proxy.settings.rotation import LOOK_EVERY_S, FileWatch
from tests.whole.test_tls import make_authority

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping, MutableMapping
    from pathlib import Path

    from proxy.model import TlsFiles
    from proxy.settings import Settings

CONFIG = """
auth: none
upstreams:
  one: {{url: "https://localhost", dialect: openai, api_key: "file:{at}/key", headers: {{X-Key: "file:{at}/header"}}}}
  many: {{url: "https://localhost", dialect: openai, api_keys: [fixed-key, "file:{at}/second"]}}
  private: {{url: "https://localhost", dialect: openai, api_key: none, ca_file: "{at}/authority.pem"}}
"""


class Scene:
    """Files, the settings that name them, and what was made of their changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("key", "header", "second"):
            (folder / name).write_text(f"{name}-of-the-start\n")
        make_authority(folder)
        config = folder / "proxy.yaml"
        config.write_text(CONFIG.format(at=folder))
        self.settings = load(config, {})
        self.contexts: list[str] = []
        self.applied = 0
        self.watch = FileWatch(self.settings, self._apply)

    def _apply(self, settings: Settings, contexts: Mapping[TlsFiles, ssl.SSLContext]) -> None:
        self.settings = settings
        self.contexts += [str(files.ca_file) for files in contexts]
        self.applied += 1

    @property
    def secrets(self) -> tuple[str, str, str]:
        """The key, the second of the other's keys, and the header."""
        one, many = self.settings.upstreams["one"], self.settings.upstreams["many"]
        header: Any = one.headers["X-Key"]
        return one.keys[0].get_secret_value(), many.keys[1].get_secret_value(), header.get_secret_value()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def told(scene: Scene) -> Iterator[list[MutableMapping[str, Any]]]:
    """What is told of files, as it is told: the log itself is written by a thread of its own."""
    del scene
    with capture_logs() as lines:
        yield lines


async def test_first_look_changes_nothing(scene: Scene, told: list[MutableMapping[str, Any]]) -> None:
    """What is as it was at the start is neither changed nor told."""
    before = scene.settings
    await scene.watch.look()
    assert scene.settings is before
    assert told == []


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("key", "upstreams.one.api_key"),
        ("second", "upstreams.many.api_keys[1]"),
        ("header", "upstreams.one.headers.X-Key"),
    ],
)
async def test_secret_that_changed(scene: Scene, told: list[MutableMapping[str, Any]], file: str, place: str) -> None:
    """A secret is what its file holds now, wherever it stands; the others stay."""
    before = scene.secrets
    (scene.folder / file).write_text("\ufeffrotated-secret\r\n")
    await scene.watch.look()
    assert sorted(set(scene.secrets) - set(before)) == ["rotated-secret"]
    assert told == [{"event": "secret.reread", "place": place, "log_level": "info"}]
    await scene.watch.look()
    assert len(told) == 1


async def test_secret_behind_a_link(scene: Scene) -> None:
    """A link that is swapped, as Kubernetes does it, is followed anew, though the file's own time is older."""
    for name in ("old", "new"):
        (scene.folder / name).mkdir()
        (scene.folder / name / "key").write_text(f"key-{name}")
    (scene.folder / "..data").symlink_to("old")
    (scene.folder / "key").unlink()
    (scene.folder / "key").symlink_to("..data/key")
    await scene.watch.look()
    assert scene.secrets[0] == "key-old"
    (scene.folder / "..tmp").symlink_to("new")
    (scene.folder / "..tmp").rename(scene.folder / "..data")
    await scene.watch.look()
    assert scene.secrets[0] == "key-new"


FAULTY = {
    "gone": None,
    "empty": b"",
    "not text": b"\xff\xfe\x00",
    "in quotes": b"'leaky-secret'",
    "two lines": b"leaky\nsecret",
    "a word": b"none",
    "another word": b"client\n",
}


@pytest.mark.parametrize("content", FAULTY.values(), ids=FAULTY)
async def test_secret_that_cannot_be_used(
    scene: Scene, told: list[MutableMapping[str, Any]], content: bytes | None
) -> None:
    """A file that holds no secret changes nothing and is told once, without its content, until it is good again."""
    before = scene.secrets
    if content is None:
        (scene.folder / "key").unlink()
    else:
        (scene.folder / "key").write_bytes(content)
    await scene.watch.look()
    await scene.watch.look()
    assert scene.secrets == before
    assert [(line["event"], line["place"]) for line in told] == [("secret.unreadable", "upstreams.one.api_key")]
    assert told[0]["log_level"] == "warning"
    assert "leaky" not in str(told)
    assert scene.watch.faulty == 1
    (scene.folder / "key").write_bytes(b"good-again")
    await scene.watch.look()
    assert scene.watch.faulty == 0
    assert scene.secrets[0] == "good-again"
    assert [line["event"] for line in told] == ["secret.unreadable", "secret.reread"]


async def test_authorities_that_changed(scene: Scene, told: list[MutableMapping[str, Any]]) -> None:
    """A new file of authorities makes a new context; one that holds none keeps the old."""
    path = scene.folder / "authority.pem"
    await scene.watch.look()
    scene.contexts.clear()
    (scene.folder / "other").mkdir()
    path.write_bytes(make_authority(scene.folder / "other").certificate.read_bytes())
    await scene.watch.look()
    await scene.watch.look()
    assert scene.contexts == [str(path)]
    path.write_text("no certificate")
    await scene.watch.look()
    await scene.watch.look()
    assert scene.contexts == [str(path)]
    assert [(line["event"], line["place"]) for line in told] == [
        ("secret.reread", "upstreams.private.ca_file"),
        ("secret.unreadable", "upstreams.private.ca_file"),
    ]


async def test_look_overtaken_by_a_reload(scene: Scene) -> None:
    """What a look finds for settings that were replaced meanwhile is dropped."""
    (scene.folder / "key").write_text("rotated-secret")
    looking = asyncio.create_task(scene.watch.look())
    await asyncio.sleep(0)
    scene.watch.settings = load(scene.folder / "proxy.yaml", {})
    await looking
    assert scene.applied == 0


async def test_run_looks_within_a_minute(scene: Scene) -> None:
    """It looks at once and after each pause, and no pause is longer than a minute."""
    pauses: asyncio.Queue[float] = asyncio.Queue()
    go_on = asyncio.Event()

    async def pause(seconds: float) -> None:
        pauses.put_nowait(seconds)
        await go_on.wait()
        go_on.clear()

    watch = FileWatch(scene.settings, scene._apply, pause=pause)
    running = asyncio.create_task(watch.run())
    async with asyncio.timeout(30):
        assert await pauses.get() == LOOK_EVERY_S <= 60
        (scene.folder / "key").write_text("rotated-secret")
        go_on.set()
        await pauses.get()
    assert scene.secrets[0] == "rotated-secret"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_look_that_hangs(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that hangs stops neither the loop nor the end: the look is in a thread that nobody waits for."""
    released, entered = threading.Event(), threading.Event()

    def hang(_source: str) -> str:
        entered.set()
        released.wait(30)
        return "never-used"

    monkeypatch.setattr("proxy.settings.rotation.read_secret_file", hang)
    running = asyncio.create_task(scene.watch.run())
    assert await asyncio.to_thread(entered.wait, 30)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "file-watch"]
    assert thread.daemon
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    released.set()
    await asyncio.to_thread(thread.join, 30)
    assert scene.applied == 0


def test_settings_know_their_files_elsewhere(scene: Scene) -> None:
    """Settings that are handed to a worker, or copied, still know which files they were read from."""
    assert len(scene.settings.secret_files) == 3
    assert pickle.loads(pickle.dumps(scene.settings)).secret_files == scene.settings.secret_files
    assert scene.settings.model_copy(update={"workers": 1}).secret_files == scene.settings.secret_files
