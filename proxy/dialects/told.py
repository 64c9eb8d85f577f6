"""What vendors say of an answer as such: its id, and why it ended. For traces; nothing of what it says.

Read where an event is parsed anyway, so not all of it is found: an OpenAI chat stream tells why it ended in an event of
its own, which is looked at only where it came in one read with the usage. An event whose text is found without parsing
is parsed only where `is_known` cannot tell that it says nothing more.
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
# The ends of the names under which an event has a reason or an id, however the name begins.
_REASON_KEY: Final = b'eason"'
_NO_REASON: Final = b'eason":null'
_ID_KEY: Final = b'id"'
_OTHER_ID_KEY: Final = b'Id"'
_SAME_ID: Final = b'"id":"%b"'
# What DashScope writes until the answer ends.
_NOT_YET: Final = "null"
_MOST_REASONS: Final = 8


class Told:
    """The answer's id, and for each of its choices why it ended, as far as the vendor has said. Never raises."""

    __slots__ = ("_same_id", "finish_reasons", "id")

    def __init__(self) -> None:
        self.id: str | None = None
        self.finish_reasons: tuple[str, ...] = ()
        # How an event has the same id.
        self._same_id = b""

    def is_known(self, event: bytes) -> bool:
        """Check whether an event, not parsed yet, says nothing that is not known. Where it is not certain, it is no.

        True where each of its reasons is null, and its only id is the known one, or there is none.
        """
        if event.count(_REASON_KEY) != event.count(_NO_REASON):
            return False
        if event.find(_OTHER_ID_KEY) >= 0:
            return False
        ids = event.count(_ID_KEY)
        return not ids or (ids == 1 and self._same_id != b"" and event.find(self._same_id) >= 0)

    def read(self, event: dict[str, Any]) -> None:
        """Take what an event, or a whole answer, says."""
        within = mapping(event.get("response")) or mapping(event.get("message"))
        for value in (event.get("id"), within.get("id"), event.get("responseId"), event.get("request_id")):
            if isinstance(value, str) and _ID.fullmatch(value):
                if value != self.id:
                    self.id = value
                    # Within JSON a backslash is written otherwise, and what is written like this is another id.
                    self._same_id = b"" if "\\" in value else _SAME_ID % value.encode()
                break
        reasons = [mapping(choice).get("finish_reason") for choice in sequence(event.get("choices"))]
        output = mapping(event.get("output"))
        if output:
            reasons += [mapping(choice).get("finish_reason") for choice in sequence(output.get("choices"))]
        if "candidates" in event:
            reasons += [mapping(candidate).get("finishReason") for candidate in sequence(event["candidates"])]
        reasons += (
            output.get("finish_reason"),
            mapping(event.get("delta")).get("stop_reason"),
            event.get("stop_reason"),
        )
        # Of nearly all events there is none.
        if any(reasons):
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
