"""The application: one route table, one middleware, and what is opened at start-up and closed at clean-up.

What an embedder imports, see `docs/embedding.md`. Only this module and the commands see the settings; everyone else
receives plain values.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiohttp import web

from proxy.exchange import LOG_FIELDS, PRINCIPAL, Exchanges
from proxy.exchange.attempts import Attempts
from proxy.exchange.body import expect_later
from proxy.exchange.running import RunningExchanges, settle_dead
from proxy.handlers import (
    SERVICE,
    Service,
    errors,
    forward,
    health,
    playground,
    preflight,
    streams,
    tickets,
    usage,
)
from proxy.handlers.admin_app import make_admin_app
from proxy.handlers.echo import echo
from proxy.model import Plan, Principal
from proxy.observability.logging import Redactor, log_limits_change
from proxy.observability.metrics import Metrics
from proxy.relay import Overruns
from proxy.routing import Turns
from proxy.settings import Settings
from proxy.settings.build import (
    build_plans,
    build_store,
    secrets_of,
    timer_tick_s,
)
from proxy.settings.build_telemetry import build_telemetry
from proxy.settings.build_ways import trust
from proxy.settings.fixed import changed_fixed, keep_fixed
from proxy.settings.ledgers import build_ledger, build_running_file
from proxy.settings.loading.otel import EXTRA
from proxy.settings.rotation import FileWatch
from proxy.settings.rules_builder import RulesBuilder
from proxy.tickets import Makers
from proxy.timers import DeadlineTimer
from proxy.upstream import Pool

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Mapping, Sequence

    from proxy.exchange.telemetry import Telemetry
    from proxy.ledger import Ledger
    from proxy.ledger.running import RunningFile
    from proxy.limits import Store
    from proxy.model import TlsFiles
    from proxy.observability.exporter import Exporter
    from proxy.observability.gen_ai import GenAiMetrics

__all__ = [
    "LOG_FIELDS",
    "PRINCIPAL",
    "SERVICE",
    "Plan",
    "Principal",
    "build_plans",
    "connection_options",
    "make_admin_app",
    "make_app",
    "reload",
]

SETTINGS: Final = web.AppKey("settings", Settings)
REDACTOR: Final = web.AppKey("redactor", Redactor)
METRICS: Final = web.AppKey("metrics", Metrics)
TIMERS: Final = web.AppKey("timers", DeadlineTimer)
POOL: Final = web.AppKey("pool", Pool)
STORE: Final[web.AppKey[Store]] = web.AppKey("store")
LEDGER: Final[web.AppKey[Ledger | None]] = web.AppKey("ledger")
DEAD: Final[web.AppKey[Sequence[bytes]]] = web.AppKey("dead")
RUNNING: Final[web.AppKey[RunningFile | None]] = web.AppKey("running")
TELEMETRY: Final[web.AppKey[Telemetry | None]] = web.AppKey("telemetry")

# How long what a refused client still sends is read away, so that it sees the answer instead of a reset.
LINGER_S: Final = 2.0


def make_app(settings: Settings, *, redactor: Redactor | None = None) -> web.Application:
    """Build the `aiohttp.web.Application` of the public listener; nothing is opened before it starts.

    It runs under any aiohttp runner (`web.run_app`, pytest-aiohttp's `aiohttp_client`, gunicorn's
    `aiohttp.GunicornUVLoopWebWorker`), one event loop for each application, and mounted in another application with
    `add_subapp`. Start-up opens the connection pool, the limits store, the ledger and the key sets without waiting for
    the network; clean-up closes them. It handles no signal, opens no listener and configures no logging; log lines go
    to structlog, as the embedder has set it up.

    Every request that reaches a handler is one `Exchange`: it writes one log line and releases its lease however it
    ends. Middlewares run before that, and may set `request[PRINCIPAL]`, an authenticated user, in place of whom no
    credential is looked for, and `request[LOG_FIELDS]`, further fields of the log line. Fields of responses, those of
    streams included, are added in `on_response_prepare`.

    The application brings the options of its connections (`connection_options`) with it: a client's disconnect cancels
    its handler, and bodies are not decompressed. Mounted in another application it cannot do so, because aiohttp takes
    them from the outermost one: there pass them as that one's `handler_args`. Without `handler_cancellation` a client
    that leaves before the vendor has answered is not noticed; with `auto_decompress` bodies would be forwarded wrongly.

    Args:
        settings: As `proxy.settings.load_settings` returns them. `listen`, `admin_listen`, `workers`, `log` and
            `drain_timeout` have no effect here: they belong to `forward-sse serve`.
        redactor: Removes the configured secrets from log lines; learns those of `settings`.

    Raises (at start-up):
        OSError: a file of authorities (`ca_file`) cannot be read, or the ledger's file cannot be used.
    """
    app = web.Application(
        middlewares=[errors.translate],
        client_max_size=settings.max_body_bytes,
        handler_args=connection_options(settings),
    )
    app[SETTINGS] = settings
    app[REDACTOR] = redactor or Redactor()
    app.cleanup_ctx.extend([metrics_ctx, telemetry_ctx, timers_ctx, pool_ctx, ledger_ctx, limits_store_ctx])
    app.cleanup_ctx.extend([service_ctx, files_ctx])
    app.on_response_prepare.append(errors.add_own_fields)
    app.add_routes(
        [
            *own(("GET", "/forward-sse", tickets.use), ("POST", "/forward-sse", forward.forward)),
            *own(("GET", "/healthz", health.alive), ("*", "/healthz", preflight.or_else(health.otherwise))),
            *own(("GET", "/readyz", health.ready), ("*", "/readyz", preflight.or_else(health.otherwise))),
            *own(
                ("GET", "/playground", playground.page),
                ("*", "/playground", preflight.or_else(playground.otherwise)),
            ),
            *own(
                ("GET", "/playground/upstreams", playground.upstreams),
                ("*", "/playground/upstreams", preflight.or_else(playground.otherwise)),
            ),
            *own(("*", "/forward-sse/echo", preflight.or_else(echo))),
            *own(("*", "/forward-sse/tickets", preflight.or_else(tickets.create))),
            *own(("*", "/forward-sse/usage", preflight.or_else(usage.own))),
            web.route("*", "/forward-sse/streams/{id:.*}", preflight.or_else(streams.stop)),
            web.route("OPTIONS", _ANY_PATH, preflight.preflight, name=_CATCH_ALL, expect_handler=expect_later),
            # The last one: every way to an upstream.
            web.route("*", _ANY_PATH, forward.forward, name=_CATCH_ALL, expect_handler=expect_later),
        ]
    )
    return app


_CATCH_ALL: Final = "upstreams"
# Any characters: where a path cannot be one, that is for the handler to say.
_ANY_PATH: Final = r"/{path:[\s\S]*}"


def own(*routes: tuple[str, str, errors.Handler]) -> list[web.RouteDef]:
    """The routes of one of the proxy's own paths: one slash at its end changes nothing. With GET comes HEAD.

    The methods of a path stand together: aiohttp's router asks a path once then.
    """
    return [
        web.route(method, path + slash, handler, expect_handler=expect_later)
        for slash in ("", "/")
        for method, path, handler in routes
    ]


def connection_options(settings: Settings) -> dict[str, Any]:
    """The options of aiohttp's connections, for `handler_args` of the outermost application, or for a runner.

    `handler_cancellation`: a client that leaves cancels its handler. `auto_decompress` is off: a request's body is
    forwarded as it came. `access_log` is off: each exchange writes its own log line.
    """
    keep_alive_s = settings.client_timeouts.keep_alive_s
    return {
        "handler_cancellation": True,
        "access_log": None,
        "auto_decompress": False,
        "max_line_size": settings.max_header_bytes,
        # Another figure, by which an error tells whether the request line or a field was too long.
        "max_field_size": settings.max_header_bytes + 1,
        "max_headers": 100,
        "lingering_time": LINGER_S,
        "keepalive_timeout": 0.0 if keep_alive_s is None else keep_alive_s,
    }


async def reload(app: web.Application, settings: Settings) -> list[str]:
    """Replace the rules at once; running exchanges keep theirs, users keep what they have used.

    Returns the keys that have changed and need a restart.

    Raises:
        OSError: an authority file cannot be read; nothing has changed.
    """
    service, builder = app[SERVICE], app[BUILDER]
    tls = trust(settings)
    old = service.rules.authenticator
    rules = builder.build(settings, builder.make_authenticator(settings, old))
    if rules.authenticator is not None:
        await rules.authenticator.open()
    app[REDACTOR].add_secrets(secrets_of(settings))
    service.rules = rules
    service.pool.tls = tls
    service.timers.set_tick(timer_tick_s(settings))
    if (ledger := app[LEDGER]) is not None:
        ledger.set_retention(settings.usage.retention_s)
    ignored = changed_fixed(settings, builder.settings)
    # What is in force, so that the next reload names them again.
    builder.settings = app[FILES].settings = keep_fixed(settings, builder.settings)
    if old is not None:
        await old.close()
    structlog.get_logger().info("configuration.reloaded", needs_restart=ignored)
    return ignored


# What is opened at start-up, in this order, and closed at clean-up in the reverse one.


async def metrics_ctx(app: web.Application) -> AsyncIterator[None]:
    """The worker's metrics."""
    app[METRICS] = Metrics()
    yield


