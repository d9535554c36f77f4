"""Reading trees shaped like /sys/bus/pci/devices. Nothing in them is ever written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.console.audit._checks import Image, judge
from services.console.audit._sysfs import TreeError, read
from shared.pcie import registers as reg
from tests.unit.console.audit.audit_images import EXPRESS, PORT, cut, drive, port


def put(root: Path, image: Image, *, driver: str | None = None, services: dict[str, str | None] | None = None) -> Path:
    """Write one function as the kernel shows it: a link in the bus's directory to the device's own."""
    own = root.parent / "devices" / str(image.address)
    own.mkdir(parents=True)
    (own / "config").write_bytes(image.config)
    if driver is not None:
        (own / "driver").symlink_to(root.parent / "drivers" / driver)
    for service, bound in (services or {}).items():
        (own / f"{image.address}:{service}").mkdir()
        if bound is not None:
            (own / f"{image.address}:{service}" / "driver").symlink_to(root.parent / "drivers" / bound)
    root.mkdir(exist_ok=True)
    (root / str(image.address)).symlink_to(own)
    return own


def test_a_tree_of_links_is_read_and_a_healthy_one_is_clean(tmp_path: Path) -> None:
    root = tmp_path / "bus"
    put(root, port(), driver="pcieport")
    put(root, drive(), driver="nvme")
    found = read(root)
    assert [image.config for image in found.images] == [port().config, drive().config]
    assert [finding for image in found.images for finding in judge(image)] == []


def test_directories_instead_of_links_will_do(tmp_path: Path) -> None:
    directory = tmp_path / str(PORT)
    directory.mkdir()
    (directory / "config").write_bytes(port().config)
    (directory / "resource").write_text("0x0 0x0 0x0\n")
    (image,) = read(tmp_path).images
    assert image.config == port().config


@pytest.mark.parametrize(
    ("driver", "services", "check"),
    [
        pytest.param(None, {}, "interrupts_off_undriven", id="no driver"),
        pytest.param("pcieport", {}, "interrupts_off", id="a driver"),
        pytest.param("pcieport", {"pcie001": "pcie_pme", "pcie004": "pciehp"}, "interrupts_off", id="pciehp"),
        pytest.param("pcieport", {"pcie204": "pciehp"}, "interrupts_off", id="pciehp of a switch port"),
        pytest.param("pcieport", {"pcie001": "pcie_pme", "pcie004": None}, "interrupts_off_undriven", id="unbound"),
        pytest.param("pcieport", {"pcie001": "pcie_pme"}, "interrupts_off_undriven", id="firmware owns the slots"),
    ],
)
def test_interrupts_that_are_off_are_a_note_where_no_hotplug_driver_is_bound(
    tmp_path: Path, driver: str | None, services: dict[str, str | None], check: str
) -> None:
    put(tmp_path / "bus", port({(reg.SLOT_CONTROL, EXPRESS): 0x1018}), driver=driver, services=services)
    (image,) = read(tmp_path / "bus").images
    assert [finding.check for finding in judge(image)] == [check]


def test_what_who_is_not_root_can_read_is_said_to_be_too_little(tmp_path: Path) -> None:
    put(tmp_path / "bus", cut(port(), 64), driver="pcieport")
    (image,) = read(tmp_path / "bus").images
    (note,) = judge(image)
    assert "64 bytes are not enough bytes to judge slot, link, AER" in note.why


def test_functions_that_cannot_be_read_are_told_and_the_others_are_judged(tmp_path: Path) -> None:
    root = tmp_path / "bus"
    put(root, port(), driver="pcieport")
    (root / "0000:02:00.0").symlink_to(tmp_path / "nowhere")
    (root / "0000:03:00.0").mkdir()
    for name, content in (("0000:04:00.0", b""), ("0000:05:00.0", bytes(4097))):
        (root / name).mkdir()
        (root / name / "config").write_bytes(content)
    (root / "0000:06:00.0").mkdir()
    os.mkfifo(root / "0000:06:00.0" / "config")  # who opens it would wait for ever
    (root / "10000:e1:00.0").mkdir()
    (root / "10000:e1:00.0" / "config").write_bytes(bytes(4096))
    found = read(root)
    assert [image.address for image in found.images] == [PORT]
    assert found.unread["0000:02:00.0"] == found.unread["0000:03:00.0"] == "it has no file `config`"
    assert found.unread["0000:04:00.0"] == "`config` is empty"
    assert found.unread["0000:05:00.0"] == "`config` has more than 4096 bytes"
    assert found.unread["0000:06:00.0"] == "it has no file `config`"
    assert "not a PCI address" in found.unread["10000:e1:00.0"]


def test_a_config_that_is_forbidden_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "bus", port())
    before = Path.open

    def forbidden(self: Path, *arguments: object, **options: object) -> object:
        if self.name == "config":
            raise PermissionError(13, "Permission denied")
        return before(self, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(TreeError, match=r"not one of 1 functions can be read.*Permission denied"):
        read(tmp_path / "bus")


def test_what_is_no_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match="there is no such directory"):
        read(tmp_path / "nowhere")
    with pytest.raises(TreeError, match="it has no functions: name a directory like /sys/bus/pci/devices"):
        read(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(TreeError, match="no directory"):
        read(tmp_path / "file")


def test_p10_nothing_is_written(tmp_path: Path) -> None:
    own = put(tmp_path / "bus", port({(reg.SLOT_CONTROL, EXPRESS): 0}), driver="pcieport")
    (own / "config").chmod(0o400)
    before = (own / "config").stat().st_mtime_ns
    read(tmp_path / "bus")
    assert (own / "config").stat().st_mtime_ns == before
