"""Who gets in at the operator's listener: tokens, sessions, pages of other origins; and the line of each action."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from proxy.app import make_admin_app
from proxy.auth.operators import AdminRules, Operator, Operators, OperatorToken, Role
from proxy.handlers import operators as access
from proxy.handlers.admin import translate
from proxy.handlers.operators import COOKIE, FAILURES, OPERATOR, PAGE_FIELD, PAGE_VALUE, REFUSED_LINES
from tests.handlers.test_admin import Fake

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

    from pytest_aiohttp.plugin import AiohttpClient

    from tests.handlers.conftest import Client

OPS, LOOK = "fssa_ops-token-canary", "fssa_look-token-canary"
SECRET = b"s" * 32
PAGE = {PAGE_FIELD: PAGE_VALUE}
READS = (
    "/admin/streams",
    "/admin/usage",
    "/admin/upstreams",
    "/admin/config",
    "/console/session",
    "/console/x",
    "/admin/events",
    "/nothing",
)


def token(name: str, text: str, role: Role) -> OperatorToken:
    return OperatorToken(name, hashlib.sha256(text.encode()).digest(), role)


RULES = AdminRules(
    (token("ops", OPS, "operate"), token("look", LOOK, "view")), needs_credential=True, checks_host=False
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def operators(clock: Clock) -> Operators:
    return Operators(RULES, secret=SECRET, now=clock)


@pytest.fixture
def view() -> Fake:
    return Fake()


@pytest.fixture
async def admin(aiohttp_client: AiohttpClient, view: Fake, operators: Operators) -> Client:
    return await aiohttp_client(make_admin_app(view, operators))


@pytest.fixture
def lines() -> Iterator[list[MutableMapping[str, Any]]]:
    """The lines `operator.acted`."""
    with capture_logs() as captured:
        yield captured


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


async def ask(client: Client, method: str, path: str, **options: Any) -> tuple[int, str | None, str | None]:
    """Status, code and challenge of an answer."""
    async with client.request(method, path, **options) as response:
        return (
            response.status,
            response.headers.get("X-Forward-Sse-Code"),
            response.headers.get("WWW-Authenticate"),
        )


async def log_in(client: Client, text: str, **headers: str) -> str:
    """Log in, and return the cookie's value, which the client does not keep."""
    async with client.post("/console/session", json={"token": text}, headers=PAGE | headers) as response:
        assert response.status == 204
        value = response.cookies[COOKIE].value
    client.session.cookie_jar.clear()
    return value


def with_cookie(value: str, **more: str) -> dict[str, str]:
    return {"Cookie": f"other=1; {COOKIE}={value}", **more}


@pytest.mark.parametrize("path", READS)
async def test_without_credential(admin: Client, path: str) -> None:
    """Without a credential nothing is told, not even which paths there are, and the answer says what is asked for."""
    async with admin.get(path) as response:
        assert (response.status, response.headers["X-Forward-Sse-Code"]) == (401, "missing_token")
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="forward-sse"'
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Server" not in response.headers


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/healthz/", "/metrics/"])
async def test_open_paths(admin: Client, path: str) -> None:
    """Health, and metrics unless told otherwise, need no credential."""
    assert (await ask(admin, "GET", path))[0] == 200


async def test_metrics_with_token(admin: Client, operators: Operators) -> None:
    """With `metrics: token` a scrape needs a token of any role."""
    operators.rules = AdminRules(RULES.tokens, needs_credential=True, checks_host=False, are_metrics_open=False)
    seen = [(await ask(admin, "GET", "/metrics", headers=headers))[0] for headers in ({}, bearer(LOOK), bearer("x"))]
    assert seen == [401, 200, 401]


@pytest.mark.parametrize("field", ["Bearer {}", "bearer {}", "BEARER  {} "])
async def test_token(admin: Client, field: str) -> None:
    """A token of either role reads."""
    for text in (OPS, LOOK):
        assert (await ask(admin, "GET", "/admin/streams", headers={"Authorization": field.format(text)}))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        bearer("fssa_wrong"),
        bearer(OPS + "x"),
        bearer(OPS[:-1]),
        {"Authorization": f"Basic {OPS}"},
        {"Authorization": "Bearer"},
        {"Authorization": OPS},
        bearer(hashlib.sha256(OPS.encode()).hexdigest()),
    ],
)
async def test_bad_token(admin: Client, headers: dict[str, str]) -> None:
    """A wrong token is 401, and the challenge repeats nothing of it."""
    status, code, challenge = await ask(admin, "GET", "/admin/streams", headers=headers)
    assert (status, code) == (401, "invalid_token")
    assert challenge is not None
    assert OPS not in challenge


