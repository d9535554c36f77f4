"""The decision table: every combination of inputs has exactly one row."""

import itertools

import pytest

from services.hotplug._judge import ROWS, Identities, Verdict, View, judge
from services.hotplug._survey import compare
from shared.pcie import Address
from shared.recovery import Finding

BOOLS = [name for name in View.__struct_fields__ if name != "identity"]


def everything() -> list[View]:
    return [
        View(**dict(zip(BOOLS, bits, strict=True)), identity=identity)
        for bits in itertools.product((False, True), repeat=len(BOOLS))
        for identity in Identities
    ]


def view(**given: bool | Identities) -> View:
    usual: dict[str, bool | Identities] = dict.fromkeys(BOOLS, False)
    return View(**{**usual, "identity": Identities.SAME, **given})  # type: ignore[arg-type]


def test_all_inputs_have_exactly_one_row() -> None:
    for one in everything():
        assert sum(row.applies(one) for row in ROWS) == 1, one


def test_every_row_is_reached_and_named_in_order() -> None:
    reached = {judge(one).name for one in everything()}
    assert [row.name for row in ROWS] == [f"H{n + 1}" for n in range(len(ROWS))]
    assert reached == {row.name for row in ROWS}


def test_every_row_has_a_cell_for_every_input() -> None:
    for row in ROWS:
        assert len(row.cells.split()) == len(View.__struct_fields__), row.name


def test_p9_all_ones_decide_nothing() -> None:
    free = [one for one in everything() if not one.quarantined]
    assert {judge(one).verdict for one in free if one.silent} == {Verdict.READ_AGAIN}


def test_p2_in_quarantine_nothing_is_judged_whatever_the_registers_say() -> None:
    assert {judge(one).verdict for one in everything() if one.quarantined} == {Verdict.LEAVE}


@pytest.mark.parametrize("obstacle", ["contained", "fatal", "covered"])
def test_p3_nothing_is_decided_while_a_recovery_is_concerned(obstacle: str) -> None:
    free = [one for one in everything() if not (one.quarantined or one.silent)]
    concerned = [one for one in free if getattr(one, obstacle)]
    assert {judge(one).verdict for one in concerned} == {Verdict.DEFER}


def test_p3_a_device_that_answers_with_the_same_identity_is_never_removed() -> None:
    same = [one for one in everything() if one.on and one.link and one.identity is Identities.SAME]
    assert not {judge(one).verdict for one in same} & {Verdict.REMOVE, Verdict.REPLACE, Verdict.WAIT}


def test_p4_an_occupied_slot_without_a_link_loses_its_device_latched_or_not() -> None:
    for latched in (False, True):
        assert judge(view(on=True, latched=latched)).verdict is Verdict.REMOVE


def test_p4_another_device_replaces_the_registered_one_latched_or_not() -> None:
    for latched in (False, True):
        row = judge(view(on=True, link=True, latched=latched, identity=Identities.DIFFERENT))
        assert row.verdict is Verdict.REPLACE


def test_a_slot_switched_off_on_purpose_stays_off_until_something_changes() -> None:
    assert judge(view(resting=True, card=True, link=True)).verdict is Verdict.NOTHING
    assert judge(view(resting=True, card=True, latched=True)).verdict is Verdict.BRING_UP


def test_no_latch_is_left_behind_by_a_verdict_that_does_nothing() -> None:
    """Scenario 11: an edge comes only after status and enable have been zero."""
    assert not [one for one in everything() if one.latched and judge(one).verdict is Verdict.NOTHING]


def test_p4_a_device_that_is_not_set_up_any_more_is_another_only_if_something_has_latched() -> None:
    """Who owns a device may switch its memory space off; then no link and no presence has changed."""
    unset = Finding(function=Address.parse("01:00.0"), answers=True, unset=True)
    assert compare([unset], reseated=False, latched=True) is Identities.DIFFERENT
    assert compare([unset], reseated=False, latched=False) is Identities.SAME
