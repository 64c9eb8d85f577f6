"""nginx as one puts it before an event stream: no buffering, kept connections to the upstream, one worker, a log."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, ClassVar

from benchmarks.peers.peer import Peer, Started, first_line
from benchmarks.processes import free_port

if TYPE_CHECKING:
    from benchmarks.peers.peer import Site
    from benchmarks.processes import Program

_START_S = 10.0

# keepalive_requests is raised on both sides: at its default of 1,000 the load's connections would be closed and opened
# again all the time, which is no event stream's cost.
_CONFIG = """
daemon off;
worker_processes 1;
worker_rlimit_nofile {descriptors};
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
{user}
events {{ worker_connections {connections}; }}
http {{
    log_format exchange escape=json '{{"time":"$time_iso8601","id":"$request_id","user":"$remote_user",'
        '"method":"$request_method","path":"$uri","status":$status,"bytes":$body_bytes_sent,'
        '"duration_s":$request_time,"ttfb_s":"$upstream_header_time"}}';
    access_log {directory}/access.log exchange;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000000;
    upstream vendor {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000000; }}
{http}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
{checks}
            proxy_pass http://vendor;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "Bearer vendor-key";
            proxy_buffering off;
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;
        }}
{locations}
    }}
}}
"""


class Nginx(Peer):
    """nginx without a check of any kind."""

    name: ClassVar[str] = "nginx"
    title: ClassVar[str] = "nginx"

    def absence(self) -> str | None:
        """No nginx on the path."""
        return None if shutil.which("nginx") else "not installed"

    def version(self) -> str:
        """As it says itself."""
        return first_line(["nginx", "-v"]).rpartition("/")[2]

    def start(self, site: Site) -> Started:
        """Run it in the foreground: a master and one worker."""
        port, program = run(site)
        return Started(port, (program,))


def run(site: Site, *, http: str = "", checks: str = "", locations: str = "") -> tuple[int, Program]:
    """Start an nginx with more in its configuration's blocks; gives its port."""
    port = free_port()
    config = site.directory / "nginx.conf"
    config.write_text(
        _CONFIG.format(
            directory=site.directory,
            descriptors=site.descriptors,
            # With fewer than a sixteenth of them free it closes connections whose request has not come yet.
            connections=site.descriptors * 9 // 8,
            # As root its worker would change to a user who may not write here.
            user="user root;" if os.geteuid() == 0 else "",
            upstream=site.upstream_port,
            port=port,
            http=http,
            checks=checks,
            locations=locations,
        )
    )
    program = site.start("nginx", ["nginx", "-p", site.directory, "-c", config])
    program.wait_for_port(port, deadline_s=_START_S)
    return port, program
