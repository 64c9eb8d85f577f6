"""Secrets in the configuration: validation without ever showing a value in a fault."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import PlainValidator, SecretStr

from proxy.settings.scalars import check_text, text_schema
from proxy.settings.units import InvalidValue

_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_QUOTES: Final = "\"'"


def check_ends(text: str) -> None:
    """Refuse white space and quotes around a secret, which tools leave there: it would fail for no visible reason.

    Raises:
        InvalidValue: White space, a byte order mark or a pair of quotes around it. Never contains the value.
    """
    if text != text.strip() or text.startswith("\ufeff"):
        raise InvalidValue("has white space around it beyond the one line end that is dropped")
    if len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES:
        raise InvalidValue("is in quotes: docker's --env-file keeps them; write NAME=value")


def read_secret(value: object) -> SecretStr:
    """Read a secret; no fault contains it.

    Raises:
        InvalidValue: Not text, empty, or with white space or quotes around it.
    """
    value = check_text(value)
    if any("\ud800" <= character <= "\udfff" for character in value):  # bytes of a variable that are not UTF-8
        raise InvalidValue("must be UTF-8 text")
    check_ends(value)
    return SecretStr(value)


def read_vendor_key(value: object) -> SecretStr:
    """Read a key that is sent in a header: visible ASCII, so that no key can add a field (RFC 9110 §5.5).

    Raises:
        InvalidValue: Another character in it.
    """
    secret = read_secret(value)
    if _VISIBLE.fullmatch(secret.get_secret_value()) is None:
        raise InvalidValue("must be visible ASCII without spaces or line ends, as a header carries it")
    return secret


Secret = Annotated[SecretStr, PlainValidator(read_secret), text_schema()]
VendorKey = Annotated[SecretStr, PlainValidator(read_vendor_key), text_schema()]
