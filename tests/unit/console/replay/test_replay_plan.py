"""The plan: what is injected, what the machine looks like, and how each fact is known (DESIGN 8)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from services.console import kernel_log
from services.console.kernel_log import LogError
from services.console.replay._facts import Source
from services.console.replay._plan import Plan, plans
from services.console.replay._steps import Ending
from shared.pcie import Address
from shared.protocol.requests import Injection
from tests.unit.console.logs import DATA, DMESG


def planned(path: Path) -> Plan:
    (only,) = plans(kernel_log.load(path))
    return only


def read(text: str) -> Plan:
    (only,) = plans(kernel_log.parse(text, "some.log"))
    return only


def functions(of: Plan) -> dict[str, dict[str, Any]]:
    return {function["address"]: function for function in tomllib.loads(of.topology)["function"]}


def under(of: Plan) -> dict[str, str | None]:
    return {address: function.get("under") for address, function in functions(of).items()}


def happens(of: Plan) -> list[tuple[Injection, str]]:
    return [(step.inject.what, str(step.inject.target)) for step in of.steps]


def told(of: Plan, source: Source) -> str:
    return "\n".join(f"{fact.line}: {fact.what}" for fact in of.facts if fact.source is source)


def test_log_03_is_one_error_at_the_port_that_its_registers_name() -> None:
    replay = planned(DATA / "03.txt")

    (step,) = replay.steps
    assert step.inject.what is Injection.ERROR
    assert step.inject.target == Address.parse("0004:00:00.0")
    assert step.inject.names == ("CmpltAbrt",)
    assert step.inject.severity == "nonfatal"
    assert step.inject.header == (0x60008010, 0x010000FF, 0x00001000, 0x9C4C0000)


def test_log_03_is_a_root_port_with_dpc_and_a_slot_and_two_slow_functions() -> None:
    found = functions(planned(DATA / "03.txt"))

    assert set(found) == {"0004:00:00.0", "0004:01:00.0", "0004:01:00.1"}
    port = found["0004:00:00.0"]
    assert (port["kind"], port["bus"], port["dpc"], port["slot"]["number"]) == ("root_port", [1, 1], True, 41)
    assert (port["vendor"], port["device"]) == (0x0823, 0x0110)
    first, second = found["0004:01:00.0"], found["0004:01:00.1"]
    assert first["driver"]["delay_s"] == {"error_detected": 2.365}
    assert second["driver"]["delay_s"] == {"error_detected": 2.431}
    assert {first["driver"]["error_detected"], second["driver"]["error_detected"]} == {"need_reset"}
    assert first["serial"] == second["serial"], "one card, one serial number"


def test_the_kernels_conclusions_are_no_inputs() -> None:
    """`Link Down` in line 21 of log 03 is the end of the kernel's 4 s, 1.1 s before the reset that it spoils."""
    replay = planned(DATA / "03.txt")

    assert all(step.inject.what not in {Injection.LINK_DOWN, Injection.REMOVE} for step in replay.steps)
    assert "21: from here on the kernel acts on the hardware: nothing more is injected" in told(replay, Source.INFERRED)


def test_what_no_line_says_is_tagged_as_assumed() -> None:
    assumed = told(planned(DATA / "03.txt"), Source.ASSUMED)

    assert "None: 0004:01:00.0 mlx5_core: slot_reset votes recovered" in assumed
    assert "None: 0004:01:00.1 mlx5_core: slot_reset votes recovered" in assumed
    assert "a link trains within" in assumed


def test_what_a_line_says_carries_its_number() -> None:
    log = told(planned(DATA / "03.txt"), Source.LOG)

    assert "1: 0004:00:00.0 contained by DPC: an unmasked uncorrectable error of its own" in log
    assert "15: 0004:01:00.0 mlx5_core: error_detected takes 2.365 s and votes need_reset" in log
    assert "28: 0004:01:00.1 mlx5_core: error_detected takes 2.431 s and votes need_reset" in log
    assert all(fact.line is not None for fact in planned(DATA / "03.txt").facts if fact.source is Source.LOG)


def test_registers_decide_where_the_text_of_the_log_contradicts_them() -> None:
    inferred = told(planned(DATA / "03.txt"), Source.INFERRED)

    assert "3: the error is CmpltAbrt: the status register says so, although the text says [ 0] ERCR" in inferred


