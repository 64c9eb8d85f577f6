"""The products that stand in front of services: how an answer betrays them, and the line to put into each.

docs/troubleshooting.md has every line; a test keeps the two equal.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["buffering", "answer_inspection", "compression", "caching", "inspection", "body", "leaving", "silence"]

LINES: Final[Mapping[Kind, Mapping[str, str]]] = MappingProxyType(
    {
        "buffering": {
            "nginx": "`proxy_buffering off;`, and no `proxy_ignore_headers X-Accel-Buffering;`",
            "ingress-nginx": '`nginx.ingress.kubernetes.io/proxy-buffering: "off"`',
            "Apache": "`ProxyPass / http://proxy:8080/ flushpackets=on`",
            "Cloudflare": "Response Buffering off (`response_buffering`)",
            "AWS ALB": "an instance or IP target; a Lambda function behind it answers as a whole",
            "AWS CloudFront": "no Lambda@Edge or function on the origin's response",
            "Azure Front Door": "the route without caching; Application Gateway: `enableResponseBuffering: false`",
            "Caddy": "no `templates`, `replace` or `handle_response` for it; text/event-stream is flushed by itself",
            "Traefik": "no `buffering` middleware on the router; `responseForwarding.flushInterval: 1ms`",
            "Envoy": "`ext_proc` with `response_body_mode: NONE`, and no Lua filter that calls `body()`",
        },
        "answer_inspection": {
            "nginx": "ModSecurity: `SecResponseBodyAccess Off`",
            "ingress-nginx": '`nginx.ingress.kubernetes.io/enable-modsecurity: "false"`',
            "Apache": "ModSecurity: `SecResponseBodyAccess Off`",
            "Cloudflare": "no Worker that reads the body; return `response.body`",
            "AWS ALB": "an instance or IP target, no Lambda function",
            "AWS CloudFront": "no Lambda@Edge that reads the body",
            "Azure Front Door": 'API Management behind it: `<forward-request buffer-response="false" />`',
            "Caddy": "no `templates` or `replace` for it",
            "Traefik": "no plugin that reads the body",
            "Envoy": "`ext_proc` with `response_body_mode: NONE`",
        },
        "compression": {
            "nginx": "`gzip off;`, or `gzip_types` and `brotli_types` without text/event-stream",
            "ingress-nginx": '`use-gzip: "false"` in its ConfigMap, or `gzip-types` without text/event-stream',
            "Apache": "`SetEnv no-gzip 1` and `SetEnv no-brotli 1` for the location",
            "Cloudflare": "a compression rule for the path: no compression",
            "AWS ALB": "nothing: it does not compress",
            "AWS CloudFront": "`Compress: false` in the cache behaviour",
            "Azure Front Door": "compression off on the route",
            "Caddy": "no `encode` for it",
            "Traefik": "`compress.excludedContentTypes: [text/event-stream]`",
            "Envoy": "`content_type` of the compressor without text/event-stream",
        },
        "caching": {
            "nginx": "`proxy_cache off;`",
            "ingress-nginx": "no `proxy_cache` in a snippet",
            "Apache": "`CacheDisable /`",
            "Cloudflare": "a cache rule for the path: bypass cache",
            "AWS ALB": "nothing: it does not cache",
            "AWS CloudFront": "the cache policy `CachingDisabled` with the origin request policy `AllViewer`",
            "Azure Front Door": "caching off on the route",
            "Caddy": "no `cache` for it",
            "Traefik": "no caching plugin on the router",
            "Envoy": "no `envoy.filters.http.cache` for it",
        },
        "inspection": {
            "nginx": "`proxy_request_buffering off;` (ModSecurity: `SecRequestBodyAccess Off`)",
            "ingress-nginx": '`nginx.ingress.kubernetes.io/proxy-request-buffering: "off"`',
            "Apache": "ModSecurity: `SecRequestBodyAccess Off`",
            "Cloudflare": "a WAF skip rule for the path",
            "AWS ALB": "AWS WAF: no rule on the body for the path",
            "AWS CloudFront": "AWS WAF: no rule on the body for the path",
            "Azure Front Door": "`requestBodyCheck: Disabled` in the WAF policy",
            "Caddy": "no `request_buffers` in `reverse_proxy`",
            "Traefik": "no `buffering` middleware on the router",
            "Envoy": "no `envoy.filters.http.buffer`, and `ext_authz` without `with_request_body`",
            "HAProxy": "`no option http-buffer-request`",
        },
        "body": {
            "nginx": "`client_max_body_size 32m;`",
            "ingress-nginx": "`nginx.ingress.kubernetes.io/proxy-body-size: 32m`",
            "Apache": "`LimitRequestBody 33554432`",
            "Cloudflare": "100 MB and more, by the plan",
            "AWS ALB": "AWS WAF: oversize handling `CONTINUE`; a Lambda target takes 1 MB",
            "AWS CloudFront": "AWS WAF: oversize handling `CONTINUE`",
            "Azure Front Door": "`requestBodyInspectLimitInKB`, or no inspection, in the WAF policy",
            "Caddy": "`request_body { max_size 32MB }`",
            "Traefik": "`buffering.maxRequestBodyBytes: 33554432`",
            "Envoy": "`max_request_bytes: 33554432` in the buffer filter",
        },
        "leaving": {
            "nginx": "`proxy_ignore_client_abort off;`",
            "ingress-nginx": "`proxy_ignore_client_abort off;` in a snippet",
            "Apache": "`flushpackets=on`: it notices when it writes",
            "Cloudflare": "no Worker that reads on after its client has left",
            "AWS ALB": "an instance or IP target, no Lambda function",
            "AWS CloudFront": "nothing can be set; stop streams with `DELETE /forward-sse/streams/{id}`",
            "Azure Front Door": "nothing can be set; stop streams with `DELETE /forward-sse/streams/{id}`",
            "Caddy": "no `flush_interval -1`: it keeps the request when the client leaves",
            "Traefik": "no `buffering` middleware on the router",
            "Envoy": "no filter that retries or buffers the answer",
            "HAProxy": "`option abortonclose`",
        },
        "silence": {
            "nginx": "`proxy_read_timeout 1h; send_timeout 1h;`",
            "ingress-nginx": '`nginx.ingress.kubernetes.io/proxy-read-timeout: "3600"`',
            "Apache": "`ProxyTimeout 3600`, `Timeout 3600`",
            "Cloudflare": "100 s, so `heartbeat`",
            "AWS ALB": "`idle_timeout.timeout_seconds = 4000`",
            "AWS CloudFront": "`OriginReadTimeout: 60` at most without a quota, so `heartbeat`",
            "Azure Front Door": "`originResponseTimeoutSeconds: 240` at most, so `heartbeat`",
            "Caddy": "no `read_timeout` in `transport http`, no `write_timeout` in `servers`",
            "Traefik": "`transport.respondingTimeouts.writeTimeout: 0` and `idleTimeout: 1h` of the entry point",
            "Envoy": "`timeout: 0s` and `idle_timeout: 3600s` of the route",
            "HAProxy": "`timeout client 1h`, `timeout server 1h`",
        },
    }
)

# What a product leaves in an answer: the field, and the text that is in its value.
_MARKS: Final = (
    ("Server", "nginx", ("nginx", "ingress-nginx")),
    ("Server", "apache", ("Apache",)),
    ("Server", "cloudflare", ("Cloudflare",)),
    ("CF-Ray", "", ("Cloudflare",)),
    ("Server", "awselb", ("AWS ALB",)),
    ("X-Amz-Cf-Id", "", ("AWS CloudFront",)),
    ("Via", "cloudfront", ("AWS CloudFront",)),
    ("X-Azure-Ref", "", ("Azure Front Door",)),
    ("Server", "caddy", ("Caddy",)),
    ("Via", "caddy", ("Caddy",)),
    ("Server", "traefik", ("Traefik",)),
    ("Server", "envoy", ("Envoy",)),
    ("X-Envoy-Upstream-Service-Time", "", ("Envoy",)),
    ("Server", "haproxy", ("HAProxy",)),
)


def recognise(headers: Mapping[str, str]) -> set[str]:
    """Name the products that an answer's fields betray; `headers` ignores case. The proxy itself leaves no `Server`."""
    return {
        product
        for name, text, products in _MARKS
        if name in headers and text in headers[name].lower()
        for product in products
    }


def is_from_cache(headers: Mapping[str, str]) -> bool:
    """Whether an answer's fields say that it comes from a cache (RFC 9111 §5.1, and what products say)."""
    age = headers.get("Age", "")
    told = (headers.get(name, "").lower() for name in ("X-Cache", "CF-Cache-Status", "X-Cache-Status"))
    return (age.isdecimal() and int(age) > 0) or any(text.startswith(("hit", "tcp_hit")) for text in told)