async def telemetry_ctx(app: web.Application) -> AsyncIterator[None]:
    """Traces and metrics by OpenTelemetry, where they are on; closed after the service, whose last exchanges end.

    Raises:
        OSError: what sends them is not installed.
    """
    built = build_telemetry(app[SETTINGS], app[REDACTOR].redact)
    app[TELEMETRY] = None if built is None else built.telemetry
    if built is None:
        yield
        return
    exporter, metrics = built.exporter, built.metrics
    if metrics is not None:
        app[METRICS].registry.register(metrics)
    if exporter is None:
        yield
        return
    try:
        exporter.open()
    except ImportError as exc:
        raise OSError(f"telemetry {EXTRA}") from exc
    app[METRICS].registry.register(exporter)
    pushing = None
    if metrics is not None:
        pushing = asyncio.create_task(_push(metrics, exporter, built.metrics_every_s))
    yield
    if pushing is not None:
        pushing.cancel()
        await asyncio.wait([pushing])
    if metrics is not None:
        exporter.replace_metrics(metrics.read())
    # It waits for the collector, for at most two seconds.
    await asyncio.to_thread(exporter.close)


async def _push(metrics: GenAiMetrics, exporter: Exporter, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        exporter.replace_metrics(metrics.read())


async def timers_ctx(app: web.Application) -> AsyncIterator[None]:
    """The one timer of all deadlines."""
    timers = app[TIMERS] = DeadlineTimer(asyncio.get_running_loop(), tick_s=timer_tick_s(app[SETTINGS]))
    yield
    timers.close()


async def pool_ctx(app: web.Application) -> AsyncIterator[None]:
    """The connections to upstreams.

    Raises:
        OSError: an authority file cannot be read.
    """
    pool = app[POOL] = Pool(app[TIMERS], trust(app[SETTINGS]))
    app[METRICS].watch_connections(pool.counts)
    yield
    pool.close()
    await pool.resolver.close()


async def ledger_ctx(app: web.Application) -> AsyncIterator[None]:
    """The ledger, where one is kept; closed after the service, whose last exchanges still have rows.

    Raises:
        OSError: the ledger's file cannot be used, or was written by a later release.
    """
    ledger = app[LEDGER] = build_ledger(app[SETTINGS])
    app[DEAD] = []
    running = app[RUNNING] = build_running_file(app[SETTINGS])
    if ledger is not None and running is not None:
        await ledger.open()
        app[METRICS].watch_ledger(ledger.counts)
        try:
            # Before the limits store, which asks the ledger.
            app[DEAD] = await asyncio.to_thread(running.open)
        except OSError as exc:
            structlog.get_logger().warning("ledger.running_not_kept", reason=exc.strerror or str(exc))
    yield
    if ledger is not None:
        await ledger.close()


async def limits_store_ctx(app: web.Application) -> AsyncIterator[None]:
    """The limits store, which asks the ledger. One that cannot be reached is no error here."""
    settings, metrics = app[SETTINGS], app[METRICS]
    on_change = partial(log_limits_change, settings.limits.on_store_error)
    store = build_store(settings, app[LEDGER], on_failure=metrics.limits_store_failed, on_change=on_change)
    await store.open()
    metrics.watch_store(store.problem)
    app[STORE] = store
    yield
    await store.close()


async def service_ctx(app: web.Application) -> AsyncIterator[None]:
    """The rules, with the authenticator and the resolver behind them, and what the handlers share."""
    builder = app[BUILDER] = RulesBuilder(
        app[SETTINGS],
        store=app[STORE],
        resolver=app[POOL].resolver,
        now=app[TIMERS].now,
        metrics=app[METRICS],
    )
    rules = builder.build(app[SETTINGS], builder.make_authenticator(app[SETTINGS], None))
    if rules.authenticator is not None:
        await rules.authenticator.open()
    app[REDACTOR].add_secrets(secrets_of(app[SETTINGS]))
    timers, metrics, turns = app[TIMERS], app[METRICS], Turns()
    service = app[SERVICE] = Service(
        rules=rules,
        exchanges=Exchanges(
            now=timers.now,
            metrics=metrics,
            ledger=app[LEDGER],
            telemetry=app[TELEMETRY],
            redact=app[REDACTOR].redact,
        ),
        attempts=Attempts(pool=app[POOL], clocks=timers, turns=turns, metrics=metrics),
        pool=app[POOL],
        upstreams=builder.states,
        store=app[STORE],
        timers=timers,
        overruns=Overruns(timers),
        turns=turns,
        metrics=metrics,
        ticket_makers=Makers(),
        ledger=app[LEDGER],
        prefix=app.router[_CATCH_ALL].canonical.removesuffix("/{path}").encode(),
    )
    file = app[RUNNING]
    running = None if file is None else RunningExchanges(service.exchanges, file)
    if running is not None:
        running.start()
        plans = build_plans(app[SETTINGS])
        settle_dead(app[DEAD], plans=plans, prices=rules.prices, store=app[STORE], metrics=metrics)
    yield
    if running is not None:
        running.close()
    if service.rules.authenticator is not None:
        await service.rules.authenticator.close()


async def files_ctx(app: web.Application) -> AsyncIterator[None]:
    """The watch over secrets and authorities in files, which are read again when they change."""
    service, builder = app[SERVICE], app[BUILDER]

    def apply(settings: Settings, contexts: Mapping[TlsFiles, ssl.SSLContext]) -> None:
        """Serve new requests with what has changed; running exchanges and kept connections keep theirs."""
        app[REDACTOR].add_secrets(secrets_of(settings))
        for files, context in contexts.items():
            service.pool.tls.replace(files, context)
        builder.settings = settings
        service.rules = builder.build(settings, service.rules.authenticator, is_reload=False)

    files = app[FILES] = FileWatch(app[SETTINGS], apply)
    app[METRICS].watch_secrets(lambda: files.faulty)
    watching = asyncio.create_task(files.run())
    yield
    watching.cancel()
    await asyncio.wait([watching])


BUILDER: Final = web.AppKey("builder", RulesBuilder)
FILES: Final = web.AppKey("files", FileWatch)
