"""nginx that does the proxy's work: each request's token is verified by a service, and the user's limits hold."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, ClassVar

import jwt

from benchmarks.peers import nginx
from benchmarks.peers.peer import REPOSITORY, Started, library, secret
from benchmarks.processes import free_port

if TYPE_CHECKING:
    from benchmarks.peers.peer import Site

_START_S = 20.0
_TOKEN_S = 24 * 3600

# The limits are high enough to refuse nobody. nginx counts before it asks who it is, so the token is the key.
_HTTP = """
    upstream judge {{ server 127.0.0.1:{judge}; keepalive 64; keepalive_requests 1000000000; }}
    limit_req_zone $http_authorization zone=rate:10m rate=1000000r/s;
    limit_conn_zone $http_authorization zone=streams:10m;
"""
_CHECKS = """
            auth_request /judge;
            limit_req zone=rate burst=1000000 nodelay;
            limit_conn streams 65535;
"""
_LOCATIONS = """
        location = /judge {
            internal;
            proxy_pass http://judge/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
        }
"""


class NginxAuth(nginx.Nginx):
    """nginx with `auth_request` to a PyJWT service, `limit_req` and `limit_conn`; both processes are its cost."""

    name: ClassVar[str] = "nginx_auth"
    title: ClassVar[str] = "nginx + auth_request"
    note: ClassVar[str] = "auth_request to aiohttp + PyJWT, limit_req, limit_conn; the cost of both processes"

    def version(self) -> str:
        """nginx's, and the service's."""
        return f"{super().version()}, {library('aiohttp')}, {library('pyjwt')}"

    def start(self, site: Site) -> Started:
        """Run the service, then nginx before it."""
        key, judge_port = secret(), free_port()
        judge = site.start(
            "judge",
            [sys.executable, "-m", "benchmarks.peers.judge", str(judge_port)],
            {"BENCH_JUDGE_SECRET": key, "PYTHONPATH": str(REPOSITORY)},
        )
        judge.wait_for_port(judge_port, deadline_s=_START_S)
        port, program = nginx.run(site, http=_HTTP.format(judge=judge_port), checks=_CHECKS, locations=_LOCATIONS)
        now_s = int(time.time())
        claims = {"iss": "bench", "aud": "llm", "sub": "bench", "iat": now_s, "exp": now_s + _TOKEN_S}
        token = jwt.encode(claims, key, algorithm="HS256")
        return Started(port, (program, judge), (f"Authorization: Bearer {token}",))
