"""What each Python client's error says, in the suite's words."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

import anthropic
import httpx
import openai
from google.genai import errors

from tests.clients.calls import Failure, member


class AnswerError(Exception):
    """An error that its client gives out as an answer, where others raise."""

    def __init__(self, status: int | None, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class CommandError(Exception):
    """A command that ended with something other than 0: what it printed, and the error event that came last, if any."""

    def __init__(self, code: int, head: str, body: bytes, event: Any) -> None:
        super().__init__(f"exit {code}")
        self.head = head
        self.status = int(head.split()[1])
        self.error = event or (json.loads(body)["error"] if self.status >= HTTPStatus.BAD_REQUEST else {})

    def field(self, name: str) -> str | None:
        """A field of the answer's head."""
        found = re.search(rf"^{name}: (.*)\r$", self.head, re.IGNORECASE | re.MULTILINE)
        return found and found[1]


def failure_of(error: Exception) -> Failure:
    """The error as its client words it."""
    name, message = type(error).__name__, str(error)
    match error:
        case openai.APIStatusError():
            return Failure(name, error.status_code, error.code, _retry_after(error.response), message)
        case openai.APIError():
            return Failure(name, None, error.code, None, message)
        case anthropic.APIStatusError():
            code = member(error.body, "error", "code")
            return Failure(name, error.status_code, code, _retry_after(error.response), message)
        case errors.APIError():
            code = member(error.details, "error", "details", 0, "reason")
            return Failure(name, error.code, code, _retry_after(error.response), message)
        case httpx.HTTPStatusError(response=response):
            code = member(response.json(), "error", "code")
            return Failure(name, response.status_code, code, _retry_after(response), message)
        case AnswerError():
            return Failure(name, error.status, error.code, None, message)
        case CommandError():
            said = error.error
            return Failure(
                message, error.status, said.get("code"), error.field("retry-after"), str(said.get("message"))
            )
        case _:
            return Failure(name, message=message)


def _retry_after(response: Any) -> str | None:
    return None if response is None else response.headers.get("retry-after")
