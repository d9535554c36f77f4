"""Resets within a function: which of them it has, by its registers, and what they write."""

from __future__ import annotations

import pytest

from services.coordinator._function_resets import abilities, reset_function
from shared.pcie import NO_ANSWER, Address, Capabilities, Function, Identity, Value, timing
from shared.pcie.registers import DeviceType
from shared.protocol.fabric import Verb
from shared.protocol.requests import ResetMethod
from shared.recovery import Do, Logic, Pause

IDENTITY = Identity(vendor=0x8086, device=1, class_code=0, revision=0, subsystem=0)
EXPRESS, AF, PM = 0x40, 0x80, 0xC0
FLR, AF_FLR = ResetMethod.FLR, ResetMethod.AF_FLR
CARD = Function(
    Address.parse("01:00.0"),
    DeviceType.ENDPOINT,
    IDENTITY,
    Capabilities(express=EXPRESS, advanced_features=AF, power_management=PM),
)


def able(af: Value, pm: Value) -> frozenset[ResetMethod]:
    logic = abilities(CARD)
    effect = next(logic)
    assert isinstance(effect, Do)
    assert [(one.verb, one.offset) for one in effect.operations] == [(Verb.READ, AF + 3), (Verb.READ, PM + 4)]
    with pytest.raises(StopIteration) as done:
        logic.send((af, pm))
    found: frozenset[ResetMethod] = done.value.value
    return found


@pytest.mark.parametrize(
    ("af", "pm", "methods"),
    [
        (0x03, 0x0000, {AF_FLR, ResetMethod.PM}),
        (0x01, 0x0000, {ResetMethod.PM}),
        (0x03, 0x0008, {AF_FLR}),
        (0x03, 0x0003, {AF_FLR}),
        (NO_ANSWER, NO_ANSWER, set()),
    ],
    ids=["both", "no_af_flr", "no_soft_reset", "not_in_d0", "p9_no_answer"],
)
def test_what_a_function_can_is_what_its_registers_say(af: Value, pm: Value, methods: set[ResetMethod]) -> None:
    assert able(af, pm) == methods


def run(logic: Logic[None]) -> list[tuple[int, int, int, int] | float]:
    story: list[tuple[int, int, int, int] | float] = []
    for effect in logic:
        match effect:
            case Do():
                story += [(one.offset, one.width, one.mask, one.value) for one in effect.operations]
            case Pause():
                story.append(effect.seconds)
    return story


def test_each_method_writes_its_bit_and_no_other_and_waits_as_the_specification_says() -> None:
    assert run(reset_function(CARD, FLR)) == [(EXPRESS + 0x08, 2, 0x8000, 0x8000), timing.FLR_COMPLETION]
    assert run(reset_function(CARD, AF_FLR)) == [(AF + 4, 1, 0x01, 0x01), timing.FLR_COMPLETION]
    assert run(reset_function(CARD, ResetMethod.PM)) == [
        (PM + 4, 2, 0x3, 0x3),
        timing.PM_D3HOT_TO_D0,
        (PM + 4, 2, 0x3, 0x0),
        timing.PM_D3HOT_TO_D0,
    ]
