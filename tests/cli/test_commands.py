"""The commands, run as an operator runs them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jwt
import pytest
import yaml
from click.testing import CliRunner, Result

import proxy
from proxy.cli.commands import cli
from proxy.settings.loading import json_schema, load

ROOT = Path(__file__).parents[2]
SECRET = "do-not-show-" + "x" * 60
KEYS = {"OPENAI_API_KEY": "sk-do-not-show", "DASHSCOPE_API_KEY": "sk-do-not-show"}
FILE = """\
auth:
  jwt:
    - {issuer: other, audience: llm, algorithms: [RS256], jwks_url: "https://h/jwks"}
    - {issuer: dev, audience: [llm, web], algorithms: [HS512, HS256], secret: "${SECRET}", user_claim: email,
       plan_claim: tier, required_scopes: [llm.stream]}
plans: {pro: {}}
upstreams:
  openai: {url: "https://api.openai.com", dialect: openai, api_keys: [sk-do-not-show, sk-do-not-show-2]}
  any: {url: "http://vendor.example", dialect: raw, path: /x, api_key: client, headers: {X-Key: sk-do-not-show}}
default_upstream: openai
"""


def run(*arguments: str, environ: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with this environment and no other."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FORWARD_SSE_") and not name.lower().endswith("_proxy")
    }
    return subprocess.run(
        [sys.executable, "-m", "proxy", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        env=inherited | {"PYTHONPATH": str(ROOT)} | (environ or {}),
    )


def call(*arguments: str) -> Result:
    """Run the command in this process: what needs no process of its own is tested faster so."""
    return CliRunner().invoke(cli, arguments, prog_name="forward-sse")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.yaml"
    path.write_text(FILE)
    return path


def test_check_shipped_file() -> None:
    """`config/proxy.yaml` is the default and is sound as it stands once the two vendor keys are set."""
    done = run("check", environ=KEYS)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert "0.0.0.0:8080" in done.stdout


def test_check_sound_file(file: Path) -> None:
    """`check` shows what would run, warns of what deserves a look, and shows no secret."""
    done = run("check", "--config", str(file), environ={"SECRET": SECRET})
    assert done.returncode == 0
    for words in (
        "own (2 keys)",
        "X-Upstream-Authorization",
        "an HMAC secret",
        "keys from https://h/jwks",
        "60/10s requests, 8 streams",
        "openai (default)",
        "/v1/chat/completions",
        "envelope       off",
    ):
        assert words in done.stdout
    assert "warning: upstreams.any: its key and every prompt travel unencrypted" in done.stderr
    assert "do-not-show" not in done.stdout + done.stderr


def test_check_tokens_and_budgets(file: Path) -> None:
    """`check` shows what each plan limits and where a budget's days begin, and warns of what has no effect."""
    file.write_text(
        "auth: none\n"
        "plans:\n"
        "  default: {tokens: [100000/1m], budgets: [{usd: 0.5, every: month}, {tokens: 2000000, every: day}]}\n"
        "  hard: {budgets: [{usd: 5, every: week}], budget_overrun: cut}\n"
        "  idle: {budget_overrun: cut}\n"
        "prices: {gtp-4o: {input: 1, output: 2}, gpt-4o: {input: 1, output: 2}}\n"
        "usage: {budget_timezone: Asia/Shanghai, reserve_output: 4096}\n"
        "upstreams: {one: {url: https://a.example, dialect: openai, api_key: k, models: [gpt-4o-2024*]}}\n"
    )
    done = call("check", "--config", str(file))
    assert done.exit_code == 0
    for words in (
        "every upstream, 100000/1m tokens, 0.5 USD a month, 2000000 tokens a day\n",
        "5 USD a week, streams are cut that use up a budget\n",
        "reserve        at most 4096 tokens of output a request\n",
        "budgets        days begin in Asia/Shanghai\n",
    ):
        assert words in done.stdout
    assert "warning: plans.idle.budget_overrun: cut changes nothing: the plan has no budgets\n" in done.stderr
    assert "warning: prices.gtp-4o: matches no upstream's models: used only" in done.stderr
    assert "prices.gpt-4o:" not in done.stderr


