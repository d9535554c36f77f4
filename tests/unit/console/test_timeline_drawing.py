"""A recovery as a drawing: pure, to scale, within the terminal's width; and as a Chrome trace."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.console._lease_facts import last_recovery
from services.console._timeline import Timeline, beside, build, chrome_trace, draw
from shared.pcie import Address
from shared.protocol.facts import Fact, What

PORT = Address.parse("0004:00:00.0")
FIRST = Address.parse("0004:01:00.0")
SECOND = Address.parse("0004:01:00.1")
FAR = Address.parse("0000:7f:00.0")
BEGIN = datetime(2024, 11, 22, 10, 0, 0, tzinfo=UTC)


def fact(what: What, at_s: float, *, port: Address = PORT, lease: str | None = "L1", **data: Any) -> Fact:
    return Fact(
        what=what, host="lab", port=port, service="x", seq=1, at=BEGIN + timedelta(seconds=at_s), lease=lease, data=data
    )


def recovery() -> list[Fact]:
    return [
        fact(What.CONTAINMENT_ENTERED, 0.0, lease=None, reason="uncorrectable"),
        fact(What.LEASE_OPENED, 0.1),
        fact(What.LEASE_MASKED, 0.1),
        fact(What.RECOVERY_STARTED, 0.1, functions=[str(PORT)], reach="reset"),
        fact(What.RECOVERY_STEP, 0.1, step="error_detected"),
        fact(What.RECOVERY_VOTE, 2.5, function=str(FIRST), step="error_detected", vote="need_reset", took_s=2.4),
        fact(What.RECOVERY_VOTE, 4.9, function=str(SECOND), step="error_detected", vote="need_reset", took_s=2.4),
        fact(What.RECOVERY_STEP, 4.9, step="forward"),
        fact(What.CONTAINMENT_RELEASED, 5.0),
        fact(What.RECOVERY_STEP, 5.4, step="close"),
        fact(What.LEASE_UNMASKED, 5.5),
        fact(What.LEASE_CLOSED, 5.5),
        fact(What.RECOVERY_CLOSED, 5.5, verdicts={str(FIRST): "kept"}),
        fact(What.DEVICE_KEPT, 5.6, lease=None),
        fact(What.LINK_DOWN, 0.2, port=FAR, lease=None),
        fact(What.RECOVERY_STARTED, 900.0, lease="L2"),
    ]


def timeline() -> Timeline:
    built = build(recovery(), "L1")
    assert built is not None
    return built


def lane(name: str) -> list[tuple[float, float, str]]:
    (found,) = [lane for lane in timeline().lanes if lane.name == name]
    return [(round(bar.start, 3), round(bar.end, 3), bar.text) for bar in found.bars]


def test_the_last_recovery_is_the_one_that_started_last() -> None:
    assert last_recovery(recovery()) == "L2"
    assert last_recovery([]) is None


def test_a_lease_that_no_fact_names_has_no_timeline() -> None:
    assert build(recovery(), "L9") is None


def test_time_begins_with_the_containment_that_no_lease_names_yet() -> None:
    assert timeline().started == BEGIN
    assert timeline().length_s == pytest.approx(5.6)


def test_facts_of_other_ports_and_other_times_are_left_out() -> None:
    assert not [lane for lane in timeline().lanes if str(FAR) in lane.name]


def test_mask_containment_and_lease_are_bars_from_their_beginning_to_their_end() -> None:
    assert lane(f"mask {PORT}") == [(0.1, 5.5, "")]
    assert lane(f"lease {PORT}") == [(0.1, 5.5, "")]
    assert lane(f"containment {PORT}") == [(0.0, 5.0, "uncorrectable")]


def test_a_callback_is_a_bar_that_ends_with_its_vote() -> None:
    assert lane(f"{FIRST} error_detected") == [(0.1, 2.5, "need_reset")]
    assert lane(f"{SECOND} error_detected") == [(2.5, 4.9, "need_reset")]


def test_a_step_lasts_until_the_next_one() -> None:
    assert lane("step error_detected") == [(0.1, 4.9, "")]
    assert lane("step forward") == [(4.9, 5.4, "")]
    assert lane("step close") == [(5.4, 5.5, "")]


def test_what_is_not_over_is_drawn_to_the_end_and_said() -> None:
    """P10: a mask without its end must be seen."""
    built = build([fact(What.LEASE_MASKED, 0.0), fact(What.RECOVERY_STEP, 2.0, step="forward")], "L1")
    assert built is not None

    lines = draw(built, 80)

    assert next(line for line in lines if line.startswith(f"mask {PORT}")).endswith("2.00 s, not over")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(len(line) for line in draw(timeline(), width)) <= width


def test_bars_are_to_scale() -> None:
    lines = draw(timeline(), 160)
    length = {line.split("  ")[0].strip(): line.count("━") for line in lines[1:]}

    mask, first = length[f"mask {PORT}"], length[f"{FIRST} error_detected"]
    assert first / mask == pytest.approx(2.4 / 5.4, abs=0.03)


def test_the_two_callbacks_follow_each_other_on_the_page() -> None:
    lines = draw(timeline(), 160)
    first, second = (next(line for line in lines if line.startswith(f"{f} error")) for f in (FIRST, SECOND))

    assert abs(second.index("━") - first.rindex("━")) <= 1


def test_the_axis_counts_seconds() -> None:
    assert "0 s" in draw(timeline(), 120)[0]
    assert "5 s" in draw(timeline(), 120)[0]


def test_a_terminal_without_line_characters_gets_ascii() -> None:
    assert all(line.isascii() for line in draw(timeline(), 120, ascii_only=True))


def test_the_chrome_trace_holds_every_bar_in_microseconds_on_a_named_row() -> None:
    trace = chrome_trace(timeline())
    events = trace["traceEvents"]

    rows = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    (mask,) = [event for event in events if event["ph"] == "X" and event["name"] == f"mask {PORT}"]
    assert (mask["ts"], mask["dur"]) == (100_000, 5_400_000)
    assert rows[mask["tid"]] == f"mask {PORT}"
    (kept,) = [event for event in events if event["ph"] == "i"]
    assert kept["ts"] == 5_600_000


def test_one_mask_of_many_slots_ends_slot_by_slot() -> None:
    slots = [{"port": str(PORT)}, {"port": str(FAR)}]
    built = build(
        [
            fact(What.LEASE_MASKED, 0.0, slots=slots),
            fact(What.LEASE_UNMASKED, 1.0, port=FAR),
            fact(What.LEASE_UNMASKED, 2.0),
        ],
        "L1",
    )
    assert built is not None

    assert {lane.name: lane.bars[0].end for lane in built.lanes} == {f"mask {PORT}": 2.0, f"mask {FAR}": 1.0}


def test_a_function_without_a_driver_has_no_row() -> None:
    built = build([fact(What.RECOVERY_VOTE, 0.0, function=str(FIRST), step="resume", vote="none", driver=None)], "L1")
    assert built is not None

    assert built.lanes == ()


def test_what_another_kernel_did_stands_beside_at_the_same_scale() -> None:
    drawn = beside(timeline(), "that kernel", ((4.2, "Link Down"), (9.0, "recovery failed")))

    assert drawn.length_s == 9.0
    assert [lane.name for lane in drawn.lanes[-2:]] == ["that kernel: Link Down", "that kernel: recovery failed"]
    assert draw(drawn, 100)[-1].endswith("at 9.00 s")
