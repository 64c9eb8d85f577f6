"""`forward-sse key`: makes API keys and operators' tokens."""

from __future__ import annotations

import hashlib
import json
import secrets

import click

from proxy.cli.values import end_wrong_use


@click.group()
def key() -> None:
    """API keys, for callers that have no issuer, and operators' tokens."""


@key.command("new")
@click.option("--user", help="Whose API key it is.")
@click.option("--plan", help="The user's plan; without it, the plan `default`.")
@click.option("--admin", metavar="NAME", help="Instead of a user's key: whose token for the admin listener it is.")
@click.option("--role", type=click.Choice(["view", "operate"]), help="What the operator may do; default: view.")
def key_new(user: str | None, plan: str | None, admin: str | None, role: str | None) -> None:
    """Make an API key or an operator's token: shown once, then only its SHA-256 is kept, in the line that is printed.

    The key goes to standard output's first line, the line to paste below `auth.api_keys` or `admin.tokens` to its last.

    \b
    Example: forward-sse key new --user ci --plan pro
             forward-sse key new --admin ops --role operate
    """  # noqa: D301 - \b is click's mark for "keep these lines"
    if (user is None) == (admin is None):
        end_wrong_use("Give --user or --admin.")
    if (user is None and plan is not None) or (admin is None and role is not None):
        end_wrong_use("--plan goes with --user, --role with --admin.")
    if admin is not None:
        key_, digest = _new_key("fssa_")
        where, line = "admin.tokens", f'{{name: {_yaml_name(admin)}, sha256: "{digest}", role: {role or "view"}}}'
    else:
        key_, digest = _new_key("fsse_")
        where = "auth.api_keys"
        line = f'{{user: {_yaml_name(user or "")}, sha256: "{digest}", plan: {_yaml_name(plan or "default")}}}'
    click.echo(key_)
    click.echo(f"It is not shown again. Below `{where}` of the file:", err=True)
    click.echo(f"- {line}")


def _new_key(prefix: str) -> tuple[str, str]:
    """A key and its SHA-256: 256 bits of the system's randomness, so that guessing cannot reverse a plain digest."""
    made = prefix + secrets.token_urlsafe(32)
    return made, hashlib.sha256(made.encode()).hexdigest()


def _yaml_name(text: str) -> str:
    """A name as a YAML scalar; ends the command where it is none."""
    if not text.strip() or not text.isprintable():
        end_wrong_use("Names must be one line of printable characters.")
    return _yaml_text(text)


def _yaml_text(text: str) -> str:
    """A YAML scalar: plain where nobody could misread it, else in double quotes (JSON strings are YAML)."""
    if text.isascii() and text.replace("-", "").replace("_", "").isalnum() and text[0].isalpha():
        return text if text.lower() not in {"true", "false", "null"} else json.dumps(text)
    # The file expands `${…}` in quoted text too.
    return json.dumps(text.replace("${", "$${"), ensure_ascii=False)
