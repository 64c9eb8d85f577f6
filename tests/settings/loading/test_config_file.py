"""The file: lines, variables, secrets in files, overrides, faults; the schema and the files that are shipped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from proxy.cli.check_report import report
from proxy.settings import Address, InvalidValue, Settings, StoreUrl
from proxy.settings.build import secrets_of
from proxy.settings.loading import ConfigurationError, json_schema, load, marked_yaml
from proxy.settings.loading.substitution import SECRET_LOCATIONS, expand

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[3]
SECRET = "do-not-show-" + "x" * 60
BASE = """\
auth: none
upstreams:
  openai:
    url: https://api.openai.com
    dialect: openai
    api_key: ${KEY:-sk-1}
  tongyi-intl: {url: "https://h", dialect: dashscope, api_key: none}
"""
OTHER_PROGRAMS = ("config/grafana/", "config/otel/", "config/prometheus/")
SHIPPED = {
    "config/proxy.yaml": {"OPENAI_API_KEY": "sk-1", "DASHSCOPE_API_KEY": "sk-2"},
    "config/demo.yaml": {"DEMO_SECRET": SECRET, "DEMO_MOCK_URL": "http://127.0.0.1:8090"},
    "config/examples/single-vendor.yaml": {"OPENAI_API_KEY": "sk-1", "API_KEY_SHA256": "0" * 64},
    "config/examples/envelope.yaml": {"DASHSCOPE_API_KEY": "sk-1", "TOKEN_SECRET": SECRET},
    "config/examples/compose.yaml": {"TRIAL_SECRET": SECRET},
    "config/examples/oidc.yaml": {"OIDC_ISSUER": "https://id.example.com/"},
}


class File:
    """A configuration file of a test."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, text: str, environ: dict[str, str] | None = None, **overrides: object) -> Settings:
        self.path.write_text(text)
        return load(self.path, environ or {}, overrides)

    def faults(self, text: str, environ: dict[str, str] | None = None, **overrides: object) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            self.load(text, environ, **overrides)
        return [str(fault).removeprefix(f"{self.path.parent}/") for fault in caught.value.faults]


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "p.yaml")


def test_file_sound(file: File) -> None:
    """A sound file gives settings, with its variables put in."""
    assert file.load(BASE, {"KEY": "sk-2"}).upstreams["openai"].keys[0].get_secret_value() == "sk-2"


