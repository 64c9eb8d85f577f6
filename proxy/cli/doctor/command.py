"""`forward-sse doctor`: its options, its output, its exit code."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from proxy.cli.values import Value
from proxy.settings import InvalidValue, read_duration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.cli.doctor.verdict import Verdict

# An echo lasts five minutes at most.
_MAX_SILENCE_S: Final = 299.0


def _read_silence(value: str) -> float | None:
    """Read a duration, or `off` as None."""
    if value == "off":
        return None
    seconds = read_duration(value)
    if not 0 < seconds <= _MAX_SILENCE_S:
        raise InvalidValue(f"must be at most {_MAX_SILENCE_S:g}s")
    return seconds


@click.command()
@click.argument("url", required=False)
@click.option("--token", envvar="DOCTOR_TOKEN", help="A user's token; also $DOCTOR_TOKEN.")
@click.option("--upstream", help="Also check this upstream: its vendor is asked for its models.")
@click.option("--origin", help="Also check CORS, as a page of this origin meets it: https://app.example.com.")
@click.option(
    "--silence",
    "silence_s",
    type=Value("duration", _read_silence),
    default="90s",
    show_default=True,
    help="A silence to bear, or off.",
)
@click.option("--local", "is_local", is_flag=True, help="Check this machine: configuration, vendors, keys, store.")
@click.option("--paid", is_flag=True, help="With --local: also have each vendor generate one token.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document in the end.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --local: the YAML file; default $FORWARD_SSE_CONFIG, else config/proxy.yaml.",
)
@click.pass_context
def doctor(
    context: click.Context,
    *,
    url: str | None,
    token: str | None,
    upstream: str | None,
    origin: str | None,
    silence_s: float | None,
    is_local: bool,
    paid: bool,
    as_json: bool,
    config: Path | None,
) -> None:
    """Find out why a stream does not arrive as it was sent.

    With the public URL, from anywhere: name, TLS, buffering, compression, caching, disconnects, silences, bodies, CORS,
    token, clock. Without --token only what needs none; with it, some twelve requests are charged to its user. With
    --local, on the proxy's machine: what the proxy needs. One verdict a line, `ok`, `warn` or `fail`, with what to
    change; exit code 1 where one fails. docs/troubleshooting.md explains each.

    \b
    Example: forward-sse doctor https://llm.example.com --token "$LLM_TOKEN" --origin https://app.example.com
             forward-sse doctor --local --config config/proxy.yaml
    """  # noqa: D301 - \b is click's mark for "keep these lines"
    if is_local == (url is not None):
        raise click.UsageError("Give a URL, or --local.")
    if is_local:
        is_given = context.get_parameter_source("token") is ParameterSource.COMMANDLINE
        if is_given or upstream is not None or origin is not None:
            raise click.UsageError("--token, --upstream and --origin go with a URL.")
        from proxy.cli.doctor import local  # noqa: PLC0415 - only this way needs it

        verdicts = local.examine(config, is_paid=paid)
    else:
        if paid or config is not None:
            raise click.UsageError("--paid and --config go with --local.")
        from proxy.cli.doctor import remote, way  # noqa: PLC0415 - only this way needs them

        assert url is not None
        try:
            way.check_address(url)
            way.check_field("--token", token)
            way.check_field("--origin", origin)
            way.check_name(upstream)
        except ValueError as wrong:
            raise click.UsageError(f"{wrong}.") from None
        verdicts = remote.examine(
            remote.Examination(url, token=token, upstream=upstream, origin=origin, silence_s=silence_s)
        )
    sys.exit(asyncio.run(_print(verdicts, as_json=as_json)))


async def _print(verdicts: AsyncIterator[Verdict], *, as_json: bool) -> int:
    from proxy.cli.doctor import verdict as report  # noqa: PLC0415 - the command's help needs none of it

    given: list[Verdict] = []
    async for verdict in verdicts:
        given.append(verdict)
        if not as_json:
            click.echo(report.line(verdict))
    if as_json:
        click.echo(report.as_json(given))
    return report.exit_code(given)
