"""What a known line looks like, and what it is read into."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from ._events import LogEvent
from ._said import CutLineError, Said

Build: TypeAlias = Callable[[Said, re.Match[str]], LogEvent | None]


class Shape(NamedTuple):
    """A form of line. With the marker, which says what the line means to be, the pattern must match all of it.

    `anybody`: it may also be said by one whose address is not named. `common`: other people's lines hold the marker,
    too, so one that does not match is theirs.
    """

    marker: str
    pattern: str
    build: Build
    anybody: bool = False
    common: bool = False

    def read(self, said: Said) -> LogEvent | None:
        """Return what a line with the marker says. Raises CutLineError where it is cut or garbled."""
        match = re.fullmatch(self.pattern, said.message.rstrip())
        if match is None and self.common:
            return None
        if match is None:
            raise CutLineError(f"it begins like {self.marker.strip()!r} and is cut or garbled")
        return self.build(said, match)

    def fits(self, said: Said) -> bool:
        """Tell whether the line means to be of this form."""
        return self.marker in said.message and (self.anybody or said.function is not None)
