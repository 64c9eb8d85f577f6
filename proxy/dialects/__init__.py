"""What differs from vendor to vendor: paths, credential headers, how a stream is asked for, error bodies, typed events.

A `Dialect` takes and returns bytes and values; it knows no connection. To add a vendor's dialect, add a module with a
subclass and put its instance into `DIALECTS`. docs/life-of-a-request.md#add-a-vendors-dialect lists the other places
that may need a line.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from proxy.dialects.anthropic import Anthropic
from proxy.dialects.base import Dialect
from proxy.dialects.dashscope import DashScope
from proxy.dialects.gemini import Gemini
from proxy.dialects.openai import OpenAI
from proxy.dialects.raw import Raw

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DEFAULT_DIALECT", "DIALECTS", "Dialect"]

DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType(
    {dialect.name: dialect for dialect in (OpenAI(), DashScope(), Anthropic(), Gemini(), Raw())}
)
# The dialect of the proxy's own answers where nothing tells which upstream is meant.
DEFAULT_DIALECT: Final = OpenAI.name