def test_log_01_hangs_the_drive_below_a_switch_whose_upstream_port_is_inferred() -> None:
    replay = planned(DATA / "01.txt")
    found = functions(replay)

    assert under(replay) == {
        "0000:a5:01.0": None,
        "0000:a8:00.0": "0000:a5:01.0",
        "0000:a9:10.0": "0000:a8:00.0",
        "0000:ab:00.0": "0000:a9:10.0",
    }
    assert found["0000:a5:01.0"]["bus"] == [0xA8, 0xAB]
    assert found["0000:a8:00.0"]["bus"] == [0xA9, 0xAB]
    assert found["0000:a9:10.0"]["bus"] == [0xAB, 0xAB]
    assert found["0000:a9:10.0"]["slot"]["number"] == 272
    assert (found["0000:a9:10.0"]["link"]["speed"], found["0000:a9:10.0"]["link"]["width"]) == (4, 4)
    assert (found["0000:ab:00.0"]["vendor"], found["0000:ab:00.0"]["device"]) == (0x144D, 0xA824)


@pytest.mark.parametrize(("log", "line"), [(DATA / "01.txt", 2), (DMESG / "07.txt", 1)], ids=["01", "07"])
def test_a_firmware_first_host_is_one(log: Path, line: int) -> None:
    replay = planned(log)

    assert tomllib.loads(replay.topology)["firmware_first"] is True
    assert f"{line}: the host is firmware first: containment is reported by EDR" in told(replay, Source.LOG)


def test_a_host_that_handles_containment_itself_is_not_firmware_first() -> None:
    assert "firmware_first" not in tomllib.loads(planned(DATA / "03.txt").topology)


def test_without_a_line_at_its_end_a_callback_lasts_until_the_next_at_most() -> None:
    inferred = told(planned(DATA / "01.txt"), Source.INFERRED)

    assert "11: 0000:ab:00.0 nvme: error_detected takes at most 0.392 s and votes need_reset" in inferred


def test_log_07_is_rp_pio_above_four_slots_and_a_port_that_does_not_come_back() -> None:
    replay = planned(DMESG / "07.txt")

    assert happens(replay) == [(Injection.STUCK_TRAINING, "0000:66:08.0"), (Injection.DPC, "0000:64:02.0")]
    assert replay.steps[1].inject.reason == "rp_pio"
    assert [str(function) for function in replay.functions] == [
        "0000:69:00.0",
        "0000:6a:00.0",
        "0000:6c:00.0",
        "0000:6e:00.0",
        "0000:79:00.0",
    ]
    assert set(replay.registered) > set(replay.functions), "the switches below the root port are registered, too"


def test_log_07_the_drives_hang_beside_the_dead_port_and_mpt3sas_below_it() -> None:
    """Slot(211) spoke (line 14) when 66:08.0 did not answer (line 12); mpt3sas read all ones (line 29)."""
    replay = planned(DMESG / "07.txt")
    found = under(replay)

    assert {slot: found[drive] for drive, slot in (
        ("0000:69:00.0", 211), ("0000:6a:00.0", 210), ("0000:6c:00.0", 208), ("0000:6e:00.0", 206),
    )} == {211: "0000:68:00.0", 210: "0000:68:04.0", 208: "0000:68:0c.0", 206: "0000:68:14.0"}  # fmt: skip
    assert found["0000:67:00.0"] == "0000:66:00.0"
    assert replay.above[Address.parse("0000:79:00.0")] == tuple(
        map(Address.parse, ("0000:78:00.0", "0000:72:1c.0", "0000:66:08.0", "0000:64:02.0"))
    )
    assert functions(replay)["0000:79:00.0"]["driver"]["name"] == "mpt3sas"
    inferred = told(replay, Source.INFERRED)
    assert "14: bus 67 is not below 0000:66:08.0, which did not answer (line 12) when 0000:68:00.0 spoke" in inferred
    assert "29: mpt3sas_cm0 is below 0000:66:08.0: it read all ones after the reset" in inferred
    assert "None: below 0000:68:14.0: 0000:6e:00.0" in inferred
    assumed = told(replay, Source.ASSUMED)
    assert "None: the port above bus 67 is 0000:66:00.0: no line names it" in assumed
    assert "None: mpt3sas_cm0 is 0000:79:00.0: no line names it" in assumed


SWITCH = (
    "pcieport 0000:64:02.0: DPC: containment event, status:0x1f01 source:0x0000",
    "pcieport 0000:66:08.0: can't change power state from D3cold to D0 (config space inaccessible)",
    "pcieport 0000:68:00.0: pciehp: Slot(211): Link Down",
    "nvme 0000:69:00.0: something",
)


