"""How a command ends: the exit codes, and the one exception that carries one to the shell."""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from shared.protocol import LeaseRef, Reason, Refused
from shared.protocol.fabric import Result
from shared.protocol.records import Verdict


class ExitCode(IntEnum):
    """What a script learns from `$?`. `hold` passes its command's own code through, 128 + n for signal n."""

    OK = 0
    INTERNAL = 1  # a bug of ours, or a service that died without a reason
    USAGE = 2  # the command line, a file or a topology is wrong
    POLICY = 3  # refused by a rule or an interlock
    HELD = 4  # another lease covers the port, or ours was lost to one
    ABSENT = 5  # no such port or device, or the device was removed
    REPLACED = 6  # another device answers than before
    FAILED = 7  # the recovery failed; or `doctor` or `audit` found what nobody answers for
    UNREACHABLE = 8  # the bus, or the service asked, did not answer; or the outcome was not known in time
    OVERDUE = 124  # `hold --max`: what ran under the hold was killed at its limit; as timeout(1) has it
    UNTRUSTED = os.EX_PROTOCOL  # 76: the bus has no certificate, or one that is not to be trusted
    DENIED = os.EX_NOPERM  # 77: the credential is missing or wrong, or does not permit that


HELP: Final = (
    "Exit codes: 0 ok, 1 internal error, 2 usage, 3 refused by policy or interlock, 4 lease held by another, "
    "5 device absent, 6 device replaced, 7 recovery failed, or `doctor` or `audit` found something, 8 bus or service "
    "unreachable, or outcome not known within --timeout, 76 bus not to be trusted, 77 not permitted, 124 killed by "
    "`hold --max`. `hold` passes the code of its command through. What is ended by signal n ends with 128 + n."
)


class Failure(Exception):  # noqa: N818 - an expected end of a command, not a defect
    """An expected failure: one line for people that names the thing and what to do, and an exit code."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


_OF_REASON: Final[dict[Reason, ExitCode]] = {
    Reason.MALFORMED: ExitCode.USAGE,
    Reason.VERSION: ExitCode.USAGE,
    Reason.UNKNOWN_PORT: ExitCode.ABSENT,
    Reason.UNKNOWN_LEASE: ExitCode.HELD,
    Reason.HELD: ExitCode.HELD,
    Reason.FENCED: ExitCode.HELD,
    Reason.ROLE: ExitCode.POLICY,
    Reason.UNMASKED: ExitCode.POLICY,
    Reason.OUTSIDE: ExitCode.POLICY,
    Reason.CONDITION: ExitCode.POLICY,
    Reason.STALE: ExitCode.HELD,
    Reason.IN_RESET: ExitCode.FAILED,
    Reason.ABSENT: ExitCode.ABSENT,
    Reason.QUARANTINED: ExitCode.POLICY,
    Reason.POLICY: ExitCode.POLICY,
    Reason.UNSUPPORTED: ExitCode.POLICY,
    Reason.NOT_OWNER: ExitCode.UNREACHABLE,
    Reason.STOPPING: ExitCode.UNREACHABLE,
}

_OF_VERDICT: Final[dict[Verdict, ExitCode]] = {
    Verdict.KEPT: ExitCode.OK,
    Verdict.REBOUND: ExitCode.OK,
    Verdict.REMOVED: ExitCode.ABSENT,
    Verdict.REPLACED: ExitCode.REPLACED,
    Verdict.FAILED: ExitCode.FAILED,
    Verdict.QUARANTINED: ExitCode.FAILED,
}

VERDICT_OF_RESULT: Final[dict[Result, Verdict]] = {
    Result.RECOVERED: Verdict.KEPT,
    Result.REPLACED: Verdict.REPLACED,
    Result.REMOVED: Verdict.REMOVED,
    Result.FAILED: Verdict.FAILED,
    Result.QUARANTINED: Verdict.QUARANTINED,
}


def describe_lease(lease: LeaseRef) -> str:
    """Name a lease as people read it."""
    return f"lease {lease.id} on {lease.port} ({lease.rank}, {lease.cause}, held by {lease.holder})"


def refusal(refused: Refused, what: str) -> Failure:
    """Turn a refusal into the failure of `what`, naming the lease that stands in the way."""
    message = f"{what}: {refused.message}"
    if refused.lease is not None and refused.lease.id not in refused.message:
        message += f"; {describe_lease(refused.lease)}"
    return Failure(_OF_REASON[refused.reason], message)


def of_verdicts(verdicts: Iterable[Verdict]) -> ExitCode:
    """Return the exit code of the worst verdict: failed, replaced, removed, then kept."""
    return max((_OF_VERDICT[verdict] for verdict in verdicts), default=ExitCode.OK)
