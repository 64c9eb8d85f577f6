"""`routes`, `keys` and `health`: what they take and refuse, and what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from proxy.cli import check_report
from proxy.model import HealthRules, KeyRules
from proxy.settings import Settings, load_settings
from proxy.settings.loading import marked_yaml

if TYPE_CHECKING:
    from pathlib import Path

UPSTREAMS = """
upstreams:
  a: {url: "https://a.example", dialect: openai, api_key: sk-a}
  b: {url: "https://b.example", dialect: openai, api_keys: [sk-b, {key: sk-c, weight: 3}]}
  mine: {url: "https://c.example", dialect: openai, api_key: client}
  theirs: {url: "https://d.example", dialect: openai, api_key: client}
  claude: {url: "https://e.example", dialect: anthropic, api_key: sk-e}
"""


def settings(yaml: str, upstreams: str = UPSTREAMS) -> Settings:
    """Settings with these lines, as the file's reader hands them on."""
    document = marked_yaml.parse((yaml + upstreams).encode(), "p.yaml")
    assert document.faults == []
    return Settings.model_validate({"auth": "none"} | document.values)


def faults(yaml: str, upstreams: str = UPSTREAMS) -> dict[tuple[Any, ...], str]:
    with pytest.raises(ValidationError) as caught:
        settings(yaml, upstreams)
    return {error["loc"]: error["msg"] for error in caught.value.errors()}


def test_routes_defaults() -> None:
    """A route whose `retry` is empty has the defaults; one without has none."""
    made = settings(
        'routes: [{models: ["gpt-*"], upstreams: [a, {name: b, model: x}], retry: {}}, {models: [m], upstreams: [b]}]'
    )
    first, second = made.routes
    retry = first.retry

    assert [(one.name, one.model, one.weight) for one in first.upstreams] == [("a", None, 1), ("b", "x", 1)]
    assert retry is not None
    assert (retry.attempts, retry.within_s, retry.first_output_s, retry.retry_paid) == (3, 20.0, None, False)
    assert retry.on == ("connect", "429", "5xx", "error_event")
    assert (first.strategy, second.retry) == ("ordered", None)


def test_routes_on_takes_a_number() -> None:
    """YAML reads 429 as a number; it means the same."""
    (route,) = settings("routes: [{models: [m], upstreams: [a], retry: {on: [429, '5xx']}}]").routes
    assert route.retry is not None
    assert route.retry.on == ("429", "5xx")


@pytest.mark.parametrize(
    ("route", "where", "message"),
    [
        ("{models: [m], upstreams: [claud]}", ("upstreams", 0), "nobody defined"),
        ("{models: [m], upstreams: [{name: x}]}", ("upstreams", 0), "nobody defined"),
        ("{models: [m], upstreams: [a, claude]}", ("upstreams", 1), "another dialect"),
        ("{models: [m], upstreams: [mine, a, theirs]}", ("upstreams", 2), "for one vendor"),
        ("{models: [], upstreams: [a]}", ("models",), "must not be empty"),
        ("{models: [m], upstreams: []}", ("upstreams",), "must not be empty"),
        ("{models: [m]}", ("upstreams",), "is required"),
        ("{models: [m], upstreams: [{name: a, weight: 2}]}", ("upstreams", 0, "weight"), "has no effect"),
        (
            "{models: [m], strategy: weighted, upstreams: [{name: a, weight: 0}]}",
            ("upstreams", 0, "weight"),
            "at least 1",
        ),
        (
            "{models: [m], strategy: weighted, upstreams: [{name: a, weight: 2000}]}",
            ("upstreams", 0, "weight"),
            "at most",
        ),
        ("{models: [m], upstreams: [a], strategy: fastest}", ("strategy",), "must be one of"),
        ("{models: [m], upstreams: [a], retry: {attempts: 17}}", ("retry", "attempts"), "at most 16"),
        ("{models: [m], upstreams: [a], retry: {on: [timeout]}}", ("retry", "on", 0), "must be one of"),
        ("{models: [m], upstreams: [a], retry: {hedge: 8s}}", ("retry", "hedge"), "unknown key"),
    ],
)
def test_routes_refused(route: str, where: tuple[Any, ...], message: str) -> None:
    """Each fault stands at its place."""
    found = faults(f"routes: [{route}]")
    (text,) = [text for place, text in found.items() if place == ("routes", 0, *where)]
    assert message in text