# Each is put below BASE, which has 7 lines: its own first line is the eighth.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lissten: h:1", "p.yaml:8: lissten: unknown key (did you mean listen?)"),
        ("\n\nmax-body: 1MiB", "p.yaml:10: max-body: unknown key (did you mean max_body?)"),
        ("log: {format: jsn}", "p.yaml:8: log.format: must be one of json, console (did you mean json?)"),
        ("log:\n  levl: info", "p.yaml:9: log.levl: unknown key (did you mean level?)"),
        (
            "listen: 8080",
            "p.yaml:8: listen: is not HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080 (did you mean 0.0.0.0:8080?)",
        ),
        ("listen:\n  - h:1\n  - h:1", "p.yaml:10: listen[1]: is the same address as listen[0]"),
        ("drain_timeout: 60", "p.yaml:8: drain_timeout: is not a duration"),
        ("drain_timeout: 1 min", "(did you mean 1m?)"),
        ("max_body: 32MB", "(did you mean 32MiB?)"),
        ("max_header: 1000B", "p.yaml:8: max_header: must be between 1KiB and 256KiB"),
        ("max_header: 257KiB", "p.yaml:8: max_header: must be between 1KiB and 256KiB"),
        ("timeouts: {total: no}", "(did you mean off?)"),
        ("plans: {default: {requests: [60/s]}}", "p.yaml:8: plans.default.requests[0]: is not a rate"),
        (
            "plans: {default: {tokens: [100k/1m]}}",
            "plans.default.tokens[0]: is not a rate: a number of tokens, a slash, a window, such as 100000/1m",
        ),
        ("plans: {default: {tokens: [0/1m]}}", "p.yaml:8: plans.default.tokens[0]: must admit at least one token"),
        (
            "plans:\n  p:\n    upstreams:\n      - opena",
            "p.yaml:11: plans.p.upstreams[0]: names an upstream that nobody",
        ),
        ("plans: {p: {upstreams: [opena]}}", "(did you mean openai?)"),
        ("default_upstream: tongyi", "(did you mean tongyi-intl?)"),
        ("upstreams: {}", "p.yaml:8: upstreams: is given twice, first on line 2"),
        ("log: {level: info, level: debug}", "p.yaml:8: log.level: is given twice, first on line 8"),
        ("default_upstream: ${UPSTREAM}", "p.yaml:8: default_upstream: the environment variable UPSTREAM is not set"),
        ("listen: ${EMPTY}", "p.yaml:8: listen: the environment variable EMPTY is empty"),
        ("listen: ${listen:+x}", "p.yaml:8: listen: has a `${` that is not ${NAME}"),
        ("workers: 2", "p.yaml:8: workers: needs a shared limits.store (redis://…) to be more than 1"),
        ("workers: 010", "p.yaml:8: workers: must be a whole number"),
        ("playground: on", "p.yaml:8: playground: must be true or false (did you mean true?)"),
        ("cors:", "p.yaml:8: cors: has no value"),
        ("cors: {origins: [null]}", "p.yaml:8: cors.origins[0]: has no value"),
        ("heartbeat: !!str 5s x", "p.yaml:8: heartbeat: is not a duration"),
        ("heartbeat: !secret x", "p.yaml:8: heartbeat: has a tag"),
        ("log: !!python/object/apply:os.system [ls]", "p.yaml:8: log: has a tag"),
        ("1: x", "p.yaml:8: has a key that is not text"),
        ("cors: {<<: {origins: []}}", 'p.yaml:8: cors."<<": unknown key'),
        ("log: &a {}\ncors: *a", "p.yaml:9: aliases are not used here"),
        ("log: {", "is not YAML"),
        ("\tlog: x", "p.yaml:8: is not YAML"),
        ("log: " + "[" * 40, "p.yaml:8: is nested more than"),
        ("---\nlog: {}", "is not YAML"),
    ],
)
def test_fault_told(file: File, text: str, expected: str) -> None:
    """A fault says file, line, key, what is wrong, and what may have been meant."""
    found = file.faults(BASE + text + "\n", {"EMPTY": ""})
    assert any(expected in fault for fault in found), found


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "p.yaml:1: is empty"),
        (b"# only this\n", "p.yaml:1: is empty"),
        (b"- a", "p.yaml:1: must be a mapping of keys to values"),
        (b"a: b\nc: \xff", "p.yaml:2: is not UTF-8"),
        (b"a: b\nc: \x01", "p.yaml:2: has a character that YAML does not allow"),
        (b"#" * (marked_yaml.MAX_FILE_BYTES + 1), "p.yaml: is larger than 1 MiB"),
        (None, "p.yaml: cannot be read: No such file or directory"),
    ],
)
def test_file_unreadable(file: File, content: bytes | None, expected: str) -> None:
    """A file that is missing, too large, or not YAML is one fault that says so."""
    if content is not None:
        file.path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load(file.path, {})
    assert [str(fault).removeprefix(f"{file.path.parent}/") for fault in caught.value.faults] == [expected]


def test_fault_dialect(file: File) -> None:
    """A dialect that there is not is told with those that there are, and the one that may have been meant."""
    (told,) = file.faults(BASE.replace("dialect: openai", "dialect: openia"))
    where = "p.yaml:5: upstreams.openai.dialect"
    assert told == f"{where}: must be one of openai, dashscope, anthropic, gemini, raw (did you mean openai?)"


def test_faults_all_at_once(file: File) -> None:
    """Faults of every kind are told together: the file's by line, then the variables'."""
    text = """\
listen: here
listen: there
auth:
  jwt:
    - {issuer: a, audience: llm, algorithms: [RS265], jwks_url: "https://h", secret: "${MISSING}"}
timeouts: {first_byt: 60s}
upstreams:
  openai: {url: "${URL}", dialect: openia}
default_upstream: opnai
"""
    environ = {"FORWARD_SSE_LOG__LEVEL": "loud", "FORWARD_SSE_LISTN": "h:1"}
    assert [fault.split(": ")[:2] for fault in file.faults(text, environ)] == [
        ["p.yaml:1", "listen"],
        ["p.yaml:2", "listen"],
        ["p.yaml:5", "auth.jwt[0].algorithms[0]"],
        ["p.yaml:5", "auth.jwt[0].secret"],
        ["p.yaml:6", "timeouts.first_byt"],
        ["p.yaml:8", "upstreams.openai.api_key"],
        ["p.yaml:8", "upstreams.openai.dialect"],
        ["p.yaml:8", "upstreams.openai.url"],
        ["p.yaml:9", "default_upstream"],
        ["FORWARD_SSE_LISTN", "unknown key listn (did you mean FORWARD_SSE_LISTEN?)"],
        ["FORWARD_SSE_LOG__LEVEL", "log.level"],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "listen: ${SECRET}",
        "max_body: ${SECRET}",
        "log: {level: '${SECRET}'}",
        "default_upstream: ${SECRET}",
        "plans: {default: {requests: ['${SECRET}']}}",
        "cors: {origins: ['https://${SECRET}/']}",
        "envelope: {targets: [{url: '${SECRET}.example.com'}], allow_private: ['${SECRET}']}",
        "limits: {store: 'redis://:${SECRET}@h:6379/${SECRET}'}",
        f"limits: {{store: '{SECRET}'}}",
        f"workers: {SECRET}",
        f"log: {SECRET}",
        f"auth2: {SECRET}",
        f"playground: [{SECRET}",
        "lissten: ${" + SECRET + "}",
    ],
)
def test_secret_in_the_wrong_place(file: File, text: str) -> None:
    """No fault shows a value, wherever it came from: a secret may stand in the wrong place."""
    assert "do-not-show" not in "\n".join(file.faults(BASE + text + "\n", {"SECRET": SECRET}))