async def test_token_not_in_query(admin: Client) -> None:
    """A token in a query lets nobody in."""
    for name in ("access_token", "token", "key"):
        assert (await ask(admin, "GET", f"/admin/streams?{name}={OPS}"))[1] == "missing_token"


async def test_two_tokens(admin: Client) -> None:
    """Two `Authorization` fields, of which proxies in front may read either, are refused."""
    headers = [("Authorization", f"Bearer {OPS}"), ("Authorization", f"Bearer {LOOK}")]
    assert (await ask(admin, "GET", "/admin/streams", headers=headers))[:2] == (400, "invalid_request")


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("DELETE", "/admin/streams/one", {}),
        ("DELETE", "/admin/streams?user=alice", {}),
        ("DELETE", "/admin/streams?upstream=main", {}),
        ("PUT", "/admin/upstreams/main", {"json": {"state": "off"}}),
        ("POST", "/admin/anything", {}),
    ],
)
@pytest.mark.parametrize("by", ["token", "session"])
async def test_view_changes_nothing(
    admin: Client, view: Fake, method: str, path: str, options: dict[str, Any], by: str
) -> None:
    """The role `view` can stop and switch nothing, by token or by session."""
    headers = bearer(LOOK) if by == "token" else with_cookie(await log_in(admin, LOOK), **PAGE)
    status, code, challenge = await ask(admin, method, path, headers=headers, **options)
    assert (status, code) == (403, "insufficient_scope")
    assert challenge == 'Bearer realm="forward-sse", error="insufficient_scope"'
    assert (view.stopped, view.whose, view.off) == ([], [], False)


@pytest.mark.parametrize(
    ("method", "path", "options", "line"),
    [
        ("DELETE", "/admin/streams/one", {}, {"action": "stop_stream", "target": "one", "result": "ok"}),
        ("DELETE", "/admin/streams/two", {}, {"action": "stop_stream", "target": "two", "result": "not_found"}),
        (
            "DELETE",
            "/admin/streams?user=alice",
            {},
            {"action": "stop_streams", "target": "alice", "by": "user", "stopped": 2, "result": "ok"},
        ),
        (
            "DELETE",
            "/admin/streams?user=alice&issuer=https%3A%2F%2Fid.example.com",
            {},
            {
                "action": "stop_streams",
                "target": "alice",
                "by": "user",
                "issuer": "https://id.example.com",
                "stopped": 2,
                "result": "ok",
            },
        ),
        (
            "DELETE",
            "/admin/streams?upstream=main",
            {},
            {"action": "stop_streams", "target": "main", "by": "upstream", "stopped": 2, "result": "ok"},
        ),
        (
            "PUT",
            "/admin/upstreams/main",
            {"json": {"state": "off"}},
            {"action": "switch_upstream", "target": "main", "state": "off", "result": "ok"},
        ),
        (
            "PUT",
            "/admin/upstreams/main",
            {"json": {"state": "away"}},
            {"action": "switch_upstream", "target": None, "result": "invalid_request"},
        ),
        ("POST", "/admin/usage", {}, None),
    ],
)
async def test_operate(
    admin: Client,
    lines: list[Any],
    method: str,
    path: str,
    options: dict[str, Any],
    line: dict[str, Any] | None,
) -> None:
    """The role `operate` acts, and each action leaves one line with the operator's name; what is refused leaves one."""
    await ask(admin, method, path, headers=bearer(OPS), **options)
    base = {"event": "operator.acted", "log_level": "info", "operator": "ops", "client": "127.0.0.1"}
    assert lines == ([] if line is None else [base | line])


async def test_reading_leaves_no_line(admin: Client, lines: list[Any]) -> None:
    """Who reads, is not logged in yet, or has a session that ended, leaves no line."""
    await ask(admin, "GET", "/admin/streams", headers=bearer(LOOK))
    await ask(admin, "GET", "/admin/streams")
    await ask(admin, "GET", "/admin/streams", headers=with_cookie("gone"))
    assert lines == []


