"""The topology file: every mistake is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.machine import MachineError, load, parse

ROOT = 'address = "0000:00:01.0"\nkind = "root_port"\nvendor = 1\ndevice = 2\nbus = [1, 4]'
DISK = 'address = "0000:01:00.0"\nkind = "endpoint"\nvendor = 1\ndevice = 2'


def file(*functions: str) -> str:
    return "\n".join(f"[[function]]\n{function}" for function in functions)


def test_the_parent_follows_from_the_bus() -> None:
    _, disk = parse(file(ROOT, DISK)).function
    assert str(disk.under) == "0000:00:01.0"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[function]", "not valid TOML"),
        (file(ROOT.replace("vendor = 1\n", "")), r"missing required field `vendor` - at `\$.function\[0\]`"),
        (file(ROOT, DISK + "\nvendr = 1"), r"unknown field `vendr` - at `\$.function\[1\]`"),
        (file(ROOT, DISK + '\ndriver = {name = "x", error_detected = "maybe"}'), r"\$.function\[1\].driver"),
        (file(ROOT.replace("0000:00:01.0", "1.0")), "'1.0' is not a PCI address"),
        (file(ROOT, DISK, DISK), "two functions at 0000:01:00.0"),
        (file(ROOT.replace("bus = [1, 4]", "")), "0000:00:01.0: a root_port needs bus"),
        (file(ROOT.replace("[1, 4]", "[4, 1]")), "0000:00:01.0: a root_port needs bus"),
        (file(ROOT, DISK + "\nbus = [2, 2]"), "0000:01:00.0: bus belongs to bridges"),
        (file(ROOT, DISK + "\nslot = {}"), "0000:01:00.0: slot belongs to root ports"),
        (file(ROOT, DISK + "\ndpc = true"), "0000:01:00.0: dpc belongs to root ports"),
        (file(ROOT, DISK + '\nunder = "0000:00:02.0"'), "there is no function 0000:00:02.0"),
        (file(ROOT, DISK.replace("0000:01:", "0000:07:")), "no bridge has the secondary bus 0x07"),
        (
            file(ROOT, DISK, DISK.replace("endpoint", "downstream_port").replace("1:00.0", "1:01.0") + '\nbus = [2, 2]\nunder = "0000:01:00.0"'),
            "a downstream_port cannot be under 0000:01:00.0, an endpoint",
        ),
        (file(ROOT, ROOT.replace("01.0", "02.0").replace("[1, 4]", "[3, 5]")), "bus 0x03 belongs to 0000:00:01.0"),
        (file(ROOT, DISK + "\nbars = [0x3000]"), "bar size 0x3000 is no power of two"),
        (file(ROOT, DISK + '\nserial = "00-11"'), "serial '00-11' is not eight bytes"),
        (file(ROOT + "\npresent = false"), "can be absent, not a root_port"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(text: str, complaint: str) -> None:
    with pytest.raises(MachineError, match=complaint):
        parse(text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"bench\.toml cannot be read"):
        load(tmp_path / "bench.toml")