def test_check_paths(file: Path) -> None:
    """`check` shows where POST /forward-sse goes and what is open, and warns of what was hardly meant."""
    file.write_text(
        "auth: none\nupstreams:\n"
        "  one: {url: https://a.example/api/v1, dialect: dashscope, api_key: k, allow_paths: all}\n"
        "  two: {url: https://b.example, dialect: gemini, api_key: k, path: '/v1/models/g:streamGenerateContent'}\n"
        "  six: {url: https://c.example, dialect: openai, api_key: client, path: '/x?version=1', allow_paths: all}\n"
    )
    done = run("check", "--config", str(file))
    assert done.returncode == 0
    for words in (
        "path       /services/aigc/text-generation/generation",
        "path       /x?version=1",
        "paths      all",
        "paths      the dialect's own",
    ):
        assert words in done.stdout
    assert "warning: upstreams.one.allow_paths: all" in done.stderr
    assert "warning: upstreams.two.path: Gemini streams events only where it ends in ?alt=sse" in done.stderr
    assert "upstreams.six" not in done.stderr


def test_check_without_auth(file: Path) -> None:
    """`auth: none` is accepted, and warned of."""
    done = run("check", "--config", str(file), environ={"SECRET": SECRET, "FORWARD_SSE_AUTH": "none"})
    assert done.returncode == 0
    assert "warning: auth: none" in done.stderr


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_check_egress_proxy_in_the_environment(file: Path, name: str) -> None:
    """`check` prints each upstream's way, the variable that names the proxy, and no password."""
    environ = {"SECRET": SECRET, name: "http://user:do-not-show@proxy.example:3128", "NO_PROXY": "vendor.example"}
    done = run("check", "--config", str(file), environ=environ)
    assert done.returncode == 0
    words = f"through http://proxy.example:3128 ({name})"
    assert done.stdout.count(f"way        {words}") == done.stdout.count("way        direct") == 1
    assert f"keys from https://h/jwks, audience llm, {words}" in done.stdout
    assert "do-not-show" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "environ", [{"HTTPS_PROXY": ""}, {"HTTP_PROXY": "p:1"}, {"HTTPS_PROXY": "p:1", "no_proxy": "*"}]
)
def test_check_no_egress_proxy(file: Path, environ: dict[str, str]) -> None:
    """Empty variables, `HTTP_PROXY` in upper case, and hosts of `NO_PROXY` are direct."""
    done = run("check", "--config", str(file), environ={"SECRET": SECRET, **environ})
    assert "way        direct" in done.stdout
    assert "through" not in done.stdout


def test_check_trusted_proxies(file: Path) -> None:
    """`check` says which proxies are believed, how many failures an address may have, and warns of all."""
    file.write_text(file.read_text() + "trusted_proxies: [10.0.0.0/8, '::/0']\nauth_failures: 20/1m\n")
    done = run("check", "--config", str(file), environ={"SECRET": SECRET})
    assert "trusted        10.0.0.0/8, ::/0\n" in done.stdout
    assert "auth_failures  20/1m by address\n" in done.stdout
    assert "warning: trusted_proxies: every client is a trusted proxy" in done.stderr


def test_check_targets_and_egress_proxy(file: Path) -> None:
    """`check` says which envelope targets go directly although there is a proxy, and which are not checked."""
    file.write_text(
        file.read_text()
        + "egress_proxy: socks5://u:do-not-show@p.example:1\nenvelope:\n  targets:\n"
        + "    - {url: 'https://a.example/x'}\n    - {url: 'https://b.example/x', allow_unpinned: true}\n"
    )
    done = run("check", "--config", str(file), environ={"SECRET": SECRET})
    words = "goes out directly, not through socks5://p.example:1 (egress_proxy); see allow_unpinned"
    assert f"warning: envelope.targets[0]: {words}" in done.stderr
    assert "warning: envelope.targets[1]: socks5://p.example:1 looks up its name" in done.stderr
    assert "do-not-show" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "value", ["https://user:do-not-show@proxy.example", "socks4://p", "http://user:pass/word@p", "http://user:\udcff@p"]
)
def test_check_unusable_egress_proxy(file: Path, value: str) -> None:
    """A variable that names a proxy which cannot be used is a fault that names it, and not its value."""
    environ = {"SECRET": SECRET, "ALL_PROXY": value}
    done = run("check", "--config", str(file), environ=environ)
    assert done.returncode == 2
    assert done.stderr.startswith("ALL_PROXY: ")
    assert "egress_proxy" in done.stderr
    assert "do-not-show" not in done.stderr
    assert "word" not in done.stderr.replace("password", "")
    file.write_text(file.read_text() + "egress_proxy: none\n")
    assert run("check", "--config", str(file), environ=environ).returncode == 0