def test_secret_not_utf8(file: File) -> None:
    """A variable whose bytes are no UTF-8 is refused as a secret, and not shown."""
    issuer = "{issuer: a, audience: b, algorithms: [HS256], secret: '${S}'}"
    found = file.faults(BASE.replace("auth: none", f"auth: {{jwt: [{issuer}]}}"), {"S": SECRET + "\udcff"})
    assert found == ["p.yaml:1: auth.jwt[0].secret: must be UTF-8 text"]


@pytest.mark.parametrize("key", [SECRET[:31] + " " + SECRET, SECRET + "\n\n", f"{SECRET}\r\nX-Evil: 1"])
def test_secret_faulty(file: File, key: str) -> None:
    """A faulty secret is refused without being shown, and nothing of it remains in the error."""
    with pytest.raises(ConfigurationError) as caught:
        file.load(BASE, {"KEY": key})
    assert "do-not-show" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert str(caught.value).endswith("p.yaml:6: upstreams.openai.api_key: " + caught.value.faults[0].message)


# Variables


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}", "one"),
        ("<${A}|${B}>", "<one|two>"),
        ("${NONE:-fallback}", "fallback"),
        ("${EMPTY:-fallback}", "fallback"),
        ("${NONE:-}", ""),
        ("${A:-fallback}", "one"),
        ("$${A}", "${A}"),
        ("$A $ {A} $", "$A $ {A} $"),
        ("${NESTED}", "${A}"),
    ],
)
def test_variable_put_in(text: str, expected: str) -> None:
    """A variable's value is put in once and is not looked at again."""
    assert expand(text, {"A": "one", "B": "two", "EMPTY": "", "NESTED": "${A}"}) == expected


@given(st.text(), st.text(min_size=1))
def test_variable_value_of_any_kind(before: str, value: str) -> None:
    """Whatever a variable holds, its text comes through as it is: it cannot become YAML or another variable."""
    before = before.replace("$", "")
    assert expand(before + "${A}", {"A": value}) == before + value


def test_variable_cannot_add_keys(file: File) -> None:
    """A variable that looks like YAML stays one value."""
    (fault,) = file.faults(BASE + "default_upstream: ${A}\n", {"A": "x\nplayground: true"})
    assert fault.startswith("p.yaml:8: default_upstream: names an upstream that nobody defined")


def test_variable_missing_beside_alike(file: File) -> None:
    """A missing variable is named, with the name of one that is set; that one's value is neither taken nor shown."""
    (fault,) = file.faults(BASE.replace("KEY:-sk-1", "OPENAI_KEY"), {"OPENAI_API_KEY": SECRET})
    assert fault.endswith("the environment variable OPENAI_KEY is not set (did you mean OPENAI_API_KEY?)")


def test_variables_missing_in_one_value() -> None:
    """All variables that a value lacks are named together."""
    with pytest.raises(InvalidValue, match="variable A, B is empty or not set"):
        expand("${A}${B}${A}", {"A": ""})


def test_variable_for_a_number(file: File) -> None:
    """Numbers and booleans may come from variables, although these only hold text."""
    made = file.load(BASE + "workers: ${N}\ncors: {credentials: '${F}'}\n", {"N": "1", "F": "true"})
    assert (made.workers, made.cors.credentials) == (1, True)


def test_yaml_words(file: File) -> None:
    """`off`, `no` and dates are the words that stand there, as a header's value for one."""
    text = BASE.replace(
        "    api_key: $", "    headers: {A: off, B: no, C: 2023-06-01, D: 1:30, E: 1e3}\n    api_key: $"
    )
    assert file.load(text).upstreams["openai"].headers == {
        "A": "off",
        "B": "no",
        "C": "2023-06-01",
        "D": "1:30",
        "E": "1e3",
    }


