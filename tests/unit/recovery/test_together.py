from __future__ import annotations

from shared.pcie import Address
from shared.recovery import Do, Logic, Note, Pause, Step, ask, read
from shared.recovery._together import together

A, B = Address.parse("01:00.0"), Address.parse("02:00.0")


def poll(function: Address, times: int, seconds: float, got: list[object]) -> Logic[None]:
    for _ in range(times):
        got.extend((yield from ask((read(function, 0, 2),))))
        yield Pause(seconds)
    yield Note(Step.READY, {"port": str(function)})


def drive(logic: Logic[None]) -> tuple[float, list[int], list[str]]:
    now = 0.0
    sizes: list[int] = []
    notes: list[str] = []
    sent: object = None
    while True:
        try:
            effect = logic.send(sent)
        except StopIteration:
            return now, sizes, notes
        match effect:
            case Do():
                sizes.append(len(effect.operations))
                sent = tuple(operation.function.bus for operation in effect.operations)
            case Pause():
                now += effect.seconds
                sent = now
            case Note():
                notes.append(effect.detail["port"])
                sent = None


def test_waits_run_side_by_side_and_polls_travel_together() -> None:
    one: list[object] = []
    other: list[object] = []
    now, sizes, notes = drive(together(poll(A, 3, 1.0, one), poll(B, 3, 1.0, other)))
    assert now == 3.0
    assert sizes == [2, 2, 2]
    assert (one, other) == ([1, 1, 1], [2, 2, 2])
    assert notes == [str(A), str(B)]


def test_each_keeps_its_own_pace() -> None:
    now, sizes, _ = drive(together(poll(A, 2, 3.0, []), poll(B, 4, 1.0, [])))
    assert now == 6.0
    assert sizes == [2, 1, 1, 2]


def test_it_nests() -> None:
    now, _, notes = drive(together(together(poll(A, 1, 2.0, []), poll(B, 1, 2.0, [])), poll(A, 1, 2.0, [])))
    assert now == 2.0
    assert len(notes) == 3


def test_nothing_is_nothing() -> None:
    assert drive(together()) == (0.0, [], [])
