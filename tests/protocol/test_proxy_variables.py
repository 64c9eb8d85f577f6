"""The environment's proxies are read as curl reads them, but for loopback; the installed curl is asked, too."""

from __future__ import annotations

import socket
import subprocess
import threading

import pytest

from proxy.model import EgressProxy
from proxy.protocol.proxy_variables import NamedProxy, ProxyVariables, is_exempt, is_local, no_proxy_of, variable_for
from tests.needs import need


@pytest.mark.parametrize(
    ("host", "no_proxy", "expected"),
    [
        ("api.example.com", "", False),
        ("api.example.com", "*", True),
        ("api.example.com", " * ", True),
        ("api.example.com", "example.org,*", False),
        ("api.example.com", "example.com", True),
        ("example.com", ".example.com", True),
        ("api.example.com", ".example.com", True),
        ("notexample.com", "example.com", False),
        ("API.Example.COM", "api.EXAMPLE.com", True),
        ("api.example.com.", "example.com", True),
        ("api.example.com", "example.com.", True),
        ("api.example.com", "example.org, example.com", True),
        ("api.example.com", "example.org example.com", True),
        ("api.example.com", "api.example.com:443", False),
        ("api.example.com", "pi.example.com", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.0/25", True),
        ("10.1.2.3", "10.1.2.128/25", False),
        ("10.1.2.3", "2.3", False),
        ("10.1.2.3", "garbage/9, 10.1.2.3", True),
        ("2001:db8::1", "2001:db8::/32", True),
        ("2001:db8::1", "2001:db8::1", True),
        ("2001:db9::1", "2001:db8::/32", False),
    ],
)
def test_no_proxy(host: str, no_proxy: str, *, expected: bool) -> None:
    """Names stand for themselves and what is below them, blocks for their addresses; ports match nothing."""
    assert is_exempt(host, no_proxy) is expected


@pytest.mark.parametrize(
    ("scheme", "environ", "expected"),
    [
        ("https", {"HTTPS_PROXY": "a"}, "HTTPS_PROXY"),
        ("https", {"HTTPS_PROXY": "a", "https_proxy": "b"}, "https_proxy"),
        ("https", {"https_proxy": "", "HTTPS_PROXY": "a"}, "HTTPS_PROXY"),
        ("https", {"ALL_PROXY": "a", "all_proxy": "b"}, "all_proxy"),
        ("https", {"http_proxy": "a"}, None),
        ("http", {"http_proxy": "a", "ALL_PROXY": "b"}, "http_proxy"),
        ("http", {"HTTP_PROXY": "a"}, None),
        ("http", {"HTTP_PROXY": "a", "ALL_PROXY": "b"}, "ALL_PROXY"),
        ("http", {}, None),
    ],
)
def test_variable(scheme: str, environ: dict[str, str], expected: str | None) -> None:
    """Lower case wins, an empty variable is none, and `HTTP_PROXY` is never read (httpoxy)."""
    assert variable_for(scheme, environ) == expected


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_loopback(host: str) -> None:
    """This machine is reached without a proxy of the environment."""
    named = NamedProxy("ALL_PROXY", EgressProxy("http", "proxy.example", 3128))
    assert is_local(host)
    assert ProxyVariables(named, named).choose("https", host) is None
    assert ProxyVariables(named, named).choose("https", "api.example.com") is named


# Each host with what is in the environment; whether a proxy is used is curl's to say.
CASES = [
    ("https://api.invalid/", {"HTTPS_PROXY": "P"}),
    ("https://api.invalid/", {"https_proxy": "P"}),
    ("https://api.invalid/", {"ALL_PROXY": "P"}),
    ("https://api.invalid/", {"all_proxy": "P"}),
    ("https://api.invalid/", {"http_proxy": "P"}),
    ("https://api.invalid/", {"https_proxy": "", "ALL_PROXY": "P"}),
    ("http://api.invalid/", {"http_proxy": "P"}),
    ("http://api.invalid/", {"HTTP_PROXY": "P"}),
    ("http://api.invalid/", {"ALL_PROXY": "P"}),
    ("http://api.invalid/", {"https_proxy": "P"}),
    *(
        ("https://api.example.invalid/", {"HTTPS_PROXY": "P", name: text})
        for name in ("NO_PROXY", "no_proxy")
        for text in (
            "*",
            "example.invalid",
            ".example.invalid",
            "xample.invalid",
            "api.example.invalid:443",
            "a.invalid example.invalid",
            "other.invalid,EXAMPLE.invalid",
            "other.invalid,*",
            "example.invalid.",
        )
    ),
    ("https://192.0.2.7/", {"HTTPS_PROXY": "P", "NO_PROXY": "192.0.2.0/24"}),
    ("https://192.0.2.7/", {"HTTPS_PROXY": "P", "NO_PROXY": "192.0.2.8/29"}),
    ("https://192.0.2.7/", {"HTTPS_PROXY": "P", "NO_PROXY": "192.0.2.7"}),
    ("https://[2001:db8::7]/", {"HTTPS_PROXY": "P", "NO_PROXY": "2001:db8::7"}),
]


@pytest.mark.parametrize(("url", "variables"), CASES)
def test_as_curl(url: str, variables: dict[str, str]) -> None:
    """Where curl uses the proxy we do, and where it does not, neither do we."""
    curl = need("curl")
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(100))

        thread = threading.Thread(target=serve)
        thread.start()
        environ = {name: value.replace("P", address) if value == "P" else value for name, value in variables.items()}
        subprocess.run([curl, "-s", "-m", "5", "--connect-timeout", "0.5", url], env=environ, check=False)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    scheme, _, host = url.rstrip("/").partition("://")
    name = variable_for(scheme, environ)
    is_ours = name is not None and not is_exempt(host.strip("[]"), no_proxy_of(environ))
    assert is_ours is bool(asked)