# Secrets in files


# What editors, shells and tools leave around a secret; the first of each pair is dropped.
ENDS = {"bare": "{}", "line end": "{}\n", "CRLF": "{}\r\n", "mark": "\ufeff{}", "mark and line end": "\ufeff{}\r\n"}
FAULTY_ENDS = {
    "two line ends": ("{}\n\n", "white space around it"),
    "two CRLF": ("{}\r\n\r\n", "white space around it"),
    "space behind": ("{} ", "white space around it"),
    "space before": (" {}", "white space around it"),
    "tab before the line end": ("{}\t\n", "white space around it"),
    "no-break space": ("\u00a0{}", "white space around it"),
    "double quotes": ('"{}"', "is in quotes: docker's --env-file keeps them; write NAME=value"),
    "single quotes": ("'{}'", "is in quotes"),
    "quotes and a line end": ("'{}'\n", "is in quotes"),
}
ISSUER = "auth: {jwt: [{issuer: a, audience: b, algorithms: [HS256], secret: '${SECRET}'}]}"
# Each place of a secret: the file that has it there, and how it is read again.
SECRET_PLACES: dict[str, tuple[str, str, Callable[[Settings], str]]] = {
    "an issuer's secret": (
        BASE.replace("auth: none", ISSUER),
        "auth.jwt[0].secret",
        lambda made: made.auth.jwt[0].secret.get_secret_value(),  # type: ignore[union-attr] # there is one
    ),
    "a key": (
        BASE.replace("${KEY:-sk-1}", "${SECRET}"),
        "upstreams.openai.api_key",
        lambda made: made.upstreams["openai"].keys[0].get_secret_value(),
    ),
    "a key of several": (
        BASE.replace("api_key: ${KEY:-sk-1}", "api_keys: [a, '${SECRET}']"),
        "upstreams.openai.api_keys[1]",
        lambda made: made.upstreams["openai"].keys[1].get_secret_value(),
    ),
    "a header": (
        BASE.replace("api_key: ${KEY:-sk-1}", "api_key: none\n    headers: {api-key: '${SECRET}'}"),
        "upstreams.openai.headers.api-key",
        lambda made: made.upstreams["openai"].headers["api-key"].get_secret_value(),  # type: ignore[union-attr] # it is one
    ),
}


@pytest.mark.parametrize("place", SECRET_PLACES)
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("source", ["variable", "file"])
def test_secret_ends_dropped(file: File, tmp_path: Path, place: str, ends: str, source: str) -> None:
    """One line end behind a secret and a byte order mark before it are no part of it, wherever it comes from."""
    text, _, read = SECRET_PLACES[place]
    value = ENDS[ends].format(SECRET)
    if source == "file":
        (tmp_path / "secret").write_bytes(value.encode())
        value = f"file:{tmp_path}/secret\n"
    assert read(file.load(text, {"SECRET": value})) == SECRET


@pytest.mark.parametrize("place", SECRET_PLACES)
@pytest.mark.parametrize("ends", FAULTY_ENDS)
@pytest.mark.parametrize("source", ["variable", "file"])
def test_secret_ends_faulty(file: File, tmp_path: Path, place: str, ends: str, source: str) -> None:
    """Whatever else stands around a secret is a fault at its line, in words and without the secret."""
    text, key, _ = SECRET_PLACES[place]
    form, words = FAULTY_ENDS[ends]
    value = form.format(SECRET)
    if source == "file":
        (tmp_path / "secret").write_bytes(value.encode())
        value = f"file:{tmp_path}/secret"
    (fault,) = file.faults(text, {"SECRET": value})
    assert fault.startswith("p.yaml:")
    assert f": {key}: " in fault
    assert words in fault
    assert SECRET not in fault


def test_secret_ends_of_an_override(file: File) -> None:
    """An overriding variable is trimmed as one that the file mentions."""
    environ = {"FORWARD_SSE_UPSTREAMS__OPENAI__API_KEY": "\ufeffsk-9\n"}
    assert file.load(BASE, environ).upstreams["openai"].keys[0].get_secret_value() == "sk-9"
    environ = {"FORWARD_SSE_UPSTREAMS__OPENAI__API_KEY": "'sk-9'"}
    (fault,) = file.faults(BASE, environ)
    assert "FORWARD_SSE_UPSTREAMS__OPENAI__API_KEY: upstreams.openai.api_key: is in quotes" in fault


