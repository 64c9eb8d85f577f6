"""What to change for each fault of each check; docs/troubleshooting.md has every text, a test keeps the two equal.

A text is followed by lines for known products where `KINDS` names a kind of `hops.LINES` for it.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.cli.doctor.hops import Kind

CHANGES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "name": {
            "unknown": "Correct the address, or create the DNS record of its host.",
            "unreachable": "Open the port in the firewall or security group, or start what listens on it.",
            "partly": "Remove the DNS records of the addresses that do not answer, or have them answer.",
        },
        "tls": {
            "plain": "Terminate TLS in front of the proxy, or set `tls` in its file, and use https://.",
            "untrusted": "Serve a certificate of a public authority for this host, with its intermediates.",
            "expired": "Renew the certificate, and have the server load it.",
            "expires": "Renew the certificate in time, and check why that is not automatic.",
            "handshake": "Let the server speak TLS 1.2 or 1.3 on this port.",
        },
        "http": {
            "old": "Have the hop answer in HTTP/1.1: HTTP/1.0 has no chunks, so streams are held or cut.",
        },
        "proxy": {
            "other": "Point the address at the proxy: its path must arrive as /forward-sse/….",
            "unanswered": "Look at the hop nearest to the proxy: it cannot reach it, or gives up.",
            "unready": "Look at the proxy's log, and run `forward-sse doctor --local` on its machine.",
        },
        "clock": {
            "differs": "Synchronise both clocks with NTP (chrony, systemd-timesyncd).",
            "unknown": "Compare the clock with another machine's.",
        },
        "token": {
            "refused": "Get a new token; its issuer, audience and algorithm must be those of `auth.jwt`.",
            "removed": "Have the hop pass the header `Authorization` on to the proxy.",
            "forbidden": "Give the token the scope that `required_scopes` of its issuer names.",
            "limited": "Wait, or raise `requests` or `concurrent_streams` of the user's plan.",
            "unavailable": "Run `forward-sse doctor --local` on the proxy's machine.",
            "open": "Set `auth` in the proxy's file: whoever reaches it spends the vendors' keys.",
        },
        "upstream": {
            "unknown": "Use the name of an upstream of the proxy's file.",
            "not_allowed": "Add the upstream to `upstreams` of the user's plan.",
            "credentials": "Replace the vendor's key (`api_key`): the vendor refuses it.",
            "unreachable": "Run `forward-sse doctor --local` on the proxy's machine.",
            "unjudged": "Send a request of your own: this upstream has nothing that could be asked for free.",
        },
        "stream": {
            "buffering": "Turn response buffering off in the hop.",
            "whole": (
                "A hop reads the whole answer before it passes it on: have it pass on what arrives (an application "
                "of your own must not await the whole body)."
            ),
            "broken": "Look at the log of the hop nearest to the client, and at the proxy's line of this id.",
            "changed": "Let the hop pass the body on unchanged.",
            "limited": "Run it again when the user's limits have room, or with a user of a wider plan.",
        },
        "compression": {
            "holds": "Turn compression off for text/event-stream: it is what holds the events.",
            "compresses": (
                "Turn compression off for text/event-stream: it ignores `no-transform`, costs CPU, and may hold "
                "events in other versions."
            ),
        },
        "caching": {
            "repeats": "Turn caching off: users are given the answers of others.",
        },
        "inspection": {
            "holds": (
                "A hop holds each request until its whole body is there (request buffering, or a WAF that inspects "
                "bodies): large prompts arrive later, and bodies beyond its limit are refused."
            ),
            "unanswered": "Look at the hop's log: it did not pass on a request that it had whole.",
        },
        "body": {
            "hop": "Raise the hop's limit to that of the proxy (`max_body`).",
            "proxy": "Raise `max_body` in the proxy's file, if users send larger requests.",
            "unanswered": "Look at the hop's log, and at its limits of body size and time.",
        },
        "leaving": {
            "unnoticed": (
                "Have the hop close its connection to the proxy when its client leaves: until then the vendor's "
                "request goes on, and is paid."
            ),
            "late": "Have the hop tell the proxy at once when its client leaves.",
            "limited": "Run it again when the user's limits have room, or with a user of a wider plan.",
            "elsewhere": (
                "Run the doctor against one node: its questions reach another node than its streams, so that this "
                "cannot be told."
            ),
        },
        "silence": {
            "cut": (
                "Set `heartbeat: 15s` (and `early_heartbeat: true`) in the proxy's file, or raise the hop's timeout."
            ),
        },
        "cors": {
            "origin": "Add the page's origin to `cors.origins` in the proxy's file.",
            "twice": "Let only the proxy add CORS fields: remove those that the hop adds.",
            "preflight": "Let the hop pass OPTIONS on to the proxy, without asking for a credential.",
            "fields": "Let the hop pass the CORS fields on unchanged; the proxy grants what is needed.",
        },
        "configuration": {
            "faulty": "Correct the file; `forward-sse check` says the same.",
            "doubtful": "Decide whether it is meant; `forward-sse check` says the same.",
        },
        "vendor": {
            "dns": "Correct the host in the upstream's `url`, or let this machine's resolver find it.",
            "unreachable": "Let this machine connect to it: firewall, route, or a wrong port in `url`.",
            "tls": "Set the upstream's `ca_file` to the authority of its certificate, or correct its host.",
            "key": "Replace the key: the vendor refuses it.",
            "limited": "Raise the quota at the vendor, or add a key (`api_keys`).",
            "answer": "Look at the vendor's status page, and at the upstream's `url` and `path`.",
            "unjudged": "Send a request with this upstream: nothing free tells whether its key is good.",
            "model": "Name a model without a wildcard in the upstream's `models`, so that one can be asked.",
        },
        "keys": {
            "unloaded": "Let this machine fetch the issuer's key set; `jwks_url` and `ca_file` must be right.",
        },
        "store": {
            "away": "Start the limits server, or correct `limits.store` and its password.",
            "policy": "Set `maxmemory-policy noeviction` on the limits server: others lose what was counted.",
            "slow": "Put the limits server into the proxy's network: a request waits for it at most 100 ms.",
            "old": "Upgrade the limits server to Redis 7 or Valkey: older ones are not tested.",
        },
        "ledger": {
            "unusable": (
                "Create the directory of `usage.ledger` or `usage.spool` for the proxy's user; correct the URL."
            ),
        },
        "telemetry": {
            "refused": "Correct the path of `telemetry.otlp`, or the headers; the collector's log has the reason.",
            "unreachable": "Start the collector, or correct `telemetry.otlp`: port 4318, not 4317, which is gRPC.",
            "tls": "Set `OTEL_EXPORTER_OTLP_CERTIFICATE` to the authority of the collector's certificate.",
            "unsent": "Correct the files of `OTEL_EXPORTER_OTLP_…`, or the environment's `HTTPS_PROXY`.",
            "not_installed": "Install it: `pip install 'forward-sse[otel]'`.",
        },
        "descriptors": {
            "few": "Raise `ulimit -n` (systemd: `LimitNOFILE`): each stream takes two.",
        },
        "port": {
            "taken": "Stop what listens there, or choose another port.",
            "forbidden": "Choose a port above 1023, or give the process the capability `CAP_NET_BIND_SERVICE`.",
            "absent": "Use an address of this machine, or 0.0.0.0.",
        },
        "uvloop": {
            "missing": "Install uvloop: without it each event costs more CPU.",
        },
    }
)
# By check and fault.
KINDS: Final[Mapping[tuple[str, str], Kind]] = MappingProxyType(
    {
        ("stream", "buffering"): "buffering",
        ("stream", "whole"): "answer_inspection",
        ("compression", "holds"): "compression",
        ("compression", "compresses"): "compression",
        ("caching", "repeats"): "caching",
        ("inspection", "holds"): "inspection",
        ("body", "hop"): "body",
        ("body", "unanswered"): "body",
        ("leaving", "unnoticed"): "leaving",
        ("leaving", "late"): "leaving",
        ("silence", "cut"): "silence",
    }
)
