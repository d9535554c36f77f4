from __future__ import annotations

import pytest

from services.console import _exit
from services.console._exit import ExitCode, of_verdicts, refusal
from shared.protocol import LeaseRef, Reason, Refused
from shared.protocol.fabric import Result
from shared.protocol.records import Verdict

LEASE = LeaseRef(id="r-7", port="0000:00:01.0", rank="recovery", cause="dpc", holder="coordinator-1")


@pytest.mark.parametrize("reason", Reason)
def test_every_refusal_has_an_exit_code_that_is_no_success(reason: Reason) -> None:
    assert refusal(Refused(reason=reason, message="no"), "reset").code is not ExitCode.OK


@pytest.mark.parametrize("result", Result)
def test_every_result_of_the_fabric_is_a_verdict(result: Result) -> None:
    assert _exit.VERDICT_OF_RESULT[result] in Verdict


def test_a_refusal_names_the_lease_that_stands_in_the_way_once() -> None:
    told = refusal(Refused(reason=Reason.HELD, message="the port is held", lease=LEASE), "reset 0000:01:00.0")
    assert told.code is ExitCode.HELD
    assert str(told) == (
        "reset 0000:01:00.0: the port is held; lease r-7 on 0000:00:01.0 (recovery, dpc, held by coordinator-1)"
    )
    named = refusal(Refused(reason=Reason.HELD, message="held by r-7", lease=LEASE), "reset")
    assert str(named) == "reset: held by r-7"


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ((), ExitCode.OK),
        ((Verdict.KEPT, Verdict.REBOUND), ExitCode.OK),
        ((Verdict.KEPT, Verdict.REMOVED), ExitCode.ABSENT),
        ((Verdict.REPLACED, Verdict.REMOVED), ExitCode.REPLACED),
        ((Verdict.FAILED, Verdict.REPLACED, Verdict.KEPT), ExitCode.FAILED),
    ],
)
def test_the_worst_verdict_decides(verdicts: tuple[Verdict, ...], code: ExitCode) -> None:
    assert of_verdicts(verdicts) is code


def test_the_help_names_every_exit_code() -> None:
    assert all(f"{code.value} " in _exit.HELP for code in ExitCode)
