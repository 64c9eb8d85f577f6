"""What differs from vendor to vendor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.dialects.anthropic import ANTHROPIC
from proxy.dialects.base import Dialect
from proxy.dialects.dashscope import DASHSCOPE
from proxy.dialects.gemini import GEMINI
from proxy.dialects.openai import OPENAI, error

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DIALECTS", "Dialect"]


def _no_event(code: str, message: str, path: bytes) -> None:  # noqa: ARG001 - whatever it is, raw has no word for it
    return None


RAW = Dialect(
    name="raw",
    default_path=None,
    default_allow_paths=(),
    credential_name=b"Authorization",
    credential_prefix=b"Bearer ",
    words_error=error,
    words_event=_no_event,
)

DIALECTS: Mapping[str, Dialect] = {dialect.name: dialect for dialect in (OPENAI, DASHSCOPE, ANTHROPIC, GEMINI, RAW)}
