"""Reads a tree that is shaped like /sys/bus/pci/devices: per function a directory with the file `config`.

Nothing is ever written. A `driver` link names the driver; a service of a port (`0000:00:01.0:pcie004`) that is bound
has one of its own, and tells whether pciehp listens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shared.pcie import Address, AddressError
from shared.pcie.registers import CONFIG_SPACE_SIZE

from ._checks import Image, Readings

_NAME: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_SERVICE: Final = re.compile(r":pcie[0-9a-f]([0-9a-f]{2})$")
_HOTPLUG_SERVICE: Final = 0x04  # PCIE_PORT_SERVICE_HP (linux drivers/pci/pcie/portdrv.h)


class TreeError(ValueError):
    """A directory that is no tree of devices, or of which nothing can be read."""


def read(root: Path) -> Readings:
    """Read every function below `root`. Raises TreeError where there is none, or none that can be read."""
    if not root.is_dir():
        raise TreeError("it is no directory" if root.exists() else "there is no such directory")
    try:
        directories = sorted(entry for entry in root.iterdir() if _NAME.fullmatch(entry.name))
    except OSError as error:
        raise TreeError(f"it cannot be listed: {error.strerror}") from error
    if not directories:
        raise TreeError("it has no functions: name a directory like /sys/bus/pci/devices")
    images: list[Image] = []
    unread: dict[str, str] = {}
    for directory in directories:
        try:
            images.append(_function(directory))
        except TreeError as error:
            unread[directory.name] = str(error)
    if not images:
        first = next(iter(unread))
        raise TreeError(f"not one of {len(unread)} functions can be read; {first}: {unread[first]}")
    return Readings(tuple(images), unread)


def _function(directory: Path) -> Image:
    try:
        address = Address.parse(directory.name)
    except AddressError as error:
        raise TreeError(str(error)) from error
    file = directory / "config"
    if not file.is_file():  # a pipe would be waited for
        raise TreeError("it has no file `config`")
    try:
        with file.open("rb") as opened:
            config = opened.read(CONFIG_SPACE_SIZE + 1)
        return Image(address, _whole(config), _hotplug_driver(directory))
    except OSError as error:
        raise TreeError(f"`config` cannot be read: {error.strerror}") from error


def _whole(config: bytes) -> bytes:
    if not config:
        raise TreeError("`config` is empty")
    if len(config) > CONFIG_SPACE_SIZE:
        raise TreeError(f"`config` has more than {CONFIG_SPACE_SIZE} bytes")
    return config


def _hotplug_driver(directory: Path) -> bool:
    """Tell whether somebody listens to the port's slot: its hotplug service, where services are shown, else its driver."""
    if not (directory / "driver").is_symlink():
        return False
    services = tuple(_services(directory))
    return any(bound for is_hotplug, bound in services if is_hotplug) if services else True


def _services(directory: Path) -> Iterator[tuple[bool, bool]]:
    """Yield of every service of a port whether it is hotplug, and whether a driver is bound to it."""
    for entry in directory.iterdir():
        if service := _SERVICE.search(entry.name):
            yield bool(int(service[1], 16) & _HOTPLUG_SERVICE), (entry / "driver").is_symlink()
