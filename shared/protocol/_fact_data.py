"""What the data of all facts have in common."""

from __future__ import annotations

import msgspec


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """The data of a fact."""
