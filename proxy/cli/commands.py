"""The commands. Nothing else knows the command line.

Exit codes: 0 fine, 2 wrong use or configuration, 1 anything else. Rooms that only some commands need are imported when
those run, so that `check` and `token` start fast and do not depend on them.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import jwt

from proxy import __version__
from proxy.cli.doctor.command import doctor
from proxy.cli.keys import key
from proxy.cli.values import Value, end_wrong_use
from proxy.ledger import COLUMNS, Column
from proxy.settings import HMAC_SECRET_BYTES, Address, InvalidValue, Settings, read_duration
from proxy.settings import loading as config_file
from proxy.settings.loading import ConfigurationError
from proxy.settings.units import read_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.cli import usage as usage_report
    from proxy.ledger import Book

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _read_lifetime(value: str) -> float:
    """Read a duration of at least a second, in seconds."""
    seconds = read_duration(value)
    if seconds < 1:
        raise InvalidValue("must be at least 1s")
    return seconds


def _read_columns(value: str) -> tuple[Column, ...]:
    """Read names of columns, separated by commas."""
    known = {str(column): column for column in COLUMNS}
    names = list(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in names:
        if name not in known:
            raise InvalidValue(f"{name!r} is none of {', '.join(COLUMNS)}")
    return tuple(known[name] for name in names)


_ADDRESS = Value("host:port", read_address)
_LIFETIME = Value("duration", _read_lifetime)
_config_option = click.option(
    "--config",
    "config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The YAML file; default $FORWARD_SSE_CONFIG, else config/proxy.yaml.",
)


def _load(config: Path | None, overrides: dict[str, object] | None = None) -> Settings:
    try:
        return config_file.load(config_file.path_of(config, os.environ), os.environ, overrides)
    except ConfigurationError as error:
        end_wrong_use(str(error))


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="forward-sse")
def cli() -> None:
    """An authenticating reverse proxy for LLM event streams.

    Frontends POST to it with their user's token; it forwards to the vendor with the vendor's key and passes the event
    stream back byte for byte. One YAML file describes all of it.

    \b
    To try it without any key:   forward-sse demo
    To run it:                   forward-sse check && forward-sse serve

    Exit codes: 0 fine, 2 wrong use or configuration, 1 anything else.
    """  # noqa: D301 - \b is click's mark for "keep these lines"


@cli.command()
@_config_option
@click.option(
    "--listen", type=_ADDRESS, multiple=True, help="Where clients come in, over the file's `listen`; may be repeated."
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes, over the file's `workers`.")
def serve(config: Path | None, listen: tuple[Address, ...], workers: int | None) -> None:
    """Run the proxy.

    SIGTERM and SIGINT drain: running streams go on for up to `drain_timeout`. SIGHUP reads the file again; a faulty
    file changes nothing.

    \b
    Example: forward-sse serve --config config/proxy.yaml --listen 127.0.0.1:8080
    """  # noqa: D301 - \b is click's mark for "keep these lines"
    path = config_file.path_of(config, os.environ)
    overrides: dict[str, object] = {}
    if listen:
        overrides["listen"] = [str(address) for address in listen] if len(listen) > 1 else str(listen[0])
    if workers is not None:
        overrides["workers"] = workers

    def load() -> Settings:
        return config_file.load(path, os.environ, overrides)

    # Judged here first: a faulty file is told before anything of the server is even imported.
    _load(config, overrides)
    from proxy.server import run as server  # noqa: PLC0415 - only this command needs it

    try:
        sys.exit(server.run(load))
    except ConfigurationError as error:
        end_wrong_use(str(error))


@cli.command()
@_config_option
def check(config: Path | None) -> None:
    """Validate the file and print what would run.

    Every fault is printed at once to standard error, as FILE:LINE: key: what is wrong (did you mean ...?), and the exit
    code is 2. A ledger's file that cannot be used is a fault, too. Secrets are never printed; no connection is made.

    \b
    Example: forward-sse check --config config/proxy.yaml
    """  # noqa: D301 - \b is click's mark for "keep these lines"
    settings = _load(config)
    from proxy.cli import check_report  # noqa: PLC0415 - only this command needs it
    from proxy.settings.ledgers import check_ledger, check_ledger_url  # noqa: PLC0415 - the same

    ledger = settings.usage.ledger
    key = "spool" if ledger is not None and ledger.path is None else "ledger"
    try:
        check_ledger(settings)
        key = "ledger"
        check_ledger_url(settings)
    except OSError as exc:
        place = config_file.source_of(("usage", key), config_file.path_of(config, os.environ), os.environ)
        end_wrong_use(f"{place}: {exc.strerror or exc}")
    click.echo(check_report.report(settings))
    for warning in check_report.warnings(settings):
        click.echo(f"warning: {warning}", err=True)


@cli.command()
def schema() -> None:
    """Print the JSON Schema of the YAML file, for editors and other tools.

    \b
    Example: forward-sse schema > config/schema.json
    """  # noqa: D301 - \b is click's mark for "keep these lines"
    click.echo(json.dumps(config_file.json_schema(), indent=2, ensure_ascii=False))


@cli.command()
@click.option("--user", required=True, help="The user that the token names.")
@click.option("--plan", help="The user's plan; without it, the plan `default`.")
@click.option("--scope", help="Scopes, separated by spaces; default: those that the issuer requires.")
@click.option("--ttl", type=_LIFETIME, default="1h", show_default=True, help="How long the token is good.")
@_config_option
def token(user: str, plan: str | None, scope: str | None, ttl: float, config: Path | None) -> None:
    """Sign an access token with the first HMAC issuer of the file; for trials and scripts.

    \b
    Example: forward-sse token --user alice --ttl 15m
    """  # noqa: D301 - \b is click's mark for "keep these lines"
    settings = _load(config)
    issuer = next((one for one in settings.auth.jwt if one.secret is not None), None) if settings.auth else None
    if issuer is None or issuer.secret is None:
        end_wrong_use(
            "No issuer in the file has a `secret`: only an HMAC issuer's tokens can be signed here (see `auth.jwt`)."
        )
    if not user.strip():
        end_wrong_use("--user must not be empty.")
    if plan is not None and plan not in settings.plans:
        known = ", ".join(settings.plans)
        click.echo(f"warning: no plan of that name in the file, so `default` will hold; there are: {known}", err=True)
    now = int(time.time())
    scopes = scope if scope is not None else " ".join(issuer.required_scopes)
    claims: dict[str, object] = {"iss": issuer.issuer, "iat": now, "exp": now + int(ttl)}
    claims |= {"jti": secrets.token_urlsafe(16), issuer.audience_claim: issuer.audience[0], issuer.user_claim: user}
    if plan is not None:
        claims[issuer.plan_claim] = plan
    if scopes:
        claims["scope"] = scopes
    algorithm = next(name for name in issuer.algorithms if name in HMAC_SECRET_BYTES)
    click.echo(jwt.encode(claims, issuer.secret.get_secret_value(), algorithm=algorithm))


@cli.group(invoke_without_command=True)
@click.option("--since", type=_LIFETIME, default="7d", show_default=True, help="How far back.")
@click.option(
    "--by",
    type=Value("columns", _read_columns),
    default="user,model",
    show_default=True,
    help=f"What to sum by: {', '.join(COLUMNS)}.",
)
@click.option("--user", help="Sum up only what this user has used.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="How the sums are written.",
)
@_config_option
@click.pass_context
def usage(
    context: click.Context,
    since: float,
    by: tuple[Column, ...],
    user: str | None,
    format_: usage_report.Format,
    config: Path | None,
) -> None:
    """Sum up the ledger: requests, tokens and cost, by user and model.

    Days are those of UTC. Of the first one only what ended after the moment that --since names is counted. A model that
    is empty, or -, is that of requests that no model was run for.

    \b
    Example: forward-sse usage --since 30d --by day,model --format csv
    """  # noqa: D301 - \b is click's mark for "keep these lines"
    if context.invoked_subcommand is not None:
        return
    from proxy.cli import usage as room  # noqa: PLC0415 - only this command needs it

    since_ms = int((time.time() - since) * 1000)
    with _ledger_of(_load(config)) as book:
        click.echo(room.report(book, since_ms=since_ms, by=by, user=user, format_=format_))


@usage.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@_config_option
@click.pass_context
def usage_import(context: click.Context, files: tuple[str, ...], config: Path | None) -> None:
    """Complete the ledger from the log: one row for each line of an authenticated exchange that has none yet.

    FILE is the log as `log.format: json` writes it, plain or gzipped (.gz), or - for standard input. Lines that are
    known already change nothing, so any log may be imported any number of times.

    \b
    Example: forward-sse usage import /var/log/forward-sse.log
    """  # noqa: D301 - \b is click's mark for "keep these lines"
    from proxy.cli import usage as room  # noqa: PLC0415 - only this command needs it

    assert context.parent is not None
    settings = _load(config or context.parent.params["config"])
    with _ledger_of(settings) as book:
        for file in files:
            done = room.import_log(book, room.lines_of(file), retention_s=settings.usage.retention_s)
            click.echo(f"{'standard input' if file == '-' else file}: {done}")


@contextmanager
def _ledger_of(settings: Settings) -> Iterator[Book]:
    """The ledger, open while this is entered; what is wrong with it ends the command."""
    from proxy.settings.ledgers import open_book  # noqa: PLC0415 - only these commands need it

    try:
        book = open_book(settings)
        if book is None:
            end_wrong_use(
                "No ledger is kept: set `usage.ledger` in the file, for example to "
                "sqlite:////var/lib/forward-sse/ledger.db (docs/usage.md, The ledger)."
            )
        try:
            yield book
        finally:
            book.close()
    except OSError as exc:
        click.echo(exc.strerror or str(exc), err=True)
        sys.exit(1)


@cli.command()
@click.option("--listen", type=_ADDRESS, default="127.0.0.1:8090", show_default=True, help="Where it answers.")
def mock(listen: Address) -> None:
    """Run an offline vendor: OpenAI, DashScope, Anthropic and Gemini event streams, without a key or a network.

    Pace, size and faults are set by query parameters or X-Mock-* headers; its key is `mock-key`.

    \b
    Example: forward-sse mock --listen 127.0.0.1:8090
    """  # noqa: D301 - \b is click's mark for "keep these lines"
    from proxy.mock import server  # noqa: PLC0415 - only this command needs it

    sys.exit(server.run(listen.host, listen.port))


@cli.command()
@click.option("--listen", type=_ADDRESS, default="127.0.0.1:8080", show_default=True, help="Where the proxy answers.")
def demo(listen: Address) -> None:
    """Run the mock vendor and the proxy together, and print a curl line with a live token.

    \b
    Example: forward-sse demo
    """  # noqa: D301 - \b is click's mark for "keep these lines"
    from proxy.cli import demo as room  # noqa: PLC0415 - only this command needs it

    sys.exit(room.run(listen.host, listen.port))


cli.add_command(doctor)
cli.add_command(key)


def main() -> None:
    """Run the command of `sys.argv`; Ctrl-C and a closed pipe end it quietly."""
    cli(prog_name="forward-sse")