def test_a_slot_that_spoke_before_the_port_above_it_died_hangs_below_it() -> None:
    """Only what is said after line 2 tells that 68:00.0 is elsewhere."""
    contained, dead, spoke, drive = SWITCH

    later = under(read(f"{contained}\n{dead}\n{spoke}\n{drive}"))
    before = under(read(f"{spoke}\n{contained}\n{dead}\n{drive}"))

    assert later["0000:67:00.0"] == "0000:66:00.0"
    assert before["0000:67:00.0"] == "0000:66:08.0"


def test_a_bus_outside_the_range_that_was_given_back_does_not_hang_there() -> None:
    """68:00.0 is free and nearest, but behind its switch were only the buses 68 to 69."""
    lines = (
        SWITCH[0],
        "pcieport 0000:66:00.0: pciehp: Slot(1): Link Up",
        "pcieport 0000:66:08.0: pciehp: Slot(2): Link Up",
        "pcieport 0000:68:00.0: pciehp: Slot(211): Link Up",
        "pcieport 0000:68:04.0: pciehp: Slot(210): Link Up",
        "nvme 0000:69:00.0: something",
        "nvme 0000:70:00.0: something",
    )
    given_back = "pci_bus 0000:68: busn_res: [bus 68-69] is released"

    assert under(read("\n".join(lines)))["0000:70:00.0"] == "0000:68:04.0"
    assert under(read("\n".join((*lines, given_back))))["0000:70:00.0"] == "0000:66:08.0"


def test_log_07_what_follows_188_33_is_a_consequence_and_not_injected() -> None:
    replay = planned(DMESG / "07.txt")

    assert {step.line for step in replay.steps} == {2}
    assert "32: what strikes here is a consequence of what the kernel did" in told(replay, Source.INFERRED)


def test_log_07_the_kind_of_rp_pio_error_is_assumed_since_its_status_is_0() -> None:
    replay = planned(DMESG / "07.txt")

    assert replay.steps[1].inject.names == ("memory_timeout",)
    said = "4: rp_pio_status is 0 and does not tell which request failed: memory_timeout"
    assert said in told(replay, Source.ASSUMED)


def test_an_rp_pio_status_names_what_failed() -> None:
    replay = read(
        "pcieport 0000:00:01.0: DPC: containment event, status:0x1f07 source:0x0000\n"
        "pcieport 0000:00:01.0: DPC: rp_pio_status: 0x00010004, rp_pio_mask: 0x00000303\n"
    )

    assert replay.steps[0].inject.names == ("config_timeout", "memory_unsupported")
    assert "2: what failed: config_timeout, memory_unsupported" in told(replay, Source.LOG)


def test_scenario_18_surprise_down_without_return_is_a_card_that_is_pulled_and_its_absence_is_assumed() -> None:
    """Log 08: no timestamps, no presence line. SDES alone decides nothing: that the link stays away is in line 7."""
    replay = planned(DMESG / "08.txt")

    assert happens(replay) == [(Injection.REMOVE, "0000:00:01.4")]
    assert "7: the link below 0000:00:01.4 stays down" in told(replay, Source.INFERRED)
    said = "7: the card below 0000:00:01.4 is out: no line tells of presence, PDS = 0 is taken"
    assert said in told(replay, Source.ASSUMED)


def test_log_15_two_link_downs_and_from_the_second_on_the_link_is_unstable() -> None:
    replay = planned(DMESG / "15.txt")

    assert [(step.line, step.inject.what, step.settled) for step in replay.steps] == [
        (2, Injection.LINK_FLAP, False),
        (11, Injection.UNSTABLE_LINK, True),
        (11, Injection.LINK_FLAP, False),
    ]
    unstable = replay.steps[1].inject
    assert (unstable.for_s, unstable.count) == (0.006, 0), "6 ms after it trained, always"
    port = functions(replay)["0000:00:00.0"]
    assert (port["link"]["speed"], port["link"]["width"]) == (3, 1)
    assert {"slot", "dpc"}.isdisjoint(port)
    assert "driver" not in functions(replay)["0000:01:00.0"]


def test_log_15_says_what_of_it_is_assumed() -> None:
    replay = planned(DMESG / "15.txt")

    assumed = told(replay, Source.ASSUMED)
    assert "11: the gap of 33.1 s before line 11 is compressed to 1 s" in assumed
    assert "14: the link below 0000:00:00.0 falls 6 ms after it trained, every time from here on" in assumed
    assert "2: the host bridge has an interrupt for that; here the port reports Surprise Down (AER)" in assumed
    assert "14: the link below 0000:00:00.0 falls 6 ms after it trained" in told(replay, Source.LOG)
    inferred = told(replay, Source.INFERRED)
    assert "6: from here on the kernel acts on the hardware: nothing is injected before line 11" in inferred
    assert "20: what strikes here is a consequence of what the kernel did" in inferred


