"""What vendors say of an answer as such: its id, and why it ended. For traces; nothing of what it says.

Read where an event is parsed anyway, so not all of it is found: an OpenAI chat stream tells why it ended in an event of
its own, which is looked at only where it came in one read with the usage.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from proxy.dialects.typed.reader import mapping, sequence

_ID: Final = re.compile(r"[!-~]{1,128}")
_WORD: Final = re.compile(r"[A-Za-z_]{1,64}")
# In the text of an answer a quotation mark has a backslash before it, so this is a member.
_REASON: Final = re.compile(rb'"finish_reason"[ \t]*+:[ \t]*+"([A-Za-z_]{1,64})"')
# What DashScope writes until the answer ends.
_NOT_YET: Final = "null"
_MOST_REASONS: Final = 8


class Told:
    """The answer's id, and for each of its choices why it ended, as far as the vendor has said. Never raises."""

    __slots__ = ("finish_reasons", "id")

    def __init__(self) -> None:
        self.id: str | None = None
        self.finish_reasons: tuple[str, ...] = ()

    def read(self, event: dict[str, Any]) -> None:
        """Take what an event, or a whole answer, says."""
        within = mapping(event.get("response")) or mapping(event.get("message"))
        for value in (event.get("id"), within.get("id"), event.get("responseId"), event.get("request_id")):
            if isinstance(value, str) and _ID.fullmatch(value):
                self.id = value
                break
        output = mapping(event.get("output"))
        reasons = [
            *(mapping(choice).get("finish_reason") for choice in sequence(event.get("choices"))),
            *(mapping(choice).get("finish_reason") for choice in sequence(output.get("choices"))),
            *(mapping(candidate).get("finishReason") for candidate in sequence(event.get("candidates"))),
            output.get("finish_reason"),
            mapping(event.get("delta")).get("stop_reason"),
            event.get("stop_reason"),
        ]
        self._keep([reason for reason in reasons if isinstance(reason, str) and _WORD.fullmatch(reason)])

    def look(self, data: bytes) -> None:
        """Take what stands in a read in which usage was found: the event before that of the usage has it."""
        self._keep([reason.decode() for reason in _REASON.findall(data)])

    def read_whole(self, body: bytes) -> None:
        """Take what a whole JSON answer says."""
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            return
        if isinstance(value, dict):
            self.read(value)

    def _keep(self, reasons: list[str]) -> None:
        reasons = [reason for reason in reasons if reason != _NOT_YET][:_MOST_REASONS]
        if reasons:
            self.finish_reasons = tuple(reasons)
