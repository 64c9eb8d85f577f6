"""What the two pages have in common: the same text in both, allowed by its digest in each, and in what is installed."""

from __future__ import annotations

import hashlib
import re
import zipfile
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hatchling.builders.wheel import WheelBuilder

from tests.peers import request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.peers import Message

ROOT = Path(__file__).parents[2]


async def pages(start: Callable[..., Any]) -> tuple[Message, Message]:
    """The console and the playground, as a browser gets them."""
    proxy = await start("playground: true\n")
    found: list[Message] = []
    for peer, path in ((await proxy.admin(), "/console"), (await proxy.client(), "/playground")):
        peer.write(request(path, method="GET"))
        found.append(await peer.read_message())
    return found[0], found[1]


async def test_pages_have_the_same_frame(start: Callable[..., Any]) -> None:
    """One page lacks what both have in common, has it twice, or a name of it stands where it should be."""
    console, playground = await pages(start)
    styles = [re.findall(rb"<style>(.*?)</style>", page.body, re.DOTALL) for page in (console, playground)]
    assert [len(each) for each in styles] == [2, 2]
    assert styles[0][0] == styles[1][0]
    assert styles[0][1] != styles[1][1]
    for page in (console, playground):
        assert page.body.startswith(b"<!doctype html>\n<html")
        assert [page.body.count(text) for text in (b'<meta charset="utf-8">', b'rel="icon"', b"<title>")] == [1, 1, 1]
        # HTML §4.2.5.4: it stands in the first 1024 bytes.
        assert page.body.index(b"<meta charset") < 1024
        assert not re.search(rb'[a-z_]+[.](css|html)"|<!-- [a-z]+[.]html', page.body)


@pytest.mark.parametrize("kind", ["style", "script"])
async def test_pages_allow_what_they_have(start: Callable[..., Any], kind: str) -> None:
    """A style or a script of a page is not allowed by its digest, or one is allowed that is not there."""
    for page in await pages(start):
        policy = page.get("content-security-policy") or ""
        allowed = re.search(rf"{kind}-src ([^;]+)", policy)
        inline = re.findall(rf"<{kind}>(.*?)</{kind}>".encode(), page.body, re.DOTALL)
        digests = [f"'sha256-{b64encode(hashlib.sha256(text).digest()).decode()}'" for text in inline]
        assert allowed is not None
        assert allowed[1].split() == digests


def test_frame_is_in_the_wheel(tmp_path: Path) -> None:
    """What is installed lacks a file that the pages share."""
    built = next(iter(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    with zipfile.ZipFile(built) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("proxy/pages/static/")}
    assert packed == {f"proxy/pages/static/{path.name}" for path in (ROOT / "proxy/pages/static").iterdir()}
    assert packed