def variants(name: str) -> dict[Ending | None, Plan]:
    return {plan.variant: plan for plan in plans(kernel_log.load(DMESG / name))}


def test_log_18_does_not_tell_whether_the_link_returned_so_there_is_a_plan_for_each() -> None:
    found = variants("18.txt")

    assert {ending: happens(plan)[-1] for ending, plan in found.items()} == {
        Ending.RETURNS: (Injection.LINK_FLAP, "0000:00:02.0"),
        Ending.GONE: (Injection.LINK_DOWN, "0000:00:02.0"),
    }
    returns, gone = (told(found[ending], Source.ASSUMED) for ending in Ending)
    assert "6: the link below 0000:00:02.0 comes back; the log does not say" in returns
    assert "6: the link below 0000:00:02.0 stays down; the log does not say" in gone


def test_a_lost_link_that_a_recovery_brought_back_came_back() -> None:
    replay = read(
        "pcieport 0000:00:01.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer, (Receiver ID)\n"
        "pcieport 0000:00:01.0:   device [8086:6f04] error status/mask=00000020/00000000\n"
        "pcieport 0000:00:01.0: AER: device recovery successful\n"
    )

    assert happens(replay) == [(Injection.LINK_FLAP, "0000:00:01.0")]
    assert "3: the link below 0000:00:01.0 comes back" in told(replay, Source.INFERRED)


def test_a_long_gap_is_compressed_and_that_is_said() -> None:
    for replay in variants("18.txt").values():
        assert [(step.after_s, step.settled) for step in replay.steps] == [(0.0, False), (1.0, True)]
        assert "6: the gap of 103.9 s before line 6 is compressed to 1 s" in told(replay, Source.ASSUMED)


def test_a_driver_without_callbacks_is_one_without_callbacks() -> None:
    for replay in variants("18.txt").values():
        assert functions(replay)["0000:02:00.0"]["driver"] == {"name": "nvidia", "callbacks": False}


def test_a_log_of_conclusions_alone_is_unsupported() -> None:
    with pytest.raises(LogError, match=r"some\.log: unsupported: no containment"):
        read("pcieport 0000:00:01.0: AER: device recovery failed\n")


def test_a_log_without_a_pcie_line_is_refused() -> None:
    with pytest.raises(LogError, match=r"some\.log: no PCIe line found; expected the output of `dmesg`"):
        read("milk\nbread\n")


CONTAINED = "pcieport 0000:00:01.0: DPC: containment event, status:0x1f01 source:0x0000"


@pytest.mark.parametrize(
    ("between_s", "injected"),
    [(0.006, [1]), (4.9, [1]), (5.1, [1, 3])],
)
def test_what_strikes_soon_after_a_recovery_is_its_consequence_and_later_a_failure_of_its_own(
    between_s: float, injected: list[int]
) -> None:
    replay = read(
        f"[  100.000000] {CONTAINED}\n"
        "[  101.000000] pcieport 0000:00:01.0: AER: device recovery failed\n"
        f"[{101 + between_s:12.6f}] {CONTAINED}\n"
    )

    assert [step.line for step in replay.steps] == injected


def test_without_timestamps_nothing_after_the_kernels_first_action_is_a_failure_of_its_own() -> None:
    replay = read(f"{CONTAINED}\npcieport 0000:00:01.0: AER: device recovery failed\n{CONTAINED}\n")

    assert [step.line for step in replay.steps] == [1]


def test_an_endpoint_that_reports_without_any_port_in_the_log_gets_a_root_port() -> None:
    text = (
        "nvme 0000:01:00.0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer, (Requester ID)\n"
        "nvme 0000:01:00.0:   device [144d:a808] error status/mask=00004000/00000000\n"
        "nvme 0000:01:00.0:    [14] CmpltTO                (First)\n"
    )

    replay = read(text)

    assert [(step.inject.what, str(step.inject.target)) for step in replay.steps] == [(Injection.ERROR, "0000:01:00.0")]
    assert functions(replay)["0000:00:01.0"]["kind"] == "root_port"
    assert functions(replay)["0000:01:00.0"]["under"] == "0000:00:01.0"


def test_a_port_that_is_contained_without_a_card_in_the_log_gets_one() -> None:
    text = "pcieport 0000:00:01.0: DPC: containment event, status:0x1f05 source:0x0100\n"

    replay = read(text)

    assert [str(function) for function in replay.functions] == ["0000:01:00.0"]
    assert replay.steps[0].inject.reason == "err_fatal"
    assert replay.steps[0].inject.source == Address.parse("0000:01:00.0")