@pytest.mark.parametrize(
    ("password", "words"), [("p4ss\n", None), ("'p4ss'", "is in quotes"), (" p4ss", "white space"), ("%20p4ss", None)]
)
def test_store_password_ends(file: File, password: str, words: str | None) -> None:
    """A store's password from a variable is judged as any secret; what is percent-encoded is meant."""
    text = BASE + "limits: {store: 'redis://:${PASSWORD}@h'}\n"
    if words is None:
        assert isinstance(file.load(text, {"PASSWORD": password}).limits.store, StoreUrl)
        return
    (fault,) = file.faults(text, {"PASSWORD": password})
    assert "limits.store: has a password that" in fault
    assert words in fault
    assert "p4ss" not in fault


def test_secret_of_line_ends_alone(file: File) -> None:
    """A variable that holds nothing but what is dropped is empty."""
    (fault,) = file.faults(BASE.replace("${KEY:-sk-1}", "${KEY}"), {"KEY": "\ufeff\r\n"})
    assert fault == "p.yaml:6: upstreams.openai.api_key: the environment variable KEY is empty"


def test_digest_ends(file: File) -> None:
    """The digest of an API key may come from a variable with a line end, and not in quotes."""
    text = BASE.replace("auth: none", "auth: {api_keys: [{user: ci, sha256: '${DIGEST}'}]}")
    made = file.load(text, {"DIGEST": "0" * 64 + "\n"})
    assert made.auth is not None
    assert made.auth.api_keys[0].sha256 == "0" * 64
    (fault,) = file.faults(text, {"DIGEST": '"' + "0" * 64 + '"'})
    assert "is in quotes" in fault


def test_header_in_the_file_is_no_secret(file: File) -> None:
    """What everybody reads in the file is no secret; what comes from elsewhere is hidden in every text."""
    text = BASE.replace(
        "api_key: ${KEY:-sk-1}", "api_key: none\n    headers: {A: open, B: '${SECRET}', C: 'x ${SECRET}'}"
    )
    made = file.load(text, {"SECRET": SECRET})
    assert set(secrets_of(made)) == {SECRET, f"x {SECRET}"}
    assert SECRET not in repr(made)
    assert SECRET not in report(made)


@pytest.mark.parametrize(("content", "expected"), [("sk-2\n", "sk-2"), ("sk-2\r\n", "sk-2"), ("sk-2", "sk-2")])
def test_secret_file(file: File, tmp_path: Path, content: str, expected: str) -> None:
    """A secret is read from the file that is named, without the line end at its end."""
    (tmp_path / "key").write_bytes(content.encode())
    for environ in (
        {"KEY": f"file:{tmp_path}/key"},
        {"FORWARD_SSE_UPSTREAMS__OPENAI__API_KEY": f"file:{tmp_path}/key"},
    ):
        assert file.load(BASE, environ).upstreams["openai"].keys[0].get_secret_value() == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "names no file"),
        (".", "names no file"),
        ("empty", "is empty"),
        ("binary", "not UTF-8"),
        ("large", "larger than 64 KiB"),
        ("two-lines", "visible ASCII"),
        ("two-line-ends", "white space around it"),
        ("two-marks", "white space around it"),
        ("quoted", "is in quotes: docker's --env-file keeps them; write NAME=value"),
    ],
)
def test_secret_file_faulty(file: File, tmp_path: Path, name: str, words: str) -> None:
    """A secret's file that cannot be had is one fault at the key's line."""
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"a" * 65_537)
    (tmp_path / "two-lines").write_bytes(b"sk-1\nsk-2\n")
    (tmp_path / "two-line-ends").write_bytes(b"sk-1\n\n")
    (tmp_path / "two-marks").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfsk-1")
    (tmp_path / "quoted").write_bytes(b'"sk-1"\n')
    (fault,) = file.faults(BASE, {"KEY": f"file:{tmp_path}/{name}"})
    assert fault.startswith("p.yaml:6: upstreams.openai.api_key: ")
    assert words in fault


def test_secret_file_pipe(file: File, tmp_path: Path) -> None:
    """A pipe in a secret's place is refused instead of being waited for."""
    os.mkfifo(tmp_path / "pipe")
    (fault,) = file.faults(BASE, {"KEY": f"file:{tmp_path}/pipe"})
    assert "names no file" in fault


def test_secret_file_relative(file: File) -> None:
    """A relative path is refused: what it names would depend on where the proxy was started."""
    (fault,) = file.faults(BASE, {"KEY": "file:key"})
    assert "absolute" in fault


def test_secret_file_elsewhere(file: File, tmp_path: Path) -> None:
    """Where no secret belongs, `file:` is text and nothing is read."""
    (tmp_path / "key").write_text("https://h")
    (fault,) = file.faults(BASE.replace("https://h", f"file:{tmp_path}/key"))
    assert "upstreams.tongyi-intl.url: must begin with" in fault


