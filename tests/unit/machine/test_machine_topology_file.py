"""The topology file: every mistake is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.machine import MachineError, load, parse

ROOT = 'address = "0000:00:01.0"\nkind = "root_port"\nvendor = 1\ndevice = 2\nbus = [1, 4]'
DISK = 'address = "0000:01:00.0"\nkind = "endpoint"\nvendor = 1\ndevice = 2'

BRIDGE = 'address = "0000:01:00.0"\nkind = "pci_bridge"\nvendor = 1\ndevice = 2\nbus = [2, 2]'
PCI = 'address = "0000:02:00.0"\nkind = "conventional"\nvendor = 1\ndevice = 2'
COLLECTOR = 'address = "0000:00:0b.0"\nkind = "event_collector"\nvendor = 1\ndevice = 2\ncollects = ["0000:00:0c.0"]'
INTEGRATED = 'address = "0000:00:0c.0"\nkind = "integrated_endpoint"\nvendor = 1\ndevice = 2'


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
        (file(ROOT, DISK.replace("1:00.0", "1:01.0")), "0000:01:01.0: a link has one device, number 0"),
        (file(ROOT, DISK + "\nlink_active_reporting = false"), "link_active_reporting belongs to root ports and"),
        (file(ROOT + "\nslot = {}\nlink_active_reporting = false"), "a hotplug slot needs link_active_reporting"),
        (file(ROOT, DISK + "\nrrs_visibility = false"), "rrs_visibility belongs to root ports"),
        (file(ROOT + "\nari = true"), "ari belongs to endpoints, this is an root_port"),
        (file(ROOT, DISK + "\nsriov = {total = 2, device = 3, enabled = 3}"), "enabled at most total"),
        (file(ROOT, DISK + "\nsriov = {total = 2, device = 3, stride = 0}"), "sriov needs total, offset and stride from 1"),
        (file(ROOT, DISK + "\nsriov = {total = 8, device = 3}"), "would be number 8; without ari there are 7"),
        (file(ROOT, DISK + "\nari = true\nsriov = {total = 8, device = 3, offset = 250}"), "number 257; the bus ends"),
        (file(ROOT, DISK + "\nsriov = {total = 2, device = 3}", DISK.replace("00.0", "00.2")), "in the place of 0000:01:00.2"),
        (file(ROOT, DISK + "\nmsi_x = 4"), "msi_x is a number of vectors up to 2048, and needs a bar"),
        (file(ROOT, BRIDGE, PCI, PCI.replace("02:00", "02:05") + "\nserial = 1"), "02:05.0: serial belongs to functions that"),
        (file(ROOT, BRIDGE, PCI + "\nflr = true"), "0000:02:00.0: flr belongs to functions that speak PCI Express"),
        (file(ROOT, DISK.replace("endpoint", "conventional")), "a conventional cannot be under 0000:00:01.0"),
        (file(COLLECTOR), "0000:00:0b.0: collects 0000:00:0c.0, which is no integrated_endpoint"),
        (file(COLLECTOR, ROOT.replace("01.0", "0c.0")), "collects 0000:00:0c.0, which is no integrated_endpoint"),
        (file(COLLECTOR.replace("00:0b", "40:0b"), INTEGRATED), "collects 0000:00:0c.0, which is on another bus"),
        (file(COLLECTOR, COLLECTOR.replace("0b.0", "0a.0"), INTEGRATED), "reports to 0000:00:0b.0 already"),
        (file(INTEGRATED + '\ncollects = []\nunder = "0000:00:01.0"'), "an? integrated_endpoint stands on a root bus"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(text: str, complaint: str) -> None:
    with pytest.raises(MachineError, match=complaint):
        parse(text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"bench\.toml cannot be read"):
        load(tmp_path / "bench.toml")
