"""Reading dumps of `lspci -xxxx`, whole, decoded, cut and broken."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from services.console.audit._checks import judge
from services.console.audit._lspci import DumpError, parse
from shared.pcie import Address
from shared.pcie import registers as reg
from tests.unit.console.audit.audit_images import DRIVE, EXPRESS, PORT, cut, drive, dumped, port

ROWS = "".join(f"{at:02x}: {bytes(16).hex(' ')}\n" for at in range(0, 64, 16))  # a header, as lspci -x writes it
DUMP = dumped(port(), drive())


def test_a_dump_is_read_as_it_was_written() -> None:
    read = parse(DUMP)
    assert [(image.address, image.config) for image in read.images] == [
        (PORT, port().config),
        (DRIVE, drive().config),
    ]
    assert read.unread == {}
    assert all(image.hotplug_driver is None for image in read.images)


@pytest.mark.skipif(shutil.which("lspci") is None, reason="lspci is not installed")
@pytest.mark.parametrize("options", ["-xxxx", "-D -xxxx", "-n -xxxx", "-vvv -xxxx", "-t -v -xxxx"])
def test_what_the_real_lspci_writes_is_read(options: str) -> None:
    """Given a dump, lspci writes it again: with its own names, and its decoding between header and bytes."""
    ran = subprocess.run(
        ["lspci", "-F", "/dev/stdin", *options.split()], input=DUMP, capture_output=True, text=True, check=True
    )
    if "-t" in options:
        with pytest.raises(DumpError):
            parse(ran.stdout)
        return
    assert [image.config for image in parse(ran.stdout).images] == [port().config, drive().config]


def test_lines_end_as_they_may_and_what_is_no_dump_is_skipped() -> None:
    noisy = "pcilib: sysfs_read_vpd: read failed\n\n" + DUMP.replace("\n", "\r\n") + "\n\ndone.\n"
    assert parse(noisy).images == parse(DUMP).images


def test_a_tampered_byte_is_found() -> None:
    """As `setpci -s 00:01.0 CAP_EXP+18.w=0` would have left it."""
    tampered = parse(dumped(port({(reg.SLOT_CONTROL, EXPRESS): 0}), drive()))
    assert [finding.check for image in tampered.images for finding in judge(image)] == ["interrupts_off", "masked"]


@pytest.mark.parametrize("length", [64, 256])
def test_a_dump_with_fewer_bytes_is_read_as_far_as_it_goes(length: int) -> None:
    (image,) = parse(dumped(cut(port(), length))).images
    assert len(image.config) == length


def test_a_domain_that_only_vmd_has_is_told_and_the_rest_is_read() -> None:
    read = parse(DUMP + "\n10000:e1:00.0 Non-Volatile memory controller\n" + ROWS)
    assert [image.address for image in read.images] == [PORT, DRIVE]
    assert "10000:e1:00.0" in read.unread["10000:e1:00.0"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "there is no function in it", id="empty"),
        pytest.param("hello\nworld\n", "there is no function in it", id="garbage"),
        pytest.param("\x00\x01\ufffd\ufffd" * 100, "there is no function in it", id="binary"),
        pytest.param("00:01.0 PCI bridge: Intel\n01:00.0 NVMe\n", "has no bytes of them", id="lspci without -x"),
        pytest.param("00: 86 80\n", "line 1: bytes of no function", id="rows alone"),
        pytest.param("00:01.0 x\n00: 86 8\n", "line 2: '86 8' is not", id="cut in a byte"),
        pytest.param("00:01.0 x\n00: 86 zz\n", "line 2: '86 zz' is not", id="no hexadecimal"),
        pytest.param("00:01.0 x\n00: " + "00 " * 17, "is not up to sixteen bytes", id="too many in a row"),
        pytest.param(
            "00:01.0 x\n00: 86 80\n20: 00\n", "line 3: 00:01.0 goes on at 0x20 after 0x2 bytes", id="a row is missing"
        ),
        pytest.param(
            dumped(cut(port(), 592), drive()), "line 38: 00:01.0 ends after 592 bytes: the dump is cut off", id="cut"
        ),
        pytest.param(dumped(port(), cut(drive(), 2048)), "01:00.0 ends after 2048 bytes", id="cut at the end"),
        pytest.param(DUMP + DUMP, "0000:00:01.0 was there already in line 1".removeprefix("0000:"), id="two dumps"),
    ],
)
def test_what_is_no_dump_is_refused_by_its_line(text: str, said: str) -> None:
    with pytest.raises(DumpError) as refused:
        parse(text)
    assert said in str(refused.value)


def test_more_than_4096_bytes_are_refused() -> None:
    row = "00 " * 15 + "00"
    rows = "".join(f"{at:02x}: {row}\n" for at in range(8, 4096, 16))
    with pytest.raises(DumpError, match=r"line 258: 00:01\.0 has more than 4096 bytes"):
        parse(f"00:01.0 x\n00: {row[:23]}\n{rows}")


def test_addresses_may_have_their_domain() -> None:
    (image,) = parse("0001:3B:00.0 x\n" + ROWS).images
    assert image.address == Address.parse("0001:3b:00.0")
