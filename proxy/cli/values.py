"""What commands share: values of options that are read as those of the file, and the end for wrong use."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from proxy.settings import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_WRONG_USE = 2


class Value(click.ParamType[_T]):
    """A value of the command line that `read` reads; one that it refuses is refused in click's way (exit 2)."""

    def __init__(self, name: str, read: Callable[[str], _T]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> _T:
        """Read the text; what is none, such as a default, stays."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]  # a default may be no text
        try:
            return self._read(value)
        except InvalidValue as wrong:
            self.fail(f"{wrong.message}.", param, ctx)


def end_wrong_use(text: str) -> NoReturn:
    """End the command with a message about its use or the configuration."""
    click.echo(text, err=True)
    sys.exit(_WRONG_USE)