def test_secret_locations_exist() -> None:
    """Every place where `file:` is read is a key of the schema."""
    schema = json_schema()
    definitions = schema["$defs"]
    models = {"auth": "JwtIssuer", "upstreams": "UpstreamSettings", "telemetry": "TelemetrySettings"}
    for location in SECRET_LOCATIONS:
        if len(location) == 1:
            assert location[0] in schema["properties"]
            continue
        model, keys = models[location[0]], [step for step in location[1:] if step != "*"]
        if keys[-2:] == ["api_keys", "key"]:
            model, keys = "WeightedKey", ["key"]
        assert keys[-1] in definitions[model]["properties"]


# Overrides


@pytest.mark.parametrize(
    ("name", "value", "got", "expected"),
    [
        ("LISTEN", "127.0.0.1:1", "listen", (Address("127.0.0.1", 1),)),
        ("LISTEN", '["127.0.0.1:1", "[::1]:1"]', "listen", (Address("127.0.0.1", 1), Address("::1", 1))),
        ("ADMIN_LISTEN", "off", "admin_listen", None),
        ("CLIENT_TIMEOUTS__HEADER", "5s", "client_timeouts.header_s", 5.0),
        ("CLIENT_TIMEOUTS", '{"header": "5s"}', "client_timeouts.header_s", 5.0),
        ("DEFAULT_UPSTREAM", "openai", "default_upstream", "openai"),
        ("MAX_BODY", "1MiB", "max_body_bytes", 1 << 20),
        ("MAX_HEADER", "32KiB", "max_header_bytes", 32 << 10),
        ("WORKERS", "1", "workers", 1),
        ("CORS__CREDENTIALS", "true", "cors.credentials", True),
        ("CORS__ORIGINS", '["https://a.example"]', "cors.origins", ("https://a.example",)),
        ("UPSTREAMS__OPENAI__TIMEOUTS__IDLE", "9s", "upstreams.openai.timeouts.idle_s", 9.0),
        ("UPSTREAMS__OPENAI__MODELS", '["a*", "b"]', "upstreams.openai.models", ("a*", "b")),
        ("UPSTREAMS__OPENAI__HEADERS", '{"X-A": "1"}', "upstreams.openai.headers", {"X-A": SecretStr("1")}),
        ("UPSTREAMS__TONGYI_INTL__URL", "https://b", "upstreams.tongyi-intl.url", "https://b"),
        ("UPSTREAMS__TONGYI_INTL__URL", "https://b", "upstreams.openai.url", "https://api.openai.com"),
        ("TYPED_NAMES", '{"Text": 0, "Think": "1"}', "typed_names.Text", 0),
        ("TYPED_NAMES", '{"Text": 0, "Think": "1"}', "typed_names.Think", "1"),
        ("TYPED_NAMES__TEXT", "0", "typed_names.Text", 0),
        ("TYPED_NAMES__THINK", "thought", "typed_names.Think", "thought"),
        ("TYPED_NAMES__TEXT", "007", "typed_names.Text", "007"),
        ("UPSTREAMS__OPENAI__TYPED_NAMES__END", "-1", "upstreams.openai.typed_names.End", -1),
        ("UPSTREAMS__OPENAI__TYPED_NAMES", '{"End": 3}', "upstreams.openai.typed_names.End", 3),
        ("PLANS__PRO__CONCURRENT_STREAMS", "3", "plans.pro.concurrent_streams", 3),
    ],
)
def test_override_by_variable(file: File, name: str, value: str, got: str, expected: object) -> None:
    """`FORWARD_SSE_<KEY>` lies over the file, nested with `__`, and leaves the rest of it alone."""
    made: Any = file.load(BASE, {f"FORWARD_SSE_{name}": value})
    for step in got.split("."):
        made = made[step] if isinstance(made, dict) else getattr(made, step)
    assert made == expected


def test_override_of_a_typed_name_faulty(file: File) -> None:
    """A fault of such a name is told by its variable."""
    assert file.faults(BASE, {"FORWARD_SSE_TYPED_NAMES__TEXT": "x" * 33}) == [
        "FORWARD_SSE_TYPED_NAMES__TEXT: typed_names.Text: must be at most 32 characters"
    ]
    assert file.faults(BASE, {"FORWARD_SSE_TYPED_NAMES__TXT": "x"}) == [
        "FORWARD_SSE_TYPED_NAMES__TXT: typed_names.txt: unknown key (did you mean Text?)"
    ]


