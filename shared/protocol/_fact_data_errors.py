"""What facts about errors and containment carry. Register values are numbers as they were read."""

from __future__ import annotations

import msgspec

from shared.pcie import Address

from ._fact_data import Data
from .facts import Ignored


class ErrorData(Data, frozen=True):
    """Errors of one severity at one function: `names` as the kernel's log has them, `text` the lines that it writes.

    `status` and `mask` are the AER registers, absent where the function did not answer; `counts` are totals by name,
    `held_back` how many reports were not told one by one.
    """

    function: Address
    text: tuple[str, ...]
    status: int | None = None
    mask: int | None = None
    names: tuple[str, ...] = ()
    layer: str | None = None
    agent: str | None = None
    first: str | None = None
    header: tuple[int, ...] | None = None
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    advisory: tuple[str, ...] = ()
    held_back: int = 0


class ErrorIgnoredData(Data, frozen=True):
    """Errors for which no recovery was begun."""

    reason: Ignored
    why: str
    severity: str
    functions: tuple[Address, ...]
    names: tuple[str, ...] = ()
    status: int | None = None
    text: tuple[str, ...] = ()


class OwnError(msgspec.Struct, frozen=True, kw_only=True):
    """Errors that a contained port itself has detected."""

    severity: str
    status: int
    names: tuple[str, ...]


class ContainmentEnteredData(Data, frozen=True):
    """DPC took the link down: DPC Status, the reason in it, and whose message it was, if it was one."""

    text: tuple[str, ...]
    status: int
    reason: str | None
    source: Address | None
    errors: tuple[OwnError, ...]
    rp_pio_status: int | None = None
    rp_pio_mask: int | None = None


class ContainmentIgnoredData(Data, frozen=True):
    """Containment for which no recovery was begun; DPC Status."""

    reason: Ignored
    why: str
    status: int


class ContainmentReleasedData(Data, frozen=True):
    """What was released: `dpc`."""

    released: str
