from __future__ import annotations

from services.coordinator._journal import inherit
from services.coordinator._votes import verdict
from shared.pcie import Address
from shared.protocol.fabric import Rank, Reach, Result
from shared.protocol.records import Recovery, RecoveryState, Verdict
from shared.protocol.requests import Cause, DriverStep, Vote

CARD = "0000:01:00.0"


def record(**told: dict[str, Vote]) -> Recovery:
    return Recovery(
        lease="r",
        port=Address.parse("00:01.0"),
        cause=Cause.DPC,
        rank=Rank.RECOVERY,
        reach=Reach.RESET,
        state=RecoveryState.OPEN,
        step="reset",
        told=told,
    )


def test_p3_what_was_unbound_and_not_bound_again_is_the_heirs_to_bind() -> None:
    heir = inherit(record(), [record(unbind={CARD: Vote.NONE})])
    assert heir.told[DriverStep.ERROR_DETECTED] == {CARD: Vote.NO_HANDLER}
    assert verdict(CARD, Result.RECOVERED, heir.told, ()) is Verdict.FAILED, "until it is bound"


def test_p3_what_was_bound_again_is_told_anew_by_the_heir() -> None:
    assert inherit(record(), [record(unbind={CARD: Vote.NONE}, bind={CARD: Vote.NONE})]).told == {}


def test_who_prepared_for_a_reset_is_remembered_until_he_heard_its_end() -> None:
    begun = record(reset_prepare={CARD: Vote.NONE})
    assert inherit(record(), [begun]).told == {DriverStep.RESET_PREPARE: {CARD: Vote.NONE}}
    assert inherit(record(), [record(reset_prepare={CARD: Vote.NONE}, reset_done={CARD: Vote.NONE})]).told == {}