def test_override_stays_text(file: File) -> None:
    """A key made of digits is a key, not a number."""
    made = file.load(BASE, {"FORWARD_SSE_UPSTREAMS__OPENAI__API_KEY": "12345"})
    assert made.upstreams["openai"].keys[0].get_secret_value() == "12345"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"LISTEN": "8080"}, "FORWARD_SSE_LISTEN: listen: is not HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080"),
        ({"LISTEN": ""}, "FORWARD_SSE_LISTEN: listen: is set but empty: give a value, or unset it"),
        ({"MAXBODY": "1"}, "FORWARD_SSE_MAXBODY: unknown key maxbody (did you mean FORWARD_SSE_MAX_BODY?)"),
        ({"LOG__LEVL": "info"}, "FORWARD_SSE_LOG__LEVL: log.levl: unknown key (did you mean level?)"),
        ({"LOGS__LEVEL": "info"}, "FORWARD_SSE_LOGS__LEVEL: unknown key logs (did you mean FORWARD_SSE_LOG?)"),
        ({"LOG__": "info"}, "FORWARD_SSE_LOG__: names no key: two underscores stand between the names of keys"),
        (
            {"LOG": "{}", "LOG__LEVEL": "info"},
            "FORWARD_SSE_LOG__LEVEL: log.level: sets what FORWARD_SSE_LOG sets already",
        ),
        ({"LOG": '{"level": null}'}, "FORWARD_SSE_LOG: log.level: has no value"),
        ({"LOG": "[" * 100_000}, "FORWARD_SSE_LOG: log: must be a mapping of keys to values"),
        ({"AUTH": "off"}, "FORWARD_SSE_AUTH: auth: must be a mapping with `jwt` or `api_keys`, or the word none"),
        ({"CORS__ORIGINS": "https://a"}, "FORWARD_SSE_CORS__ORIGINS: cors.origins: must be a list"),
        (
            {"DEFAULT_UPSTREAM": "opnai"},
            (
                "FORWARD_SSE_DEFAULT_UPSTREAM: default_upstream: "
                "names an upstream that nobody defined (did you mean openai?)"
            ),
        ),
    ],
)
def test_override_faulty(file: File, environ: dict[str, str], expected: str) -> None:
    """A fault that a variable brings names the variable; a variable that names no key is a fault itself."""
    assert file.faults(BASE, {f"FORWARD_SSE_{name}": value for name, value in environ.items()}) == [expected]


def test_override_of_a_faulty_value(file: File) -> None:
    """A value that is overridden is not judged, nor is the line blamed that no longer holds."""
    made = file.load(BASE + "listen: here\n", {"FORWARD_SSE_LISTEN": "h:1"})
    assert made.listen == (Address("h", 1),)


@pytest.mark.parametrize(
    "environ",
    [
        {"FORWARD_SSE_CONFIG": "/elsewhere.yaml"},
        {"FORWARD_SSE_SERVICE_HOST": "10.0.0.1", "FORWARD_SSE_SERVICE_PORT_HTTP": "80"},
        {"FORWARD_SSE_PORT": "tcp://10.0.0.1:80", "FORWARD_SSE_PORT_80_TCP_ADDR": "10.0.0.1"},
        {"forward_sse_listen": "h:1", "PATH": "/bin"},
    ],
)
def test_variables_that_are_no_overrides(file: File, environ: dict[str, str]) -> None:
    """The file's own variable, and those that Kubernetes makes of a Service of our name, change nothing."""
    assert file.load(BASE, environ) == file.load(BASE)


def test_override_variable_used_by_the_file(file: File) -> None:
    """A variable of our prefix that the file itself asks for is a value of the file."""
    made = file.load(BASE + "listen: ${FORWARD_SSE_ADDRESS}\n", {"FORWARD_SSE_ADDRESS": "h:1"})
    assert made.listen == (Address("h", 1),)


def test_override_by_option(file: File) -> None:
    """The command line lies over the environment, and is named in a fault that it brings."""
    environ = {"FORWARD_SSE_LISTEN": "h:1"}
    assert file.load(BASE, environ, listen="h:2").listen == (Address("h", 2),)
    (fault,) = file.faults(BASE, environ, workers=2)
    assert fault.startswith("--workers: workers: needs a shared limits.store")


# Anything at all

SCALARS = st.sampled_from(
    ["off", "none", "60s", "1MiB", "${A}", "file:/x", "https://h", "1", "", "~", "true", "[]", "{}"]
)


