"""Verdicts, what they have changed, and how they are written."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from multidict import CIMultiDict

from proxy.cli.commands import cli
from proxy.cli.doctor.hops import LINES, is_from_cache, recognise
from proxy.cli.doctor.verdict import Verdict, as_json, change_of, exit_code, fail, line, ok, warn


def test_line() -> None:
    """A verdict is one line, whatever another machine put into its words."""
    assert line(ok("name", "fine.")) == "ok    name          fine."
    told = line(Verdict("proxy", "fail", "a\x1b[2J\nb", "Do."))
    assert told == "fail  proxy         a?[2J?b Change: Do."


def test_json() -> None:
    """The document has the contract's members."""
    assert json.loads(as_json([ok("name", "fine.")])) == {
        "verdicts": [{"check": "name", "verdict": "ok", "says": "fine.", "change": None}]
    }


def test_exit_code() -> None:
    """Only what fails counts."""
    assert exit_code([ok("name", ""), warn("tls", "plain", "")]) == 0
    assert exit_code([ok("name", ""), fail("name", "unknown", "")]) == 1


def test_change_by_hop() -> None:
    """A hop that is recognised gets its own line, an unknown one those of all."""
    everybody = change_of("stream", "buffering")
    assert all(f"{name}: {text}" in everybody for name, text in LINES["buffering"].items())
    own = change_of("stream", "buffering", {"Caddy"})
    assert "Caddy: " in own
    assert "nginx" not in own
    # One that has no line of its own does not take the others' away.
    assert change_of("stream", "buffering", {"HAProxy"}) == everybody


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"server": "nginx/1.22.1"}, {"nginx", "ingress-nginx"}),
        ({"Server": "Apache/2.4"}, {"Apache"}),
        ({"CF-RAY": "8a-FRA", "Server": "cloudflare"}, {"Cloudflare"}),
        ({"Server": "awselb/2.0"}, {"AWS ALB"}),
        ({"Via": "1.1 a.cloudfront.net (CloudFront)"}, {"AWS CloudFront"}),
        ({"X-Azure-Ref": "0a"}, {"Azure Front Door"}),
        ({"Via": "1.1 Caddy"}, {"Caddy"}),
        ({"Server": "envoy"}, {"Envoy"}),
        ({"Via": "1.1 forward-sse"}, set()),
    ],
)
def test_recognise(fields: dict[str, str], expected: set[str]) -> None:
    """A product is recognised by what it leaves in an answer."""
    assert recognise(CIMultiDict(fields)) == expected


@pytest.mark.parametrize(
    ("fields", "is_cached"),
    [({"Age": "3"}, True), ({"Age": "0"}, False), ({"X-Cache": "HIT"}, True), ({"CF-Cache-Status": "DYNAMIC"}, False)],
)
def test_from_cache(fields: dict[str, str], is_cached: bool) -> None:
    """Only what comes from a cache is said to."""
    assert is_from_cache(CIMultiDict(fields)) is is_cached


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Give a URL, or --local"),
        (["http://h", "--local"], "Give a URL, or --local"),
        (["--local", "--token", "canary"], "go with a URL"),
        (["http://h", "--paid"], "go with --local"),
        (["ftp://h"], "http:// or https://"),
        (["http://user:canary@h"], "no user"),
        (["http://h/?access_token=canary"], "no user, query"),
        (["http://h:99999"], "Port"),
        (["http://h", "--token", "canary with a space"], "--token must be"),
        (["http://h", "--upstream", "a/b"], "--upstream must be"),
        (["http://h", "--silence", "10m"], "at most"),
        (["http://h", "--silence", "x"], "--silence"),
    ],
)
def test_wrong_use(arguments: list[str], said: str) -> None:
    """Wrong use is exit code 2, and repeats no secret."""
    result = CliRunner().invoke(cli, ["doctor", *arguments], prog_name="forward-sse")

    assert result.exit_code == 2
    assert said in result.output
    assert "canary" not in result.output