def test_check_faulty_file(file: Path) -> None:
    """`check` prints every fault as FILE:LINE: key: what is wrong, and exits 2."""
    file.write_text(FILE + "lissten: h:1\n")
    done = run("check", environ={"FORWARD_SSE_CONFIG": str(file)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"{file}:4: auth.jwt[1].secret: the environment variable SECRET is not set",
        f"{file}:11: lissten: unknown key (did you mean listen?)",
    ]


def test_check_issuer_faults(file: Path) -> None:
    """A file of authorities that cannot be used and an issuer that no token has are told with their lines."""
    authorities = file.with_name("ca.pem")
    authorities.write_text("not a certificate")
    tenant = "https://login.microsoftonline.com/{tenantid}/v2.0"
    file.write_text(
        FILE.replace("- {issuer: other,", f'- {{issuer: "{tenant}", ca_file: {authorities},').replace(
            "${SECRET}", SECRET
        )
    )
    done = run("check", "--config", str(file))
    unusable = "cannot be used as a file of authorities: it must be readable and hold certificates in PEM"
    placeholder = (
        "has a placeholder, but a token has its own tenant's id in its place: write that id, such as "
        "https://login.microsoftonline.com/<tenant id>/v2.0, an entry a tenant"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"{file}:3: auth.jwt[0].ca_file: {unusable}",
        f"{file}:3: auth.jwt[0].issuer: {placeholder}",
    ]


def test_check_key_set_by_http(file: Path) -> None:
    """A key set that comes unencrypted is allowed where it says so, and warned of."""
    file.write_text(FILE.replace('"https://h/jwks"', '"http://h/jwks", allow_http: true'))
    done = run("check", "--config", str(file), environ={"SECRET": SECRET})
    assert done.returncode == 0
    assert "warning: auth.jwt: other: its keys come unencrypted (http://)" in done.stderr


def test_check_missing_file(tmp_path: Path) -> None:
    """Without a file there is a sentence and exit 2, no traceback."""
    done = run("check", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "config/proxy.yaml: cannot be read: No such file or directory\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("check", "--nonsense"),
        ("check", "--config", "/"),
        ("serve", "--listen", "8080"),
        ("serve", "--workers", "0"),
        ("token",),
        ("token", "--user", "a", "--ttl", "1"),
        ("token", "--user", "a", "--ttl", "0s"),
        ("key", "new"),
        ("key", "new", "--user", "a\nb"),
        ("key", "new", "--user", "a", "--admin", "b"),
        ("key", "new", "--user", "a", "--role", "view"),
        ("key", "new", "--admin", "a", "--plan", "pro"),
        ("key", "new", "--admin", "a", "--role", "all"),
        ("key", "new", "--admin", ""),
        ("mock", "--listen", "x"),
        ("demo", "--listen", "x"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...]) -> None:
    """InvalidValue use exits 2 with a sentence, no traceback."""
    done = call(*arguments)
    assert (done.exit_code, type(done.exception)) == (2, SystemExit)
    assert done.stderr


def test_wrong_use_of_the_program() -> None:
    """The program's own exit code is 2 for wrong use, with a sentence."""
    done = run("check", "--confg", "x")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "--config" in done.stderr


@pytest.mark.parametrize("command", ["serve", "check", "schema", "token", "key", "usage", "mock", "demo"])
def test_help(command: str) -> None:
    """Every command explains itself."""
    done = call(command, "--help")
    assert done.exit_code == 0
    assert "Usage: forward-sse" in done.stdout


def test_version() -> None:
    """`--version` is the package's."""
    assert run("--version").stdout.split() == ["forward-sse,", "version", proxy.__version__]


def test_schema() -> None:
    """`schema` prints the schema of the file, byte for byte the committed one."""
    done = run("schema")
    assert json.loads(done.stdout) == json_schema()
    assert done.stdout == (ROOT / "config/schema.json").read_text()


def test_schema_into_a_closed_pipe() -> None:
    """A reader that leaves early ends the command quietly."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "proxy", "schema"],
            check=False,
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            timeout=60,
        )
    assert done.stderr == ""


def test_token(file: Path) -> None:
    """The token is signed by the first HMAC issuer and has what its entry asks for."""
    before = int(time.time())
    done = run(
        "token", "--user", "alice", "--plan", "pro", "--ttl", "15m", "--config", str(file), environ={"SECRET": SECRET}
    )
    assert done.returncode == 0
    claims = jwt.decode(done.stdout.strip(), SECRET, algorithms=["HS512"], audience="llm", issuer="dev")
    assert (claims["email"], claims["tier"], claims["scope"]) == ("alice", "pro", "llm.stream")
    assert claims["exp"] - claims["iat"] == 900
    assert before <= claims["iat"] <= time.time()
    assert claims["jti"]


def test_token_of_an_issuer_with_another_audience_claim(file: Path) -> None:
    """The audience stands in the claim that the issuer's entry names, and a plan under the very name of its claim."""
    file.write_text(FILE.replace("plan_claim: tier", "plan_claim: app.plan, audience_claim: azp"))
    done = run("token", "--user", "a", "--plan", "pro", "--config", str(file), environ={"SECRET": SECRET})
    claims = jwt.decode(done.stdout.strip(), SECRET, algorithms=["HS512"])
    assert (claims["azp"], claims.get("aud"), claims["app.plan"]) == ("llm", None, "pro")
    shown = run("check", "--config", str(file), environ={"SECRET": SECRET}).stdout
    assert "audience llm, web in azp, scopes llm.stream" in shown


def test_token_of_another_plan(file: Path) -> None:
    """A scope is taken as given; a plan that the file does not have is signed with a warning."""
    arguments = ("token", "--user", "a", "--plan", "prp", "--scope", "x y", "--config", str(file))
    done = run(*arguments, environ={"SECRET": SECRET})
    claims = jwt.decode(done.stdout.strip(), SECRET, algorithms=["HS512"], audience="llm")
    assert (claims["scope"], claims["tier"]) == ("x y", "prp")
    assert "no plan of that name" in done.stderr


def test_token_without_a_secret() -> None:
    """Without an HMAC issuer nothing can be signed: exit 2 with a sentence."""
    done = run("token", "--user", "alice", environ=KEYS)
    assert (done.returncode, done.stdout) == (2, "")
    assert "No issuer in the file has a `secret`" in done.stderr


@pytest.mark.parametrize(("name", "role"), [("ops", "operate"), ("a: b", "view"), ("müller", None)])
def test_key_new_for_an_operator(name: str, role: str | None, tmp_path: Path) -> None:
    """The printed line, pasted into the file, is that operator with the digest of the token that was shown."""
    done = call("key", "new", "--admin", name, *(() if role is None else ("--role", role)))
    shown, line = done.stdout.splitlines()
    path = tmp_path / "proxy.yaml"
    path.write_text(
        f"auth: none\nadmin:\n  tokens:\n    {line}\n"
        "upstreams: {a: {url: 'https://h', dialect: openai, api_key: none}}\n"
    )
    admin = load(path, {}).admin
    assert admin is not None
    (entry,) = admin.tokens
    digest = hashlib.sha256(shown.encode()).hexdigest()
    assert (entry.name, entry.role, entry.sha256) == (name, role or "view", digest)
    assert (len(shown), shown[:5]) == (48, "fssa_")
    assert "admin.tokens" in done.stderr


@pytest.mark.parametrize("user", ["ci", "true", "a: b", 'quote" and # hash', "müller", "${HOME}", "- x", "null", "1"])
def test_key_new(user: str, tmp_path: Path) -> None:
    """The printed line, pasted into the file, is that user with the digest of the key that was shown."""
    done = call("key", "new", "--user", user, "--plan", "pro")
    shown, line = done.stdout.splitlines()
    assert done.exit_code == 0
    assert shown.startswith("fsse_")
    assert len(shown) == len("fsse_") + 43
    path = tmp_path / "proxy.yaml"
    path.write_text(
        f"auth:\n  api_keys:\n    {line}\nplans: {{pro: {{}}}}\n"
        "upstreams: {a: {url: 'https://h', dialect: openai, api_key: none}}\n"
    )
    auth = load(path, {}).auth
    assert auth is not None
    (entry,) = auth.api_keys
    assert (entry.user, entry.plan, entry.sha256) == (user, "pro", hashlib.sha256(shown.encode()).hexdigest())
    assert shown not in line
    assert isinstance(yaml.safe_load(line), list)


def test_serve_faulty_file(file: Path) -> None:
    """A configuration that cannot be used ends `serve` at once: the faults on standard error, exit 2."""
    done = run("serve", "--workers", "2", "--config", str(file), environ={"SECRET": SECRET})
    assert done.returncode == 2
    assert done.stderr.startswith("--workers: workers: needs a shared limits.store")
