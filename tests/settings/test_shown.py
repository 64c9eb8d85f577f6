"""The configuration as operators see it: whole, and without anything secret, of keys that are added later too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from pydantic import SecretStr

from proxy.model import EgressProxy
from proxy.settings import Settings
from proxy.settings import shown as room
from proxy.settings.ledger import read_ledger
from proxy.settings.limits_store import read_store
from proxy.settings.loading import load
from proxy.settings.model import Model
from proxy.settings.shown import REDACTED, SHOWN, shown
from tests.settings_builder import settings

MARK = "MARKED-secret-canary"
DIGEST = "c0ffee00" + "1" * 56


def models(root: type[Model]) -> set[type[Model]]:
    """The model and all that it is made of."""
    found: set[type[Model]] = set()

    def look(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Model) and annotation not in found:
            found.add(annotation)
            for field in annotation.model_fields.values():
                look(field.annotation)
        for part in get_args(annotation):
            look(part)

    look(root)
    return found


def holds_text(annotation: Any) -> bool:
    """Whether a value may be text, or hold some, that is not a word of a `Literal`."""
    if annotation is str or annotation is SecretStr:
        return True
    if type(annotation) is type(Literal["a"]):
        return False
    return any(holds_text(part) for part in get_args(annotation))


MODELS = sorted(models(Settings), key=lambda model: model.__name__)


def test_every_secret_is_redacted() -> None:
    """With every secret of a whole configuration marked, the mark is nowhere; nor is a digest in full."""
    secret = MARK + "x" * 64
    made = settings(
        main={
            "headers": {"X-Key": f"a-{MARK}"},
            "path": f"/v1/chat/completions?alt=sse&code={MARK}",
            "egress_proxy": f"http://user:{MARK}@proxy:3128",
        },
        auth={
            "jwt": [
                {"issuer": "tests", "audience": "llm", "algorithms": ["HS256"], "secret": secret},
                {
                    "issuer": "https://id.example.com",
                    "audience": "llm",
                    "algorithms": ["RS256"],
                    "jwks_url": f"https://id.example.com/keys?token={MARK}",
                    "egress_proxy": f"socks5://{MARK}:{MARK}@proxy",
                },
            ],
            "api_keys": [{"user": "ci", "sha256": DIGEST}],
        },
        admin={"tokens": [{"name": "ops", "sha256": "d" + DIGEST[1:]}]},
        limits={"store": f"redis+sentinel://u:{MARK}@one,two:26379/limits?sentinel_password={MARK}"},
        usage={"ledger": f"postgresql://u:{MARK}@db/ledger?sslpassword={MARK}", "spool": "/var/spool/x"},
        egress_proxy=f"http://{MARK}@proxy:3128",
        upstreams={
            "main": {"url": "https://a", "dialect": "openai", "api_key": MARK},
            "more": {
                "url": "https://b",
                "dialect": "openai",
                "api_keys": [MARK + "1", {"key": MARK + "2", "weight": 3}],
            },
        },
    )
    text = json.dumps(shown(made), ensure_ascii=False)
    assert MARK not in text
    assert DIGEST[:8] in text
    assert DIGEST[:9] not in text
    assert DIGEST[1:] not in text


def test_every_field_is_redacted_or_listed() -> None:
    """Each text of each model, marked, is shown only where its key is listed; a `SecretStr` never is."""
    for model in MODELS:
        for name, field in model.model_fields.items():
            if not holds_text(field.annotation):
                continue
            for value in (SecretStr(MARK), (SecretStr(MARK),), {"a": SecretStr(MARK)}):
                text = json.dumps(room._field(model.model_construct(), name, field, value))
                assert MARK not in text, (model, name)
            if name in SHOWN.get(model, ()) or room._DIGESTS.get(model) == name:
                continue
            for plain in (MARK, (MARK,), {"a": MARK}, {"a": (MARK,)}):
                text = json.dumps(room._field(model.model_construct(), name, field, plain))
                assert MARK not in text, (model, name)


def test_listed_keys_exist() -> None:
    """What is listed as harmless is a key of the models, and none of it is a secret by its type."""
    for model, names in SHOWN.items():
        for name in names:
            assert "SecretStr" not in str(model.model_fields[name].annotation), (model, name)


def test_a_key_that_is_added_later_is_redacted() -> None:
    """Text of a key that nobody has listed, or of a type that nobody knows, is not shown; words of its source are."""

    class Later(Model):
        password: str
        many: tuple[str, ...]
        named: dict[str, str]
        kind: Literal["red", "blue"]
        count: int
        wait_s: float
        thing: object

    values = {"password": MARK, "many": (MARK,), "named": {"a": MARK}, "kind": "red"}
    later = Later.model_validate(values | {"count": 3, "wait": 90.0, "thing": object()})
    assert room._model(later) == {
        "password": REDACTED,
        "many": [REDACTED],
        "named": {"a": REDACTED},
        "kind": "red",
        "count": 3,
        "wait": "90s",
        "thing": REDACTED,
    }


def test_values_as_in_the_file() -> None:
    """Keys, durations, sizes, rates and addresses stand as in the file."""
    told = shown(
        settings(
            drain_timeout="5m",
            max_body="8MiB",
            listen=["127.0.0.1:0", "[::1]:0"],
            plans={"pro": {"requests": ["60/10s"], "budgets": [{"usd": "2.5", "every": "month"}]}},
            prices={"m": {"input": "0.5", "output": 2}},
            trusted_proxies=["10.0.0.0/8"],
            usage={"ledger": "sqlite:////var/lib/l.db", "budget_timezone": "Asia/Shanghai"},
            admin="open",
        )
    )
    assert (told["drain_timeout"], told["max_body"]) == ("5m", "8MiB")
    assert told["listen"] == ["127.0.0.1:0", "[::1]:0"]
    assert told["plans"]["pro"]["requests"] == ["60/10s"]
    assert told["plans"]["pro"]["budgets"] == [{"usd": "2.5", "tokens": None, "every": "month"}]
    assert told["prices"]["m"]["input"] == "0.5"
    assert told["trusted_proxies"] == ["10.0.0.0/8"]
    assert (told["usage"]["ledger"], told["usage"]["budget_timezone"]) == ("sqlite:////var/lib/l.db", "Asia/Shanghai")
    assert told["upstreams"]["main"]["api_key"] == REDACTED
    assert told["upstreams"]["main"]["models"] == ["gpt-*"]
    assert told["upstreams"]["main"]["timeouts"]["total"] == "off"
    assert told["admin"] == "open"
    assert shown(settings(auth="none"))["auth"] == "none"
    assert shown(settings(main={"api_key": "client"}))["upstreams"]["main"]["api_key"] == "client"
    assert set(told) == {field.alias or name for name, field in Settings.model_fields.items()}


@pytest.mark.parametrize("name", ["proxy", "examples/compose"])
def test_examples_can_be_shown(name: str) -> None:
    """Every example is told whole, as JSON."""
    names = ("OPENAI_API_KEY", "DASHSCOPE_API_KEY", "TRIAL_SECRET")
    environ = dict.fromkeys(names, MARK + "x" * 32)
    made = load(Path(__file__).parents[2] / f"config/{name}.yaml", environ)
    text = json.dumps(shown(made))
    assert MARK not in text
    assert '"upstreams"' in text


def test_text_forms_have_no_credentials() -> None:
    """The types whose text is shown leave their credentials out of it."""
    store = read_store(f"rediss://u:{MARK}@host:1/0")
    ledger = read_ledger(f"postgresql://u:{MARK}@host/db?password={MARK}")
    for value in (store, ledger, EgressProxy("http", "h", 1, MARK, MARK)):
        assert MARK not in str(value)
