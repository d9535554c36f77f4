"""The plan: what is injected, what the machine looks like, and how each fact is known (DESIGN 8)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from services.console import _kernel_log as kernel_log
from services.console._kernel_log import LogError
from services.console._replay_facts import Source
from services.console._replay_plan import Plan, plan
from shared.pcie import Address
from shared.protocol.requests import Injection

DATA = Path(kernel_log.__file__).parent / "data"
DMESG = Path(__file__).parent / "dmesg"


def planned(path: Path) -> Plan:
    return plan(kernel_log.load(path))


def functions(of: Plan) -> dict[str, dict[str, Any]]:
    return {function["address"]: function for function in tomllib.loads(of.topology)["function"]}


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

    assert {address: function.get("under") for address, function in found.items()} == {
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


def test_a_firmware_first_host_is_replayed_with_native_dpc_and_that_is_said() -> None:
    replay = planned(DATA / "01.txt")

    assert [(step.inject.what, step.inject.names) for step in replay.steps] == [(Injection.ERROR, ("MalfTLP",))]
    assert "2: the host is firmware first (EDR)" in told(replay, Source.ASSUMED)


def test_without_a_line_at_its_end_a_callback_lasts_until_the_next_at_most() -> None:
    inferred = told(planned(DATA / "01.txt"), Source.INFERRED)

    assert "11: 0000:ab:00.0 nvme: error_detected takes at most 0.392 s and votes need_reset" in inferred


def test_log_07_is_rp_pio_above_nested_slots_and_its_second_containment_is_the_kernels_own() -> None:
    replay = planned(DMESG / "07.txt")

    assert [(step.inject.what, step.inject.reason, step.line) for step in replay.steps] == [
        (Injection.DPC, "rp_pio", 2)
    ]
    assert {str(function) for function in replay.functions} == {
        "0000:69:00.0",
        "0000:6a:00.0",
        "0000:6c:00.0",
        "0000:6e:00.0",
    }
    assert set(replay.registered) > set(replay.functions), "the switch below the root port is registered, too"
    assert replay.above[Address.parse("0000:69:00.0")] == (
        Address.parse("0000:68:00.0"),
        Address.parse("0000:66:08.0"),
        Address.parse("0000:64:02.0"),
    )
    assert "0000:72:1c.0 is left out: the log does not say where it hangs" in told(replay, Source.INFERRED)


def test_surprise_down_is_the_loss_of_the_link_and_is_injected_as_such() -> None:
    replay = planned(DMESG / "08.txt")

    assert [(step.inject.what, str(step.inject.target)) for step in replay.steps] == [
        (Injection.LINK_DOWN, "0000:00:01.4")
    ]
    assert "7: the link below 0000:00:01.4 goes down and stays down" in told(replay, Source.INFERRED)


def test_a_long_gap_is_compressed_and_that_is_said() -> None:
    replay = planned(DMESG / "18.txt")

    assert [step.after_s for step in replay.steps] == [0.0, 1.0]
    assert "6: the gap of 103.9 s before line 6 is compressed to 1 s" in told(replay, Source.ASSUMED)


def test_a_driver_without_callbacks_is_one_without_callbacks() -> None:
    assert functions(planned(DMESG / "18.txt"))["0000:02:00.0"]["driver"] == {"name": "nvidia", "callbacks": False}


def test_a_log_of_conclusions_alone_is_unsupported() -> None:
    with pytest.raises(LogError, match=r"15\.txt: unsupported: no containment"):
        planned(DMESG / "15.txt")


def test_an_endpoint_that_reports_without_any_port_in_the_log_gets_a_root_port() -> None:
    text = (
        "nvme 0000:01:00.0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer, (Requester ID)\n"
        "nvme 0000:01:00.0:   device [144d:a808] error status/mask=00004000/00000000\n"
        "nvme 0000:01:00.0:    [14] CmpltTO                (First)\n"
    )

    replay = plan(kernel_log.parse(text, "one.log"))

    assert [(step.inject.what, str(step.inject.target)) for step in replay.steps] == [(Injection.ERROR, "0000:01:00.0")]
    assert functions(replay)["0000:00:01.0"]["kind"] == "root_port"
    assert functions(replay)["0000:01:00.0"]["under"] == "0000:00:01.0"


def test_a_port_that_is_contained_without_a_card_in_the_log_gets_one() -> None:
    text = "pcieport 0000:00:01.0: DPC: containment event, status:0x1f05 source:0x0100\n"

    replay = plan(kernel_log.parse(text, "port.log"))

    assert [str(function) for function in replay.functions] == ["0000:01:00.0"]
    assert replay.steps[0].inject.reason == "err_fatal"
    assert replay.steps[0].inject.source == Address.parse("0000:01:00.0")
