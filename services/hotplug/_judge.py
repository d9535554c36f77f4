"""What to do about a slot, from what its registers, the registry and the fabric say: one decision table.

Exactly one row applies to every combination of inputs (a test walks them all). What latched is left alone by every row
that defers: whoever recovers there reads it, and after the close of that lease the slot is judged here (P4).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class Identities(StrEnum):
    """The functions of the slot against the registry."""

    SAME = "same"
    DIFFERENT = "different"  # another device answers, or the same one was out in between: presence or setup tell
    SILENT = "silent"  # a registered function does not answer (yet)


class Verdict(StrEnum):
    """What follows."""

    READ_AGAIN = "read again"
    DEFER = "defer"  # leave everything latched; whoever recovers here closes, and then it is judged
    KEEP = "keep"  # say so, and clear the latch
    WAIT = "wait"  # the link is back, the device is not yet: replace it if it stays silent
    REMOVE = "remove"  # after a grace
    REPLACE = "replace"  # remove, then bring up
    BRING_UP = "bring up"
    CLEAR = "clear"  # a change that left nothing behind: say so, and clear the latch
    LEAVE = "leave"  # in quarantine: another card, or an operator, ends that, and then it is judged
    NOTHING = "nothing"


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of the table, in the order of its columns."""

    quarantined: bool  # the port, or one above it, is held down for good
    silent: bool  # the port, or a bridge above it, reads all ones
    contained: bool  # DPC Trigger Status, Link Disable or Secondary Bus Reset, here or above
    fatal: bool  # a fatal error that nobody has handled, here or above
    covered: bool  # a lease on the port or above
    on: bool  # the registry shows functions in the slot
    link: bool  # Data Link Layer Link Active
    resting: bool  # switched off on purpose, or given up: only a new change wakes it
    card: bool  # presence detect says that a card is there
    latched: bool  # PDC or DLLSC is latched
    identity: Identities


class Row(msgspec.Struct, frozen=True):
    """One row: its name, its cells (`1`, `0`, an identity, `-` for either), the verdict, and why."""

    name: str
    cells: str
    verdict: Verdict
    because: str

    def applies(self, view: View) -> bool:
        """Tell whether every cell that matters agrees."""
        seen = (_cell(getattr(view, field)) for field in View.__struct_fields__)
        return all(cell in {"-", value} for cell, value in zip(self.cells.split(), seen, strict=True))


def _cell(value: bool | Identities) -> str:
    return value.value if isinstance(value, Identities) else str(int(value))


# What the reasons stand on: H1 P9; H2 and H3 P3; H4 P6; H5 P3 and P10; H7, H10 and the rows that bring up P4; H8 is
# scenario 19 (readiness); H9 is aer's business. H19 needs no register: the fabric's ledger says so.
ROWS: Final = (
    #            quarantined
    #            | silent      covered  resting   latched
    #            | | contained |  on    |  card   | identity
    #            | | | fatal   |  | link|  |      |
    Row("H1",  " 0 1 -   -     -  - -   -  -      -  -         ", Verdict.READ_AGAIN, "all ones is no evidence"),
    Row("H2",  " 0 0 1   -     -  - -   -  -      -  -         ", Verdict.DEFER, "contained or in reset, here or above"),
    Row("H3",  " 0 0 0   1     -  - -   -  -      -  -         ", Verdict.DEFER, "a fatal error is pending"),
    Row("H4",  " 0 0 0   0     1  - -   -  -      -  -         ", Verdict.DEFER, "a lease covers the port"),
    Row("H5",  " 0 0 0   0     0  1 1   -  -      1  same      ", Verdict.KEEP, "the same device answers"),
    Row("H6",  " 0 0 0   0     0  1 1   -  -      0  same      ", Verdict.NOTHING, "nothing has changed"),
    Row("H7",  " 0 0 0   0     0  1 1   -  -      -  different ", Verdict.REPLACE, "another device answers, or the same one was out"),
    Row("H8",  " 0 0 0   0     0  1 1   -  -      1  silent    ", Verdict.WAIT, "the device does not answer yet"),
    Row("H9",  " 0 0 0   0     0  1 1   -  -      0  silent    ", Verdict.NOTHING, "a device that hangs is no change"),
    Row("H10", " 0 0 0   0     0  1 0   -  -      -  -         ", Verdict.REMOVE, "the link is down"),
    Row("H11", " 0 0 0   0     0  0 1   0  -      -  -         ", Verdict.BRING_UP, "the link is up"),
    Row("H12", " 0 0 0   0     0  0 0   0  1      -  -         ", Verdict.BRING_UP, "a card is present"),
    Row("H13", " 0 0 0   0     0  0 0   0  0      1  -         ", Verdict.CLEAR, "the slot is empty"),
    Row("H14", " 0 0 0   0     0  0 0   0  0      0  -         ", Verdict.NOTHING, "the slot is empty"),
    Row("H15", " 0 0 0   0     0  0 -   1  -      0  -         ", Verdict.NOTHING, "the slot is switched off"),
    Row("H16", " 0 0 0   0     0  0 1   1  -      1  -         ", Verdict.BRING_UP, "the link has come up"),
    Row("H17", " 0 0 0   0     0  0 0   1  1      1  -         ", Verdict.BRING_UP, "a card was seated"),
    Row("H18", " 0 0 0   0     0  0 0   1  0      1  -         ", Verdict.CLEAR, "the card was taken out"),
    Row("H19", " 1 - -   -     -  - -   -  -      -  -         ", Verdict.LEAVE, "in quarantine"),
)  # fmt: skip


def judge(view: View) -> Row:
    """Return the one row that applies."""
    rows = [row for row in ROWS if row.applies(view)]
    assert len(rows) == 1, f"{view} is judged by {[row.name for row in rows]}"
    return rows[0]
