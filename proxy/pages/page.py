"""A page: one document, made at start of the files beside it.

What pages have in common stands beside this module: `head.html` and `frame.css`.

Style and scripts stand inside the document and are allowed by their digests. `'self'` would allow less safely: below
`/{upstream}/…` this origin also answers with what vendors send, and none of that may ever run as a script of a page.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.errors import Field

_SHARED: Final = Path(__file__).parent / "static"
# A file of the shared ones that is put in as it is.
_PART: Final = re.compile(r"<!-- ([a-z_]+\.html) -->\n")
_STYLE: Final = re.compile(r'<link rel="stylesheet" href="([a-z_]+\.css)">')
_SCRIPT: Final = re.compile(r'<script src="([a-z_]+\.js)"></script>')


@dataclass(frozen=True, slots=True)
class Page:
    """The document and the fields that go with it, its validator among them. The same for everybody who asks."""

    body: bytes
    etag: bytes
    fields: tuple[Field, ...]

    @classmethod
    def load(cls, path: Path, *, images: str, replaced: Mapping[str, str] | None = None) -> Page:
        """Read the files and put them together; blocks, so it is for the start only.

        A style or a script that does not stand beside the document is a shared one.

        `images` is where pictures may come from, as in `img-src`; `replaced` are texts of the document that stand for
        others.

        Raises:
            OSError: a file is missing; the installation is broken.
        """
        digests: dict[str, list[str]] = {"style": [], "script": []}

        def inline(kind: str, name: str) -> str:
            own = path.parent / name
            text = (own if own.exists() else _SHARED / name).read_text("utf-8")
            digests[kind].append(f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
            return f"<{kind}>{text}</{kind}>"

        document = _PART.sub(lambda match: (_SHARED / match[1]).read_text("utf-8"), path.read_text("utf-8"))
        document = _STYLE.sub(lambda match: inline("style", match[1]), document)
        document = _SCRIPT.sub(lambda match: inline("script", match[1]), document)
        for old, new in (replaced or {}).items():
            document = document.replace(old, new, 1)
        body = document.encode()
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'.encode()
        return cls(
            body, etag, (*_fields(" ".join(digests["style"]), " ".join(digests["script"]), images), (b"ETag", etag))
        )


def _fields(styles: str, scripts: str, images: str) -> tuple[Field, ...]:
    policy = (
        "default-src 'none'",
        f"script-src {scripts}",
        f"style-src {styles}",
        "connect-src 'self'",
        f"img-src {images}",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text can never become markup, whatever a model says.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return (
        (b"Content-Type", b"text/html; charset=utf-8"),
        (b"Content-Security-Policy", "; ".join(policy).encode()),
        (b"X-Content-Type-Options", b"nosniff"),
        (b"X-Frame-Options", b"DENY"),
        (b"Referrer-Policy", b"no-referrer"),
        (b"Cross-Origin-Opener-Policy", b"same-origin"),
        (b"Cross-Origin-Resource-Policy", b"same-origin"),
        (b"Permissions-Policy", b"camera=(), geolocation=(), microphone=()"),
    )