async def test_refused_lines(admin: Client, lines: list[Any]) -> None:
    """Tries that are refused leave a warning each that repeats nothing of them, and only so many at a time."""
    await ask(admin, "DELETE", "/admin/streams/one", headers=bearer("fssa_guess"))
    await ask(admin, "GET", "/admin/streams", headers=bearer("fssa_guess"))
    await ask(admin, "DELETE", "/admin/streams/one")
    await ask(admin, "DELETE", "/admin/streams/one", headers=bearer(LOOK))
    seen = [(line["action"], line["result"], line["operator"], line["target"]) for line in lines]
    assert seen == [
        ("stop_stream", "invalid_token", None, None),
        ("read", "invalid_token", None, None),
        ("stop_stream", "missing_token", None, None),
        ("stop_stream", "insufficient_scope", "look", None),
    ]
    assert {line["log_level"] for line in lines} == {"warning"}
    for _ in range(REFUSED_LINES + 5):
        await ask(admin, "DELETE", "/admin/streams/one")
    await ask(admin, "DELETE", "/console/session")
    assert len(lines) == REFUSED_LINES + 1
    # What an operator does is logged in any case.
    await ask(admin, "DELETE", "/admin/streams/one", headers=bearer(OPS))
    assert lines[-1]["operator"] == "ops"
    assert "fssa_" not in repr(lines)


async def test_refused_lines_later(
    aiohttp_client: AiohttpClient, operators: Operators, clock: Clock, lines: list[Any]
) -> None:
    """When there is room for lines again, the first one says how many were left out."""
    app = make_admin_app(Fake(), operators)
    app[access.ACCESS] = access.Access(operators, now=clock)
    admin = await aiohttp_client(app)
    for _ in range(REFUSED_LINES + 3):
        await ask(admin, "DELETE", "/admin/streams/one")
    clock.now_s += access.REFUSED_WINDOW_S
    for _ in range(2):
        await ask(admin, "DELETE", "/admin/streams/one")
    assert [line.get("unlogged") for line in lines] == [None] * REFUSED_LINES + [3, None]


