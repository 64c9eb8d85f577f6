"""The paths that lead to upstreams, and the methods with which they are served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.dialects import DIALECTS
from proxy.errors import MethodNotAllowedError, NotFoundError

if TYPE_CHECKING:
    from proxy.model import RequestHead

FRONT: Final = b"/forward-sse"
# The paths that stock SDKs call below a bare base URL, and the dialect of each.
SHORT: Final = {path: name for name, dialect in DIALECTS.items() for path in dialect.root_paths}
# What chat frontends ask for first below the same base URL: the default upstream's list.
MODELS: Final = b"/v1/models"
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")


def check_path_and_method(head: RequestHead) -> None:
    """Refuse what is served nowhere, or not with this method.

    Raises:
        NotFoundError, MethodNotAllowedError: it is.
    """
    path = head.path
    if path == FRONT or path in SHORT:
        if head.method != "POST":
            raise MethodNotAllowedError("POST")
    elif path == MODELS:
        if head.method not in {"GET", "HEAD"}:
            raise MethodNotAllowedError("GET, HEAD")
    elif path.startswith((FRONT + b"/", b"//")) or path.count(b"/") < 2:  # noqa: PLR2004 - /{upstream}/{path}
        raise NotFoundError
    elif head.method not in _METHODS:
        raise MethodNotAllowedError(", ".join(_METHODS))