def test_routes_of_one_client_key() -> None:
    """The client's own key may go to one vendor, under several models."""
    assert settings("routes: [{models: [m], upstreams: [mine, {name: mine, model: n}, a]}]").routes


@pytest.mark.parametrize(
    ("upstream", "where", "message"),
    [
        ("health: {share: 50}", ("health", "share"), "such as 50%"),
        ("health: {share: 0%}", ("health", "share"), "from 1% to 100%"),
        ("health: {out_for: 10m}", ("health", "out_at_most"), "shorter than out_for"),
        ("health: {failures: 0}", ("health", "failures"), "at least 1"),
        ("keys: {cooldown: off}", ("keys", "cooldown"), "duration"),
        ("keys: {strategy: random}", ("keys", "strategy"), "must be one of"),
    ],
)
def test_health_refused(upstream: str, where: tuple[Any, ...], message: str) -> None:
    """A share has its sign, times fit each other."""
    text = f'upstreams: {{a: {{url: "https://a.example", dialect: openai, api_key: sk-a, {upstream}}}}}'
    found = faults("", text)
    assert message in found["upstreams", "a", *where]


@pytest.mark.parametrize(
    ("keys", "where", "message"),
    [
        ("[sk-a, {weight: 2}]", (1, "key"), "is required"),
        ("[{key: none}]", (0, "key"), "a word of"),
        ("[client]", (0,), "a word of"),
        ("[{key: 'a b'}]", (0, "key"), "visible ASCII"),
        ("['a b']", (0,), "visible ASCII"),
        ("[{key: a, weight: 5000}]", (0, "weight"), "at most 1000"),
    ],
)
def test_keys_refused(keys: str, where: tuple[Any, ...], message: str) -> None:
    """A faulty key is named by its place, never by what it is."""
    found = faults("", f'upstreams: {{a: {{url: "https://a.example", dialect: openai, api_keys: {keys}}}}}')
    assert message in found["upstreams", "a", "api_keys", *where]
    assert "a b" not in str(found)


def test_keys_are_built(tmp_path: Path) -> None:
    """Keys, their weights and rules reach the upstream, from files too, and from files that change."""
    from proxy.settings.build import _upstream  # noqa: PLC0415 - what a settings' upstream becomes

    secret = tmp_path / "key"
    secret.write_text("sk-file\n")
    path = tmp_path / "p.yaml"
    keys = f"[sk-one, {{key: 'file:{secret}', weight: 4}}]"
    more = "keys: {strategy: round_robin, cooldown: 5s}, health: {failures: 2, share: 80%, window: 1m}"
    path.write_text(
        f'auth: none\nupstreams: {{a: {{url: "https://a.example", dialect: openai, api_keys: {keys}, {more}}}}}\n'
    )
    made = load_settings(path)
    upstream = _upstream(made, "a", made.upstreams["a"])

    assert (upstream.keys, upstream.key_weights) == (("sk-one", "sk-file"), (1, 4))
    assert upstream.key_rules == KeyRules("round_robin", 5.0)
    assert upstream.health == HealthRules(failures=2, share=0.8, window_s=60.0)
    ((location, _),) = made.secret_files
    changed = made.with_secret(location, "sk-new")
    assert changed is not None
    assert _upstream(changed, "a", changed.upstreams["a"]).keys == ("sk-one", "sk-new")
    assert _upstream(changed, "a", changed.upstreams["a"]).key_weights == (1, 4)


def test_routes_in_the_report() -> None:
    """`check` prints each route in one line."""
    retry = "{first_output: 30s, retry_paid: true}"
    made = settings(
        "routes:\n"
        f'  - {{models: ["gpt-*", o3], upstreams: [a, {{name: b, model: x}}], retry: {retry}}}\n'
        "  - {models: [m], strategy: weighted, upstreams: [a, {name: b, weight: 3}]}\n"
    )
    lines = [line for line in check_report.report(made).splitlines() if line.startswith("route ")]

    causes = "connect, 429, 5xx, error_event, and what may be paid twice"
    assert lines == [
        f"route          gpt-*, o3 to a, then b (as x); 3 attempts within 20s on {causes}, first output within 30s",
        "route          m to a × 1, b × 3; no retry",
    ]
