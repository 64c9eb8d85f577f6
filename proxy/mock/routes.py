"""Which path of the mock is which vendor's."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from proxy.mock.answer import Endpoint
from proxy.mock.anthropic import Anthropic
from proxy.mock.dashscope import DashScope
from proxy.mock.gemini import Gemini
from proxy.mock.openai import OpenAI
from proxy.mock.openai_responses import respond

if TYPE_CHECKING:
    from collections.abc import Mapping

OPENAI = OpenAI()
_COMPATIBLE = OpenAI(is_compatible_mode=True)
_DASHSCOPE = DashScope()
_ANTHROPIC = Anthropic()
_GEMINI = Gemini()

_ANTHROPIC_MODELS = Endpoint(_ANTHROPIC, _ANTHROPIC.models, "GET")
_FIXED = {
    "/v1/chat/completions": Endpoint(OPENAI, OPENAI.chat),
    "/v1/responses": Endpoint(OPENAI, partial(respond, OPENAI)),
    "/v1/models": Endpoint(OPENAI, OPENAI.models, "GET"),
    "/compatible-mode/v1/chat/completions": Endpoint(_COMPATIBLE, _COMPATIBLE.chat),
    "/compatible-mode/v1/responses": Endpoint(_COMPATIBLE, partial(respond, _COMPATIBLE)),
    "/compatible-mode/v1/models": Endpoint(_COMPATIBLE, _COMPATIBLE.models, "GET"),
    "/api/v1/services/aigc/text-generation/generation": Endpoint(_DASHSCOPE, _DASHSCOPE.text_generation),
    "/api/v1/services/aigc/multimodal-generation/generation": Endpoint(_DASHSCOPE, _DASHSCOPE.multimodal_generation),
    "/v1/messages": Endpoint(_ANTHROPIC, _ANTHROPIC.messages),
    "/v1/messages/count_tokens": Endpoint(_ANTHROPIC, _ANTHROPIC.count_tokens),
    "/anthropic/v1/messages": Endpoint(_ANTHROPIC, _ANTHROPIC.messages),
    "/anthropic/v1/messages/count_tokens": Endpoint(_ANTHROPIC, _ANTHROPIC.count_tokens),
    "/anthropic/v1/models": _ANTHROPIC_MODELS,
    "/v1beta/models": Endpoint(_GEMINI, _GEMINI.models, "GET"),
}
_PATTERNS = (
    (re.compile(r"/api/v1/apps/[^/]+/completion"), Endpoint(_DASHSCOPE, _DASHSCOPE.app_completion)),
    (re.compile(r"/v1(?:beta)?/models/[^/:]+:streamGenerateContent"), Endpoint(_GEMINI, _GEMINI.stream)),
    (re.compile(r"/v1(?:beta)?/models/[^/:]+:generateContent"), Endpoint(_GEMINI, _GEMINI.generate)),
    (re.compile(r"/v1(?:beta)?/models/[^/:]+:countTokens"), Endpoint(_GEMINI, _GEMINI.count_tokens)),
)


def find_endpoint(path: str, headers: Mapping[str, str]) -> Endpoint | None:
    """The endpoint that serves a path, None where there is none.

    OpenAI and Anthropic share the path of their model lists; Anthropic's clients name their API's version.
    """
    if path == "/v1/models" and "anthropic-version" in headers:
        return _ANTHROPIC_MODELS
    fixed = _FIXED.get(path)
    if fixed is not None:
        return fixed
    return next((endpoint for pattern, endpoint in _PATTERNS if pattern.fullmatch(path)), None)
