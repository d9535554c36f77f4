"""The waits of a bring-up (prior-art/linux-kernel.md, 1.2), on a clock that a test turns."""

import pytest

from services.hotplug._bring_up import Readiness, await_device
from shared.pcie import NO_ANSWER, Address, Capabilities, Function, Identity, Value
from shared.pcie import registers as r
from shared.protocol.fabric import Verb
from shared.recovery import Do, Pause

PORT = Function(
    address=Address.parse("0000:00:01.0"),
    kind=r.DeviceType.ROOT_PORT,
    identity=Identity(vendor=1, device=2, class_code=0x060400, revision=0, subsystem=0),
    capabilities=Capabilities(express=0x40),
    secondary=1,
    subordinate=1,
    link_active_reporting=True,
)
DEAF = Function(
    address=PORT.address, kind=PORT.kind, identity=PORT.identity, capabilities=PORT.capabilities, secondary=1
)


def run(port: Function, *, link_at: float, answer_at: float, silence: Value = 0) -> tuple[Readiness, float]:
    """Bring up a card whose link comes at `link_at`, and which answers at `answer_at` (seconds)."""
    now = 0.0
    logic = await_device(port, link_s=1.0, vendor_id_s=1.0)
    sent: object = None
    while True:
        try:
            effect = logic.send(sent)
        except StopIteration as end:
            return end.value, now
        if isinstance(effect, Pause):
            now += effect.seconds
            sent = now
        else:
            assert isinstance(effect, Do)
            (operation,) = effect.operations
            if operation.verb is Verb.ENUMERATE:
                sent = (1 if now >= answer_at else silence,)
            else:
                sent = (int(r.LinkStatus.LINK_ACTIVE) if now >= link_at else 0,)


def test_a_quick_card_takes_120_ms() -> None:
    readiness, took = run(PORT, link_at=0.0, answer_at=0.0)
    assert readiness is Readiness.READY
    assert took == pytest.approx(0.12)


def test_a_slow_card_is_awaited_for_a_second_after_its_link() -> None:
    readiness, took = run(PORT, link_at=0.9, answer_at=1.9)
    assert readiness is Readiness.READY
    assert 1.9 <= took <= 2.12


def test_no_link_within_its_bound() -> None:
    readiness, took = run(PORT, link_at=5.0, answer_at=5.0)
    assert readiness is Readiness.NO_LINK
    assert took == pytest.approx(1.02, abs=0.03)


@pytest.mark.parametrize("silence", [0, NO_ANSWER])
def test_p9_no_answer_is_not_yet_until_the_bound(silence: Value) -> None:
    readiness, took = run(PORT, link_at=0.0, answer_at=9.0, silence=silence)
    assert readiness is Readiness.NO_ANSWER
    assert took == pytest.approx(1.12, abs=0.03)


def test_a_port_that_does_not_report_its_link_gets_the_whole_wait() -> None:
    readiness, took = run(DEAF, link_at=9.0, answer_at=0.0)
    assert readiness is Readiness.READY
    assert took == pytest.approx(1.12)
