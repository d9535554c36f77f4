"""What the bits and fields of the registers mean."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


class CapabilityId(IntEnum):
    """Capability ids of the first 256 bytes (PCI Code and ID Assignment r1.11 §2)."""

    POWER_MANAGEMENT = 0x01
    MSI = 0x05
    EXPRESS = 0x10
    MSI_X = 0x11
    ADVANCED_FEATURES = 0x13


class ExtendedId(IntEnum):
    """Extended capability ids (PCI Code and ID Assignment r1.11 §3)."""

    AER = 0x0001
    DEVICE_SERIAL_NUMBER = 0x0003
    EVENT_COLLECTOR = 0x0007
    ACS = 0x000D
    ARI = 0x000E
    SRIOV = 0x0010
    RESIZABLE_BAR = 0x0015
    LTR = 0x0018
    DPC = 0x001D


class DeviceType(IntEnum):
    """Device/Port Type of the PCI Express Capabilities Register (§7.5.3.2)."""

    ENDPOINT = 0x0
    LEGACY_ENDPOINT = 0x1
    ROOT_PORT = 0x4
    UPSTREAM_PORT = 0x5
    DOWNSTREAM_PORT = 0x6
    PCIE_TO_PCI_BRIDGE = 0x7
    PCI_TO_PCIE_BRIDGE = 0x8
    ROOT_COMPLEX_ENDPOINT = 0x9
    ROOT_COMPLEX_EVENT_COLLECTOR = 0xA

    @property
    def is_downstream_port(self) -> bool:
        """A port whose link leads away from the root: the only kind that has slots, containment and a link below."""
        return self in {DeviceType.ROOT_PORT, DeviceType.DOWNSTREAM_PORT}

    @property
    def receives_errors(self) -> bool:
        """A function at which error messages end: it has root error registers, if it has AER (§7.8.4.9)."""
        return self in {DeviceType.ROOT_PORT, DeviceType.ROOT_COMPLEX_EVENT_COLLECTOR}

    @property
    def is_bridge(self) -> bool:
        """A function with a type 1 header."""
        return self in {
            DeviceType.ROOT_PORT,
            DeviceType.UPSTREAM_PORT,
            DeviceType.DOWNSTREAM_PORT,
            DeviceType.PCIE_TO_PCI_BRIDGE,
            DeviceType.PCI_TO_PCIE_BRIDGE,
        }


class Command(IntFlag):
    """§7.5.1.1.3."""

    IO_SPACE = 0x0001
    MEMORY_SPACE = 0x0002
    BUS_MASTER = 0x0004
    PARITY_RESPONSE = 0x0040
    SERR = 0x0100
    INTX_DISABLE = 0x0400


class BridgeControl(IntFlag):
    """§7.5.1.3.13."""

    PARITY_RESPONSE = 0x0001
    SERR = 0x0002
    ISA = 0x0004
    VGA = 0x0008
    SECONDARY_BUS_RESET = 0x0040


class HeaderType(IntFlag):
    """§7.5.1.1.9."""

    BRIDGE = 0x01
    MULTI_FUNCTION = 0x80


class DeviceCapabilities(IntFlag):
    """§7.5.3.3."""

    ROLE_BASED_ERRORS = 0x0000_8000
    FUNCTION_LEVEL_RESET = 0x1000_0000


class DeviceControl(IntFlag):
    """§7.5.3.4."""

    CORRECTABLE_REPORTING = 0x0001
    NONFATAL_REPORTING = 0x0002
    FATAL_REPORTING = 0x0004
    UNSUPPORTED_REQUEST_REPORTING = 0x0008
    RELAXED_ORDERING = 0x0010
    INITIATE_FLR = 0x8000


class DeviceStatus(IntFlag):
    """§7.5.3.5."""

    CORRECTABLE_DETECTED = 0x0001
    NONFATAL_DETECTED = 0x0002
    FATAL_DETECTED = 0x0004
    UNSUPPORTED_REQUEST_DETECTED = 0x0008
    TRANSACTIONS_PENDING = 0x0020


class DeviceCapabilities2(IntFlag):
    """§7.5.3.15."""

    ARI_FORWARDING_SUPPORTED = 0x0000_0020


class DeviceControl2(IntFlag):
    """§7.5.3.16."""

    ARI_FORWARDING_ENABLE = 0x0020


class LinkCapabilities(IntFlag):
    """§7.5.3.6 (speed and width are fields: LINK_SPEED, LINK_WIDTH)."""

    SURPRISE_DOWN_REPORTING = 0x0008_0000
    LINK_ACTIVE_REPORTING = 0x0010_0000


class LinkControl(IntFlag):
    """§7.5.3.7."""

    LINK_DISABLE = 0x0010
    RETRAIN_LINK = 0x0020


class LinkStatus(IntFlag):
    """§7.5.3.8 (speed and width are fields: LINK_SPEED, LINK_WIDTH)."""

    LINK_TRAINING = 0x0800
    LINK_ACTIVE = 0x2000


LINK_SPEED: Final = 0x000F  # of LinkCapabilities, LinkStatus and LinkControl2: 1 = 2.5, 2 = 5, 3 = 8, 4 = 16 GT/s
LINK_WIDTH: Final = 0x03F0  # of LinkCapabilities and LinkStatus: lanes
LINK_WIDTH_SHIFT: Final = 4


class SlotCapabilities(IntFlag):
    """§7.5.3.9 (the slot's number is a field: SLOT_NUMBER_SHIFT)."""

    ATTENTION_BUTTON = 0x0000_0001
    POWER_CONTROLLER = 0x0000_0002
    MRL_SENSOR = 0x0000_0004
    ATTENTION_INDICATOR = 0x0000_0008
    POWER_INDICATOR = 0x0000_0010
    HOTPLUG_SURPRISE = 0x0000_0020
    HOTPLUG_CAPABLE = 0x0000_0040
    INTERLOCK = 0x0002_0000
    NO_COMMAND_COMPLETED = 0x0004_0000


SLOT_NUMBER_SHIFT: Final = 19


class SlotControl(IntFlag):
    """§7.5.3.10. Indicators are two-bit fields: see Indicator."""

    ATTENTION_BUTTON_ENABLE = 0x0001
    POWER_FAULT_ENABLE = 0x0002
    MRL_CHANGED_ENABLE = 0x0004
    PRESENCE_CHANGED_ENABLE = 0x0008
    COMMAND_COMPLETED_ENABLE = 0x0010
    HOTPLUG_INTERRUPT_ENABLE = 0x0020
    POWER_OFF = 0x0400
    INTERLOCK = 0x0800
    LINK_STATE_CHANGED_ENABLE = 0x1000
    IN_BAND_PRESENCE_DISABLE = 0x4000


ATTENTION_INDICATOR: Final = 0x00C0  # field of SlotControl
ATTENTION_INDICATOR_SHIFT: Final = 6
POWER_INDICATOR: Final = 0x0300  # field of SlotControl
POWER_INDICATOR_SHIFT: Final = 8
SLOT_MASKED: Final = SlotControl.PRESENCE_CHANGED_ENABLE | SlotControl.LINK_STATE_CHANGED_ENABLE  # what a lease clears


class Indicator(IntEnum):
    """Values of the two indicator fields of Slot Control (§7.5.3.10)."""

    ON = 1
    BLINK = 2
    OFF = 3


class SlotStatus(IntFlag):
    """§7.5.3.11."""

    ATTENTION_BUTTON_PRESSED = 0x0001
    POWER_FAULT_DETECTED = 0x0002
    MRL_CHANGED = 0x0004
    PRESENCE_CHANGED = 0x0008
    COMMAND_COMPLETED = 0x0010
    MRL_OPEN = 0x0020
    PRESENCE = 0x0040
    INTERLOCK_ENGAGED = 0x0080
    LINK_STATE_CHANGED = 0x0100


class SlotCapabilities2(IntFlag):
    """§7.5.3.22."""

    IN_BAND_PRESENCE_DISABLE_SUPPORTED = 0x0000_0001


class RootControl(IntFlag):
    """§7.5.3.12."""

    SERR_ON_CORRECTABLE = 0x0001
    SERR_ON_NONFATAL = 0x0002
    SERR_ON_FATAL = 0x0004
    PME_INTERRUPT_ENABLE = 0x0008
    RRS_SOFTWARE_VISIBILITY = 0x0010


class Uncorrectable(IntFlag):
    """AER uncorrectable errors (§7.8.4.2). Short names for logs stand in `shared.pcie.errors`."""

    UNDEFINED = 1 << 0
    DATA_LINK_PROTOCOL = 1 << 4
    SURPRISE_DOWN = 1 << 5
    POISONED_TLP = 1 << 12
    FLOW_CONTROL_PROTOCOL = 1 << 13
    COMPLETION_TIMEOUT = 1 << 14
    COMPLETER_ABORT = 1 << 15
    UNEXPECTED_COMPLETION = 1 << 16
    RECEIVER_OVERFLOW = 1 << 17
    MALFORMED_TLP = 1 << 18
    ECRC = 1 << 19
    UNSUPPORTED_REQUEST = 1 << 20
    ACS_VIOLATION = 1 << 21
    INTERNAL = 1 << 22
    BLOCKED_TLP = 1 << 23
    ATOMIC_OP_EGRESS_BLOCKED = 1 << 24
    TLP_PREFIX_BLOCKED = 1 << 25
    POISONED_TLP_EGRESS_BLOCKED = 1 << 26
    DMWR_EGRESS_BLOCKED = 1 << 27
    IDE_CHECK_FAILED = 1 << 28
    MISROUTED_IDE_TLP = 1 << 29
    PCRC_CHECK_FAILED = 1 << 30
    TLP_TRANSLATION_BLOCKED = 1 << 31


UNCORRECTABLE_FATAL_DEFAULT: Final = 0x0046_2030  # §7.8.4.4: severity at power-on, DLP SDES FCP RxOF MalfTLP Internal


class Correctable(IntFlag):
    """AER correctable errors (§7.8.4.5)."""

    RECEIVER_ERROR = 1 << 0
    BAD_TLP = 1 << 6
    BAD_DLLP = 1 << 7
    REPLAY_ROLLOVER = 1 << 8
    REPLAY_TIMEOUT = 1 << 12
    ADVISORY_NONFATAL = 1 << 13
    INTERNAL = 1 << 14
    HEADER_LOG_OVERFLOW = 1 << 15


FIRST_ERROR_POINTER: Final = 0x1F  # field of AER Capabilities and Control (§7.8.4.7)


class RootErrorCommand(IntFlag):
    """§7.8.4.9."""

    CORRECTABLE_ENABLE = 0x1
    NONFATAL_ENABLE = 0x2
    FATAL_ENABLE = 0x4


class RootErrorStatus(IntFlag):
    """§7.8.4.10 (the interrupt message number is a field: ROOT_ERROR_MESSAGE_SHIFT)."""

    CORRECTABLE_RECEIVED = 0x01
    MULTIPLE_CORRECTABLE = 0x02
    UNCORRECTABLE_RECEIVED = 0x04
    MULTIPLE_UNCORRECTABLE = 0x08
    FIRST_FATAL = 0x10
    NONFATAL_RECEIVED = 0x20
    FATAL_RECEIVED = 0x40


ROOT_ERROR_MESSAGE_SHIFT: Final = 27
EXPRESS_MESSAGE_SHIFT: Final = 9  # interrupt message number of Express Capabilities (§7.5.3.2): hotplug and PME
EXPRESS_MESSAGE: Final = 0x3E00
EXPRESS_TYPE_SHIFT: Final = 4
EXPRESS_TYPE: Final = 0x00F0
EXPRESS_SLOT_IMPLEMENTED: Final = 0x0100


class DpcCapabilities(IntFlag):
    """§7.9.14.2 (bits 4:0 are the interrupt message number: DPC_MESSAGE)."""

    RP_EXTENSIONS = 0x0020
    POISONED_TLP_EGRESS_BLOCKING = 0x0040
    SOFTWARE_TRIGGERING = 0x0080
    DL_ACTIVE_ERR_COR = 0x1000


DPC_MESSAGE: Final = 0x001F


class DpcControl(IntFlag):
    """§7.9.14.3."""

    TRIGGER_ON_FATAL = 0x0001
    TRIGGER_ON_NONFATAL = 0x0002
    COMPLETION_CONTROL = 0x0004
    INTERRUPT_ENABLE = 0x0008
    ERR_COR_ENABLE = 0x0010
    SOFTWARE_TRIGGER = 0x0040


class DpcStatus(IntFlag):
    """§7.9.14.4. The reason is a field: DPC_REASON and DPC_REASON_EXTENSION."""

    TRIGGER = 0x0001
    INTERRUPT = 0x0008
    RP_BUSY = 0x0010


DPC_REASON: Final = 0x0006
DPC_REASON_SHIFT: Final = 1
DPC_REASON_EXTENSION: Final = 0x0060
DPC_REASON_EXTENSION_SHIFT: Final = 5
DPC_RP_PIO_FIRST_ERROR: Final = 0x1F00
DPC_RP_PIO_FIRST_ERROR_SHIFT: Final = 8


class DpcReason(IntEnum):
    """Trigger reason and its extension, joined: values of 3 and more are reason 11b with the extension (§7.9.14.4)."""

    UNCORRECTABLE = 0
    ERR_NONFATAL = 1
    ERR_FATAL = 2
    RP_PIO = 3
    SOFTWARE = 4


class RpPio(IntFlag):
    """What a root port's own requests met: RP PIO status, mask, severity (§7.9.14.6)."""

    CONFIG_UNSUPPORTED = 1 << 0
    CONFIG_ABORT = 1 << 1
    CONFIG_TIMEOUT = 1 << 2
    IO_UNSUPPORTED = 1 << 8
    IO_ABORT = 1 << 9
    IO_TIMEOUT = 1 << 10
    MEMORY_UNSUPPORTED = 1 << 16
    MEMORY_ABORT = 1 << 17
    MEMORY_TIMEOUT = 1 << 18


class MsiControl(IntFlag):
    """§7.7.1.2."""

    ENABLE = 0x0001
    MULTIPLE_CAPABLE_32 = 0x000A  # field 3:1 = 101b: 32 vectors
    ADDRESS_64 = 0x0080


AF_FUNCTION_LEVEL_RESET: Final = 0x02  # of AF Capabilities (Advanced Capabilities for Conventional PCI ECN, 2006)
AF_INITIATE_FLR: Final = 0x01  # of AF Control


class SriovControl(IntFlag):
    """§9.3.3.3."""

    VF_ENABLE = 0x0001
    VF_MEMORY_SPACE = 0x0008
    ARI_CAPABLE_HIERARCHY = 0x0010


NO_VENDOR: Final = 0xFFFF  # §9.3.4.1.1: Vendor and Device ID of a virtual function
ARI_NEXT_FUNCTION_SHIFT: Final = 8  # of ARI Capability (§7.8.8.2)
RESIZABLE_BARS_SHIFT: Final = 5  # of the first Resizable BAR Control (§7.8.6.3): how many BARs there are
RESIZABLE_BARS: Final = 0x00E0