@hypothesis_settings(max_examples=150)
@given(
    st.dictionaries(
        st.sampled_from(Settings.yaml_keys()) | st.text(max_size=5),
        st.recursive(
            SCALARS | st.integers() | st.booleans() | st.none() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["jwt", "api_keys", "secret", "url", "targets", "models", "requests", "default"]),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        ),
        max_size=6,
    )
)
def test_file_of_any_shape(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    """Whatever the file holds, it gives settings or faults, and never another error."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    try:
        load(path, {})
    except ConfigurationError as error:
        assert error.faults  # noqa: PT017 - that it may be raised is half of what is tested


@hypothesis_settings(max_examples=150)
@given(st.binary(max_size=60) | st.text("{}[]:,&*!|>-#?%@` \n\t'\"ab", max_size=60).map(str.encode))
def test_bytes_of_any_kind(content: bytes) -> None:
    """Whatever bytes stand in the file, they parse or give a fault, and never another error."""
    try:
        marked_yaml.parse(content, "p.yaml")
    except ConfigurationError as error:
        assert error.faults  # noqa: PT017 - that it may be raised is half of what is tested


# The schema and the shipped files


def test_schema_current() -> None:
    """`config/schema.json` is what the models say (`make schema` writes it)."""
    assert json.loads((ROOT / "config/schema.json").read_text()) == json_schema()


def test_shipped_files_all_tested() -> None:
    """No file below `config/` is left out of the tests below."""
    # Kubernetes' objects have a module of their own, in which the file inside them is loaded too.
    tested = {*SHIPPED, "config/examples/kubernetes.yaml"}
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "config").rglob("*.yaml")}
    # Those of other programs are tested by `tests/observability/test_boards.py`.
    assert {name for name in found if not name.startswith(OTHER_PROGRAMS)} == tested


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_file_fits_the_schema(name: str) -> None:
    """Every shipped file is valid for the schema that its first line names, variables unexpanded."""
    text = (ROOT / name).read_text()
    reference = text.splitlines()[0].partition("$schema=")[2]
    assert ((ROOT / name).parent / reference).resolve() == ROOT / "config/schema.json"
    jsonschema.Draft202012Validator(json_schema()).validate(marked_yaml.parse(text.encode(), name).values)


@pytest.mark.parametrize(
    "values",
    [
        {"upstreams": {}},
        {"auth": "off", "upstreams": {}},
        {"auth": "none", "upstreams": {}, "lissten": "h:1"},
        {"auth": "none", "upstreams": {}, "drain_timeout": 5},
        {"auth": "none", "upstreams": {"OpenAI": {"url": "https://h", "dialect": "openai"}}},
        {"auth": "none", "upstreams": {"a": {"url": "https://h", "dialect": "openai", "x": 1}}},
    ],
)
def test_schema_refuses(values: dict[str, Any]) -> None:
    """An editor shows missing and unknown keys, values without units and impossible names."""
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(values)


def test_schema_takes_units_and_variables() -> None:
    """Units are text and a variable may stand for any single value."""
    values = {"auth": "none", "workers": "${N}", "max_body": "${M:-1MiB}", "timeouts": {"idle": "5s"}, "upstreams": {}}
    jsonschema.Draft202012Validator(json_schema()).validate(values)


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"config/examples/oidc.yaml"}))
def test_shipped_file_loads(name: str) -> None:
    """Every shipped file is sound once the variables that it names are set, and not before."""
    assert load(ROOT / name, SHIPPED[name]).upstreams
    for variable in SHIPPED[name]:
        with pytest.raises(ConfigurationError, match=variable):
            load(ROOT / name, {other: value for other, value in SHIPPED[name].items() if other != variable})


def test_oidc_example_loads(file: File, tmp_path: Path) -> None:
    """The example with its keys in files is sound once these exist."""
    text = (ROOT / "config/examples/oidc.yaml").read_text()
    for vendor in ("openai", "anthropic"):
        (tmp_path / f"{vendor}_api_key").write_text("sk-1\n")
    made = file.load(text.replace("/run/secrets", str(tmp_path)), SHIPPED["config/examples/oidc.yaml"])
    assert [upstream.key_source for upstream in made.upstreams.values()] == ["own", "own"]


def test_commented_file_shows_every_key() -> None:
    """`config/proxy.yaml` shows every key that there is."""
    text = (ROOT / "config/proxy.yaml").read_text()
    schema = json_schema()
    keys = set(schema["properties"])
    for definition in schema["$defs"].values():
        keys |= set(definition.get("properties", ()))
    assert [
        key for key in sorted(keys) if f"{key}:" not in text and f"`{key}`" not in text and f"`{key}:" not in text
    ] == []


def test_documentation_names_every_key() -> None:
    """The reference has every key of every part."""
    text = (ROOT / "docs/configuration.md").read_text()
    for name, definition in json_schema()["$defs"].items():
        for key in definition.get("properties", ()):
            assert f"`{key}`" in text, (name, key)
