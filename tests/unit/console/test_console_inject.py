from __future__ import annotations

from pathlib import Path

import pytest

from services.console._exit import ExitCode, Failure
from services.console._inject import card_fields, check_times, driver_fields, from_fields, from_file, header_words
from shared.pcie import Address
from shared.protocol.requests import Injection


def test_a_tlp_header_is_four_doublewords_in_hexadecimal() -> None:
    assert header_words("04000001 0000000f,01000000 0") == (0x0400_0001, 0xF, 0x0100_0000, 0)
    assert header_words(None) == ()


@pytest.mark.parametrize("text", ["", "1 2 3", "1 2 3 100000000", "1 2 3 x", "1 2 3 4 5"])
def test_a_malformed_tlp_header_is_a_usage_error(text: str) -> None:
    with pytest.raises(Failure, match="write four doublewords") as failed:
        header_words(text)
    assert failed.value.code is ExitCode.USAGE


def test_cards_and_drivers_take_the_fields_of_the_topology_file() -> None:
    assert card_fields(['0.serial="00-11"', "0.device=0x1234", "1.revision=2"]) == {
        "0": {"serial": "00-11", "device": 0x1234},
        "1": {"revision": 2},
    }
    assert driver_fields(["slot_reset=disconnect", "delay_s={error_detected = 2.5}", "callbacks=false"]) == {
        "slot_reset": "disconnect",
        "delay_s": {"error_detected": 2.5},
        "callbacks": False,
    }


@pytest.mark.parametrize("setting", ["serial=1", "x.serial=1", "0.serial", "0.=1"])
def test_a_malformed_card_is_a_usage_error(setting: str) -> None:
    with pytest.raises(Failure, match="write "):
        card_fields([setting])


def test_a_file_of_injections_is_read_in_order(tmp_path: Path) -> None:
    file = tmp_path / "story.toml"
    file.write_text(
        '[[inject]]\nwhat = "error"\ntarget = "0000:3b:00.0"\nnames = ["MalfTLP"]\n'
        '[[inject]]\nwhat = "remove"\ntarget = "0000:00:02.0"\nafter_s = 0.5\n'
    )
    first, second = from_file(file)
    assert (first.what, first.target, first.names) == (Injection.ERROR, Address.parse("3b:00.0"), ("MalfTLP",))
    assert (second.what, second.after_s) == (Injection.REMOVE, 0.5)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("inject = 1", r"must hold \[\[inject\]\] tables"),
        ('[[inject]]\nwhat = "remove"\ntarget = "nowhere"', "table 1: .*nowhere"),
        ('[[inject]]\nwhat = "explode"\ntarget = "0:0.0"', r"table 1: .*explode"),
        ('[[inject]]\nwhat = "remove"\ntarget = "00:02.0"\nwhen = 1', "table 1: .*when"),
        ("[[inject", "story.toml"),
    ],
)
def test_a_malformed_file_is_a_usage_error_that_names_the_place(tmp_path: Path, content: str, named: str) -> None:
    file = tmp_path / "story.toml"
    file.write_text(content)
    with pytest.raises(Failure, match=named) as failed:
        from_file(file)
    assert failed.value.code is ExitCode.USAGE


def test_an_unknown_field_is_named_together_with_the_injection() -> None:
    with pytest.raises(Failure, match=r"inject remove 00:02\.0: .*count"):
        from_fields({"what": "remove", "target": "00:02.0", "count": "many"}, "inject remove 00:02.0")


@pytest.mark.parametrize(("option", "field"), [("--after", "after_s"), ("--for", "for_s")])
@pytest.mark.parametrize("seconds", [float("inf"), float("nan")], ids=["inf", "nan"])
def test_a_time_that_is_none_is_a_usage_error(option: str, field: str, seconds: float) -> None:
    with pytest.raises(Failure, match=f"{option} {seconds:g}: give a number of seconds") as failed:
        check_times({"after_s": 0.0, "for_s": None, field: seconds})
    assert failed.value.code is ExitCode.USAGE
