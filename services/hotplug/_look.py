"""One look at a slot, judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared.protocol.facts import Ignored

from ._judge import Row
from ._keeper import Survey
from ._reading import Reading


@dataclass(frozen=True, slots=True)
class Look:
    """What the registers said, and what the table says to it."""

    reading: Reading
    survey: Survey
    row: Row
    why: str  # the row's reason, and what in particular

    def ignored(self, reason: Ignored) -> dict[str, Any]:
        """Return what is told of an event about which nothing is done."""
        return {"latched": self.reading.latched, "why": self.why, "reason": reason}