async def test_action_that_fails(admin: Client, view: Fake, lines: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in an action leaves its line, too."""

    async def fail(_id: str) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(view, "stop", fail)
    assert (await ask(admin, "DELETE", "/admin/streams/one", headers=bearer(OPS)))[0] == 500
    acted = [line for line in lines if line["event"] == "operator.acted"]
    assert [(line["target"], line["result"], line["log_level"]) for line in acted] == [("one", "failed", "warning")]


async def test_logout_of_an_ended_session(admin: Client) -> None:
    """The cookie of a session that has ended is removed, too."""
    async with admin.delete("/console/session", headers=with_cookie("gone", **PAGE)) as response:
        assert response.status == 204
        assert "Max-Age=0" in response.headers["Set-Cookie"]


async def test_session(admin: Client, lines: list[Any]) -> None:
    """A login makes a cookie that no script reads and no other site sends; it reads and acts until the logout."""
    async with admin.post("/console/session", json={"token": OPS}, headers=PAGE) as response:
        assert (response.status, await response.read()) == (204, b"")
        cookie = response.headers["Set-Cookie"]
    assert re.fullmatch(
        rf"{COOKIE}=[\w-]+; HttpOnly; Max-Age=43200; Path=/; SameSite=Strict", cookie.replace('"', "")
    ), cookie
    assert OPS not in cookie
    value = cookie.partition("=")[2].partition(";")[0]
    admin.session.cookie_jar.clear()
    async with admin.get("/console/session", headers=with_cookie(value)) as response:
        assert (response.status, await response.json()) == (200, {"name": "ops", "role": "operate"})
        assert response.headers["Cache-Control"] == "no-store"
    assert (await ask(admin, "DELETE", "/admin/streams/one", headers=with_cookie(value, **PAGE)))[0] == 204
    async with admin.delete("/console/session", headers=with_cookie(value, **PAGE)) as response:
        assert response.status == 204
        assert re.search(rf'{COOKIE}="?"?; .*Max-Age=0; Path=/', response.headers["Set-Cookie"])
    seen = [(line["action"], line["operator"], line["result"]) for line in lines]
    assert seen == [("login", "ops", "ok"), ("stop_stream", "ops", "ok"), ("logout", "ops", "ok")]


async def test_session_who_by_token(admin: Client) -> None:
    """Who asks is told for a token, too."""
    async with admin.get("/console/session", headers=bearer(LOOK)) as response:
        assert await response.json() == {"name": "look", "role": "view"}


async def test_session_in_another_worker(admin: Client, aiohttp_client: AiohttpClient, clock: Clock) -> None:
    """A session is good in every worker with the same secret, and in none with another."""
    value = await log_in(admin, OPS)
    same = await aiohttp_client(make_admin_app(Fake(), Operators(RULES, secret=SECRET, now=clock)))
    other = await aiohttp_client(make_admin_app(Fake(), Operators(RULES, secret=b"o" * 32, now=clock)))
    assert (await ask(same, "GET", "/admin/streams", headers=with_cookie(value)))[0] == 200
    assert (await ask(other, "GET", "/admin/streams", headers=with_cookie(value)))[:2] == (401, "expired_token")


async def test_session_expires(admin: Client, operators: Operators, clock: Clock) -> None:
    """A session ends after its time, whatever the browser does."""
    value = await log_in(admin, OPS)
    operator = operators.resume_session(value)
    clock.now_s += operators.session_s - 1
    assert (await ask(admin, "GET", "/admin/streams", headers=with_cookie(value)))[0] == 200
    assert operator.is_valid()
    clock.now_s += 1
    assert (await ask(admin, "GET", "/admin/streams", headers=with_cookie(value)))[:2] == (401, "expired_token")
    assert not operator.is_valid()


@pytest.mark.parametrize(
    "tokens",
    [
        (),
        (token("look", LOOK, "view"),),
        (token("ops", "another", "operate"),),
        (token("other", OPS, "operate"),),
    ],
    ids=["none", "removed", "replaced", "renamed"],
)
async def test_token_removed(admin: Client, operators: Operators, tokens: tuple[OperatorToken, ...]) -> None:
    """A token that is removed or replaced ends its sessions at once, and what had begun with them is not valid."""
    value = await log_in(admin, OPS)
    running = [operators.resume_session(value), operators.authenticate(OPS)]
    assert all(operator.is_valid() for operator in running)
    operators.rules = AdminRules(tokens, needs_credential=True, checks_host=False)
    assert (await ask(admin, "GET", "/admin/streams", headers=with_cookie(value)))[:2] == (401, "expired_token")
    assert [operator.is_valid() for operator in running] == [False, False]


@pytest.mark.parametrize(
    "fields",
    [
        ["{theirs}; {mine}"],
        ["{mine}; {theirs}"],
        ["{mine};{theirs}"],
        ["{mine}; a=1; {mine}"],
        ["{mine}", "{theirs}"],
        ["a=1; {mine}", "{theirs}"],
        ["{mine}; forward_sse_console=junk"],
    ],
)
async def test_several_sessions(admin: Client, view: Fake, fields: list[str]) -> None:
    """Cookies of one name, which another service on the host may add, are refused: nobody acts as somebody else."""
    mine, theirs = [f"{COOKIE}={await log_in(admin, text)}" for text in (OPS, LOOK)]
    headers = [("Cookie", field.format(mine=mine, theirs=theirs)) for field in fields]
    assert (await ask(admin, "GET", "/admin/streams", headers=headers))[:2] == (400, "invalid_request")
    acts = [*headers, *PAGE.items()]
    assert (await ask(admin, "DELETE", "/admin/streams/one", headers=acts))[:2] == (400, "invalid_request")
    assert (await ask(admin, "DELETE", "/admin/streams/one", headers=headers))[:2] == (403, "origin_not_allowed")
    assert view.stopped == []
    # Out of it leads a logout. With a token in its field cookies do not matter.
    assert (await ask(admin, "DELETE", "/console/session", headers=acts))[0] == 204
    with_token = [*headers, ("Authorization", f"Bearer {OPS}")]
    assert (await ask(admin, "GET", "/admin/streams", headers=with_token))[0] == 200


async def test_session_in_a_second_field(admin: Client) -> None:
    """The cookie is found, and held to its field, in whichever `Cookie` field it stands."""
    headers = [("Cookie", "a=1"), ("Cookie", f"{COOKIE}={await log_in(admin, OPS)}")]
    assert (await ask(admin, "GET", "/admin/streams", headers=headers))[0] == 200
    assert (await ask(admin, "DELETE", "/admin/streams/one", headers=headers))[:2] == (403, "origin_not_allowed")


async def test_token_and_session(admin: Client, view: Fake, lines: list[Any]) -> None:
    """Of a token and a session of two operators the token counts, whichever may do more; a bad token is no fallback."""
    sessions = {name: with_cookie(await log_in(admin, text), **PAGE) for name, text in (("ops", OPS), ("look", LOOK))}
    lines.clear()
    refused = await ask(admin, "DELETE", "/admin/streams/one", headers=sessions["ops"] | bearer(LOOK))
    allowed = await ask(admin, "DELETE", "/admin/streams/one", headers=sessions["look"] | bearer(OPS))
    bad = await ask(admin, "GET", "/admin/streams", headers=sessions["ops"] | bearer("fssa_guess"))
    basic = await ask(admin, "GET", "/admin/streams", headers=sessions["ops"] | {"Authorization": "Basic eDp5"})
    assert [refused[0], allowed[0], bad[0], basic[0]] == [403, 204, 401, 401]
    assert view.stopped == ["one"]
    assert [(line["operator"], line["result"]) for line in lines[:2]] == [("look", "insufficient_scope"), ("ops", "ok")]


async def test_role_lowered(admin: Client, operators: Operators) -> None:
    """A role that is lowered holds for sessions that were opened before."""
    value = await log_in(admin, OPS)
    operators.rules = AdminRules((token("ops", OPS, "view"),), needs_credential=True, checks_host=False)
    headers = with_cookie(value, **PAGE)
    assert (await ask(admin, "GET", "/admin/streams", headers=headers))[0] == 200
    assert (await ask(admin, "DELETE", "/admin/streams/one", headers=headers))[:2] == (403, "insufficient_scope")


async def test_session_forged(admin: Client) -> None:
    """A session that was changed anywhere is none."""
    value = await log_in(admin, OPS)
    for index in range(0, len(value), 5):
        changed = value[:index] + ("A" if value[index] != "A" else "B") + value[index + 1 :]
        assert (await ask(admin, "GET", "/admin/streams", headers=with_cookie(changed)))[1] == "expired_token"
    for changed in ("", "A", "A" * 43, "A" * 600, value[:-8], "é"):
        assert (await ask(admin, "GET", "/admin/streams", headers=with_cookie(changed)))[0] == 401


async def test_login_refused(admin: Client, view: Fake, lines: list[Any]) -> None:
    """A login without a good token, or with a body that is something else, sets no cookie."""
    seen = []
    body: object
    for body in ({"token": "wrong"}, {"token": ""}, {"token": 7}, {}, [], {"token": OPS, "more": "x" * 1100}):
        async with admin.post("/console/session", json=body) as response:
            assert "Set-Cookie" not in response.headers
            seen.append(response.status)
    assert seen == [401, 400, 400, 400, 400, 400]
    assert [line["result"] for line in lines] == ["invalid_token", *["invalid_request"] * 5]
    assert view.stopped == []


@pytest.mark.parametrize(
    ("headers", "is_secure"),
    [
        ({}, False),
        ({"X-Forwarded-Proto": "https"}, True),
        ({"X-Forwarded-Proto": "https, http"}, True),
        ({"X-Forwarded-Proto": "http"}, False),
    ],
)
async def test_cookie_secure(admin: Client, headers: dict[str, str], is_secure: bool) -> None:
    """Where the browser speaks TLS, the cookie is only sent by TLS."""
    async with admin.post("/console/session", json={"token": OPS}, headers=PAGE | headers) as response:
        assert ("Secure" in response.headers["Set-Cookie"]) is is_secure


async def test_guessing_is_limited(admin: Client, lines: list[Any]) -> None:
    """Of one address only so many bad tokens are looked at, by login or field; then a good one is not, either.

    A session that is open goes on.
    """
    value = await log_in(admin, OPS)
    for number in range(FAILURES.quota):
        if number % 2:
            assert (await ask(admin, "GET", "/admin/streams", headers=bearer(f"no{number}")))[0] == 401
        else:
            assert (await ask(admin, "POST", "/console/session", json={"token": f"no{number}"}))[0] == 401
    for text in ("no", OPS):
        async with admin.post("/console/session", json={"token": text}) as response:
            assert (response.status, response.headers["X-Forward-Sse-Code"]) == (429, "too_many_failures")
            assert 1 <= int(response.headers["Retry-After"]) <= FAILURES.window_s
        assert (await ask(admin, "GET", "/admin/streams", headers=bearer(text)))[0] == 429
    assert (await ask(admin, "GET", "/admin/streams", headers=with_cookie(value)))[0] == 200
    assert lines[-1]["result"] == "too_many_failures"


CROSS = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "http://127.0.0.1:1"},
]


@pytest.mark.parametrize("foreign", CROSS)
@pytest.mark.parametrize("mode", ["session", "none"])
async def test_other_origin(
    aiohttp_client: AiohttpClient, view: Fake, clock: Clock, foreign: dict[str, str], mode: str
) -> None:
    """Another origin's page can do nothing and read nothing, with an operator's cookie or where none is needed."""
    rules = RULES if mode == "session" else AdminRules()
    admin = await aiohttp_client(make_admin_app(view, Operators(rules, secret=SECRET, now=clock)))
    headers = dict(foreign)
    if mode == "session":
        headers |= with_cookie(await log_in(admin, OPS), **PAGE)
    for method, path in (
        ("DELETE", "/admin/streams/one"),
        ("DELETE", "/admin/streams?user=alice"),
        ("PUT", "/admin/upstreams/main"),
        ("POST", "/console/session"),
        ("DELETE", "/console/session"),
        ("GET", "/admin/streams"),
        ("GET", "/console/session"),
    ):
        async with admin.request(method, path, headers=headers, json={"state": "off", "token": OPS}) as response:
            assert (response.status, response.headers["X-Forward-Sse-Code"]) == (403, "origin_not_allowed"), path
            assert not [name for name in response.headers if name.lower().startswith("access-control-")]
            assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "Set-Cookie" not in response.headers
    assert (view.stopped, view.whose, view.off) == ([], [], False)
    # A preflight grants nothing.
    async with admin.options("/admin/streams/one", headers=headers) as response:
        assert response.status in {403, 405}
        assert not [name for name in response.headers if name.lower().startswith("access-control-")]


async def test_own_page(admin: Client, view: Fake) -> None:
    """The console's own page reads and acts, and a person may open an address by hand."""
    value = await log_in(admin, OPS)
    own = {"Origin": f"http://{admin.host}:{admin.port}", "Sec-Fetch-Site": "same-origin"}
    assert (await ask(admin, "DELETE", "/admin/streams/one", headers=with_cookie(value, **own, **PAGE)))[0] == 204
    typed = {"Sec-Fetch-Site": "none"}
    assert (await ask(admin, "GET", "/admin/streams", headers=with_cookie(value, **typed)))[0] == 200
    assert view.stopped == ["one"]


@pytest.mark.parametrize("more", [{}, {PAGE_FIELD: "XMLHttpRequest"}])
async def test_cookie_needs_field(admin: Client, view: Fake, more: dict[str, str]) -> None:
    """With a cookie, what changes anything needs a field that no form can send."""
    value = await log_in(admin, OPS)
    for method, path in (("DELETE", "/admin/streams/one"), ("DELETE", "/console/session")):
        assert (await ask(admin, method, path, headers=with_cookie(value, **more)))[1] == "origin_not_allowed"
    assert view.stopped == []


async def test_login_by_form(admin: Client) -> None:
    """A form cannot log a browser in: neither its types of content nor its fields are those of the console."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        body = f'{{"token": "{OPS}"}}'.encode()
        got = await ask(admin, "POST", "/console/session", data=body, headers={"Content-Type": kind})
        assert got[:2] == (403, "origin_not_allowed")


async def test_token_from_anywhere(admin: Client) -> None:
    """With a token, which no browser adds by itself, the fields of pages make no difference."""
    for foreign in CROSS:
        assert (await ask(admin, "DELETE", "/admin/streams/one", headers=bearer(OPS) | foreign))[0] == 204


HOSTS = [
    ("localhost", 200),
    ("LOCALHOST:9090", 200),
    ("127.0.0.1:9090", 200),
    ("[::1]:9090", 200),
    ("10.1.2.3", 200),
    ("evil.example", 403),
    ("evil.example:9090", 403),
    ("127.0.0.1.evil.example", 403),
    ("localhost.evil.example", 403),
    ("127.0.0.1.nip.io:9090", 403),
]


@pytest.mark.parametrize(("host", "status"), HOSTS)
async def test_host_without_credential(aiohttp_client: AiohttpClient, view: Fake, host: str, status: int) -> None:
    """Where no credential is asked for, a page whose name was pointed here (DNS rebinding) gets nothing."""
    admin = await aiohttp_client(make_admin_app(view))
    assert (await ask(admin, "GET", "/admin/streams", headers={"Host": host}))[0] == status
    got = await ask(admin, "DELETE", "/admin/streams/one", headers={"Host": host, "Origin": f"http://{host}"})
    assert got[0] == (204 if status == 200 else 403)
    assert view.stopped == (["one"] if status == 200 else [])
    for path in ("/metrics", "/healthz", "/readyz"):
        assert (await ask(admin, "GET", path, headers={"Host": host}))[0] == 200


async def test_open_has_no_host_check(aiohttp_client: AiohttpClient, view: Fake) -> None:
    """With `admin: open` any Host is answered, and other origins' pages still not."""
    admin = await aiohttp_client(make_admin_app(view, Operators(AdminRules(checks_host=False), secret=SECRET)))
    host = {"Host": "forward-sse.internal"}
    assert (await ask(admin, "DELETE", "/admin/streams/one", headers=host))[0] == 204
    assert (await ask(admin, "DELETE", "/admin/streams/two", headers=host | {"Origin": "https://e.example"}))[0] == 403
    assert view.stopped == ["one"]


async def test_session_without_credential(aiohttp_client: AiohttpClient, lines: list[Any]) -> None:
    """Where none is needed, everybody operates, nobody has a name, and there is nothing to log in to."""
    admin = await aiohttp_client(make_admin_app(Fake()))
    async with admin.get("/console/session") as response:
        assert await response.json() == {"name": None, "role": "operate"}
    assert (await ask(admin, "POST", "/console/session", json={"token": OPS}))[:2] == (400, "invalid_request")
    assert (await ask(admin, "DELETE", "/admin/streams/one", headers=bearer("whatever")))[0] == 204
    assert (await ask(admin, "DELETE", "/console/session"))[0] == 204
    seen = [(line["action"], line["operator"], line["result"]) for line in lines]
    assert seen == [
        ("login", None, "invalid_request"),
        ("stop_stream", None, "ok"),
        ("logout", None, "ok"),
    ]


async def test_nobody_gets_in(aiohttp_client: AiohttpClient) -> None:
    """Where a credential is needed and none is configured, nobody gets in."""
    rules = AdminRules(needs_credential=True, checks_host=False)
    admin = await aiohttp_client(make_admin_app(Fake(), Operators(rules, secret=SECRET)))
    for headers in ({}, bearer(""), bearer("x"), with_cookie("x")):
        assert (await ask(admin, "GET", "/admin/streams", headers=headers))[0] == 401
    assert (await ask(admin, "GET", "/healthz"))[0] == 200


def test_anyone_where_nobody_may() -> None:
    """An operator without a name is made only where none is needed, and is valid only as long."""
    operators = Operators(AdminRules(), secret=SECRET)
    anyone = operators.anyone()
    assert anyone.is_valid()
    operators.rules = RULES
    assert not anyone.is_valid()
    with pytest.raises(RuntimeError):
        operators.anyone()


async def test_pages_of_others(aiohttp_client: AiohttpClient, operators: Operators) -> None:
    """The console's page needs no credential, all else does, also what is ever added below it."""
    seen: list[Operator] = []

    async def page(request: web.Request) -> web.Response:
        assert OPERATOR not in request
        return web.Response(body=b"page")

    async def events(request: web.Request) -> web.Response:
        seen.append(request[OPERATOR])
        return web.Response(body=b"events")

    app = web.Application(middlewares=[translate, access.admit])
    app[access.ACCESS] = access.Access(operators)
    app.router.add_get("/console", page)
    app.router.add_get("/console/{file:console\\.(?:js|css)}", page)
    app.router.add_get("/admin/events", events)
    app.router.add_route("*", "/{path:.*}", events)
    admin = await aiohttp_client(app)
    statuses = {}
    for path in ("/console", "/console/console.js", "/console/%73ession", "/console/x", "/console/../admin/events"):
        statuses[path] = (await ask(admin, "GET", path))[0]
    assert list(statuses.values()) == [200, 401, 401, 401, 401], statuses
    assert (await ask(admin, "POST", "/console"))[0] == 401
    assert (await ask(admin, "GET", "/admin/events", headers=bearer(LOOK)))[0] == 200
    (operator,) = seen
    assert (operator.name, operator.role, operator.may_operate, operator.is_valid()) == ("look", "view", False, True)
    operators.rules = AdminRules(RULES.tokens[:1], needs_credential=True, checks_host=False)
    assert not operator.is_valid()
