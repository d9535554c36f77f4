"""The registers: where each one is, and how its bits behave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CONFIG_SPACE_SIZE: Final = 4096  # §7.2
EXTENDED_START: Final = 0x100  # §7.6.1: extended capabilities begin here
CAPABILITY_POINTER: Final = 0x34  # §7.5.1.1.11
RRS_VENDOR_ID: Final = 0x0001  # §2.3.2: what a vendor ID read returns while the function is not ready


@dataclass(frozen=True, slots=True)
class Register:
    """One register: where it is, which bits software may change and how, and what a reset leaves of it.

    `rw` bits take what is written; `rw1c` bits are cleared by writing one; all others are read-only. `sticky` bits
    survive a hot reset (§7.4, RW1CS and RWS); the rest fall back to what they were at power-on. `restored` says that
    software puts the register back after a reset, and in which turn (0: never).
    """

    name: str
    offset: int
    width: int
    section: str
    rw: int = 0
    rw1c: int = 0
    sticky: int = 0
    restored: int = 0


_WORD: Final = 0xFFFF
_DWORD: Final = 0xFFFF_FFFF
_UNCORRECTABLE: Final = 0xFFFF_F030  # every bit that §7.8.4.2 defines
_CORRECTABLE: Final = 0x0000_F1C1  # every bit that §7.8.4.5 defines

# Turns of the restore (DESIGN 5, coordinator): bus numbers and windows first, so that what is below can be reached;
# Resizable BAR before BARs; the command register last.
_ROUTING, _SIZES, _BARS, _CAPABILITIES, _ENABLES, _COMMAND = range(1, 7)

VENDOR_ID: Final = Register("Vendor ID", 0x00, 2, "7.5.1.1.1")
DEVICE_ID: Final = Register("Device ID", 0x02, 2, "7.5.1.1.2")
COMMAND: Final = Register("Command", 0x04, 2, "7.5.1.1.3", rw=0x0547, restored=_COMMAND)
STATUS: Final = Register("Status", 0x06, 2, "7.5.1.1.4", rw1c=0xF900)
REVISION_AND_CLASS: Final = Register("Revision ID and Class Code", 0x08, 4, "7.5.1.1.5")
CACHE_LINE_SIZE: Final = Register("Cache Line Size", 0x0C, 1, "7.5.1.1.7", rw=0xFF, restored=_CAPABILITIES)
HEADER_TYPE: Final = Register("Header Type", 0x0E, 1, "7.5.1.1.9")
INTERRUPT_LINE: Final = Register("Interrupt Line", 0x3C, 1, "7.5.1.1.12", rw=0xFF, restored=_CAPABILITIES)
HEADER: Final = (
    VENDOR_ID, DEVICE_ID, COMMAND, STATUS, REVISION_AND_CLASS, CACHE_LINE_SIZE, HEADER_TYPE, INTERRUPT_LINE,
)  # fmt: skip

# Which BAR bits are writable depends on the size of the function's windows: the machine sets `rw` for each.
BAR: Final = tuple(Register(f"BAR {n}", 0x10 + 4 * n, 4, "7.5.1.2.1", restored=_BARS) for n in range(6))
SUBSYSTEM_VENDOR_ID: Final = Register("Subsystem Vendor ID", 0x2C, 2, "7.5.1.2.3")
SUBSYSTEM_ID: Final = Register("Subsystem ID", 0x2E, 2, "7.5.1.2.3")
TYPE0: Final = (*HEADER, *BAR, SUBSYSTEM_VENDOR_ID, SUBSYSTEM_ID)

PRIMARY_BUS: Final = Register("Primary Bus Number", 0x18, 1, "7.5.1.3.2", rw=0xFF, restored=_ROUTING)
SECONDARY_BUS: Final = Register("Secondary Bus Number", 0x19, 1, "7.5.1.3.3", rw=0xFF, restored=_ROUTING)
SUBORDINATE_BUS: Final = Register("Subordinate Bus Number", 0x1A, 1, "7.5.1.3.4", rw=0xFF, restored=_ROUTING)
IO_BASE_LIMIT: Final = Register("I/O Base and Limit", 0x1C, 2, "7.5.1.3.6", rw=0xF0F0, restored=_ROUTING)
SECONDARY_STATUS: Final = Register("Secondary Status", 0x1E, 2, "7.5.1.3.7", rw1c=0xF900)
MEMORY_BASE: Final = Register("Memory Base", 0x20, 2, "7.5.1.3.8", rw=0xFFF0, restored=_ROUTING)
MEMORY_LIMIT: Final = Register("Memory Limit", 0x22, 2, "7.5.1.3.8", rw=0xFFF0, restored=_ROUTING)
PREFETCHABLE_BASE: Final = Register("Prefetchable Memory Base", 0x24, 2, "7.5.1.3.9", rw=0xFFF0, restored=_ROUTING)
PREFETCHABLE_LIMIT: Final = Register("Prefetchable Memory Limit", 0x26, 2, "7.5.1.3.9", rw=0xFFF0, restored=_ROUTING)
BRIDGE_CONTROL: Final = Register("Bridge Control", 0x3E, 2, "7.5.1.3.13", rw=0x005F, restored=_ENABLES)
TYPE1: Final = (
    *HEADER, PRIMARY_BUS, SECONDARY_BUS, SUBORDINATE_BUS, IO_BASE_LIMIT, SECONDARY_STATUS, MEMORY_BASE, MEMORY_LIMIT,
    PREFETCHABLE_BASE, PREFETCHABLE_LIMIT, BRIDGE_CONTROL,
)  # fmt: skip

PM_CAPABILITIES: Final = Register("Power Management Capabilities", 0x02, 2, "7.5.2.1")
PM_CONTROL: Final = Register("Power Management Control/Status", 0x04, 2, "7.5.2.2", rw=0x0103, restored=_CAPABILITIES)
PM_POWER_STATE: Final = 0x0003  # of PM_CONTROL: 0 is D0, 3 is D3hot
POWER_MANAGEMENT: Final = (PM_CAPABILITIES, PM_CONTROL)

MSI_CONTROL: Final = Register("MSI Message Control", 0x02, 2, "7.7.1.2", rw=0x0071, restored=_ENABLES)
MSI_ADDRESS: Final = Register("MSI Message Address", 0x04, 4, "7.7.1.3", rw=0xFFFF_FFFC, restored=_CAPABILITIES)
MSI_ADDRESS_HIGH: Final = Register("MSI Upper Address", 0x08, 4, "7.7.1.4", rw=_DWORD, restored=_CAPABILITIES)
MSI_DATA: Final = Register("MSI Message Data", 0x0C, 2, "7.7.1.5", rw=_WORD, restored=_CAPABILITIES)
MSI_DATA_32: Final = Register("MSI Message Data (32-bit address)", 0x08, 2, "7.7.1.5", rw=_WORD, restored=_CAPABILITIES)
MSI: Final = (MSI_CONTROL, MSI_ADDRESS, MSI_ADDRESS_HIGH, MSI_DATA)

EXPRESS_CAPABILITIES: Final = Register("PCI Express Capabilities", 0x02, 2, "7.5.3.2")
DEVICE_CAPABILITIES: Final = Register("Device Capabilities", 0x04, 4, "7.5.3.3")
# Initiate FLR reads as zero; the machine acts on the write.
DEVICE_CONTROL: Final = Register("Device Control", 0x08, 2, "7.5.3.4", rw=0x7FFF, restored=_CAPABILITIES)
DEVICE_STATUS: Final = Register("Device Status", 0x0A, 2, "7.5.3.5", rw1c=0x000F)
LINK_CAPABILITIES: Final = Register("Link Capabilities", 0x0C, 4, "7.5.3.6")
LINK_CONTROL: Final = Register("Link Control", 0x10, 2, "7.5.3.7", rw=0x0FDB, restored=_CAPABILITIES)
LINK_STATUS: Final = Register("Link Status", 0x12, 2, "7.5.3.8", rw1c=0xC000)
SLOT_CAPABILITIES: Final = Register("Slot Capabilities", 0x14, 4, "7.5.3.9")
SLOT_CONTROL: Final = Register("Slot Control", 0x18, 2, "7.5.3.10", rw=0x5FFF, restored=_ENABLES)
SLOT_STATUS: Final = Register("Slot Status", 0x1A, 2, "7.5.3.11", rw1c=0x011F)
ROOT_CONTROL: Final = Register("Root Control", 0x1C, 2, "7.5.3.12", rw=0x001F, restored=_ENABLES)
ROOT_CAPABILITIES: Final = Register("Root Capabilities", 0x1E, 2, "7.5.3.13")
ROOT_STATUS: Final = Register("Root Status", 0x20, 4, "7.5.3.14", rw1c=0x0001_0000)
DEVICE_CAPABILITIES_2: Final = Register("Device Capabilities 2", 0x24, 4, "7.5.3.15")
DEVICE_CONTROL_2: Final = Register("Device Control 2", 0x28, 2, "7.5.3.16", rw=0x7FFF, restored=_CAPABILITIES)
LINK_CAPABILITIES_2: Final = Register("Link Capabilities 2", 0x2C, 4, "7.5.3.18")
LINK_CONTROL_2: Final = Register(
    "Link Control 2", 0x30, 2, "7.5.3.19", rw=0x001F, sticky=0x001F, restored=_CAPABILITIES
)
LINK_STATUS_2: Final = Register("Link Status 2", 0x32, 2, "7.5.3.20")
SLOT_CAPABILITIES_2: Final = Register("Slot Capabilities 2", 0x34, 4, "7.5.3.22")
EXPRESS: Final = (
    EXPRESS_CAPABILITIES, DEVICE_CAPABILITIES, DEVICE_CONTROL, DEVICE_STATUS, LINK_CAPABILITIES, LINK_CONTROL,
    LINK_STATUS, SLOT_CAPABILITIES, SLOT_CONTROL, SLOT_STATUS, ROOT_CONTROL, ROOT_CAPABILITIES, ROOT_STATUS,
    DEVICE_CAPABILITIES_2, DEVICE_CONTROL_2, LINK_CAPABILITIES_2, LINK_CONTROL_2, LINK_STATUS_2, SLOT_CAPABILITIES_2,
)  # fmt: skip
EXPRESS_SIZE: Final = 0x3C  # §7.5.3: version 2 of the capability

UNCORRECTABLE_STATUS: Final = Register(
    "Uncorrectable Error Status", 0x04, 4, "7.8.4.2", rw1c=_UNCORRECTABLE, sticky=_DWORD
)
UNCORRECTABLE_MASK: Final = Register(
    "Uncorrectable Error Mask", 0x08, 4, "7.8.4.3", rw=_UNCORRECTABLE, sticky=_DWORD, restored=_CAPABILITIES
)
UNCORRECTABLE_SEVERITY: Final = Register(
    "Uncorrectable Error Severity", 0x0C, 4, "7.8.4.4", rw=_UNCORRECTABLE, sticky=_DWORD, restored=_CAPABILITIES
)
CORRECTABLE_STATUS: Final = Register("Correctable Error Status", 0x10, 4, "7.8.4.5", rw1c=_CORRECTABLE, sticky=_DWORD)
CORRECTABLE_MASK: Final = Register(
    "Correctable Error Mask", 0x14, 4, "7.8.4.6", rw=_CORRECTABLE, sticky=_DWORD, restored=_CAPABILITIES
)
AER_CONTROL: Final = Register(
    "AER Capabilities and Control", 0x18, 4, "7.8.4.7", rw=0x0000_0140, sticky=_DWORD, restored=_CAPABILITIES
)
HEADER_LOG: Final = tuple(Register(f"Header Log {n + 1}", 0x1C + 4 * n, 4, "7.8.4.8", sticky=_DWORD) for n in range(4))
ROOT_ERROR_COMMAND: Final = Register("Root Error Command", 0x2C, 4, "7.8.4.9", rw=0x7, restored=_ENABLES)
ROOT_ERROR_STATUS: Final = Register("Root Error Status", 0x30, 4, "7.8.4.10", rw1c=0x7F, sticky=_DWORD)
ERROR_SOURCE: Final = Register("Error Source Identification", 0x34, 4, "7.8.4.11", sticky=_DWORD)
AER: Final = (
    UNCORRECTABLE_STATUS, UNCORRECTABLE_MASK, UNCORRECTABLE_SEVERITY, CORRECTABLE_STATUS, CORRECTABLE_MASK,
    AER_CONTROL, *HEADER_LOG,
)  # fmt: skip
AER_ROOT: Final = (*AER, ROOT_ERROR_COMMAND, ROOT_ERROR_STATUS, ERROR_SOURCE)
AER_SIZE: Final = 0x48

SERIAL_NUMBER_LOW: Final = Register("Serial Number (Lower DW)", 0x04, 4, "7.9.3.2")
SERIAL_NUMBER_HIGH: Final = Register("Serial Number (Upper DW)", 0x08, 4, "7.9.3.2")
SERIAL_NUMBER: Final = (SERIAL_NUMBER_LOW, SERIAL_NUMBER_HIGH)
SERIAL_NUMBER_SIZE: Final = 0x0C

DPC_CAPABILITIES: Final = Register("DPC Capability", 0x04, 2, "7.9.14.2")
# Software Trigger reads as zero; the machine acts on the write.
DPC_CONTROL: Final = Register("DPC Control", 0x06, 2, "7.9.14.3", rw=0x00BF, restored=_ENABLES)
DPC_STATUS: Final = Register("DPC Status", 0x08, 2, "7.9.14.4", rw1c=0x0009, sticky=_WORD)
DPC_SOURCE: Final = Register("DPC Error Source ID", 0x0A, 2, "7.9.14.5", sticky=_WORD)
RP_PIO_STATUS: Final = Register("RP PIO Status", 0x0C, 4, "7.9.14.6", rw1c=0x0007_0707, sticky=_DWORD)
RP_PIO_MASK: Final = Register("RP PIO Mask", 0x10, 4, "7.9.14.7", rw=0x0007_0707, sticky=_DWORD, restored=_CAPABILITIES)
RP_PIO_SEVERITY: Final = Register(
    "RP PIO Severity", 0x14, 4, "7.9.14.8", rw=0x0007_0707, sticky=_DWORD, restored=_CAPABILITIES
)
RP_PIO_SYSERROR: Final = Register(
    "RP PIO SysError", 0x18, 4, "7.9.14.9", rw=0x0007_0707, sticky=_DWORD, restored=_CAPABILITIES
)
RP_PIO_EXCEPTION: Final = Register(
    "RP PIO Exception", 0x1C, 4, "7.9.14.10", rw=0x0007_0707, sticky=_DWORD, restored=_CAPABILITIES
)
RP_PIO_HEADER_LOG: Final = tuple(
    Register(f"RP PIO Header Log {n + 1}", 0x20 + 4 * n, 4, "7.9.14.11", sticky=_DWORD) for n in range(4)
)
DPC: Final = (DPC_CAPABILITIES, DPC_CONTROL, DPC_STATUS, DPC_SOURCE)
DPC_ROOT: Final = (
    *DPC, RP_PIO_STATUS, RP_PIO_MASK, RP_PIO_SEVERITY, RP_PIO_SYSERROR, RP_PIO_EXCEPTION, *RP_PIO_HEADER_LOG,
)  # fmt: skip
DPC_SIZE: Final = 0x40

# Initiate FLR reads as zero; the machine acts on the write.
AF_LENGTH: Final = Register("AF Length", 0x02, 1, "AF ECN 2")
AF_CAPABILITIES: Final = Register("AF Capabilities", 0x03, 1, "AF ECN 2")
AF_CONTROL: Final = Register("AF Control", 0x04, 1, "AF ECN 2")
AF_STATUS: Final = Register("AF Status", 0x05, 1, "AF ECN 2")
ADVANCED_FEATURES: Final = (AF_LENGTH, AF_CAPABILITIES, AF_CONTROL, AF_STATUS)
ADVANCED_FEATURES_SIZE: Final = 0x06

MSI_X_CONTROL: Final = Register("MSI-X Message Control", 0x02, 2, "7.7.2.2", rw=0xC000, restored=_ENABLES)
MSI_X_TABLE: Final = Register("MSI-X Table Offset and BAR", 0x04, 4, "7.7.2.3")
MSI_X_PENDING: Final = Register("MSI-X Pending Bits Offset and BAR", 0x08, 4, "7.7.2.4")
MSI_X: Final = (MSI_X_CONTROL, MSI_X_TABLE, MSI_X_PENDING)

# One bit for each device number of the bus whose integrated endpoints report here.
ASSOCIATION_BITMAP: Final = Register("RCEC Association Bitmap", 0x04, 4, "7.9.10.2")
ASSOCIATED_BUSES: Final = Register("RCEC Associated Bus Numbers", 0x08, 4, "7.9.10.3")
EVENT_COLLECTOR: Final = (ASSOCIATION_BITMAP, ASSOCIATED_BUSES)
EVENT_COLLECTOR_SIZE: Final = 0x0C

ACS_CAPABILITIES: Final = Register("ACS Capability", 0x04, 2, "7.7.11.2")
ACS_CONTROL: Final = Register("ACS Control", 0x06, 2, "7.7.11.3", rw=0x007F, restored=_CAPABILITIES)
ACS: Final = (ACS_CAPABILITIES, ACS_CONTROL)
ACS_SIZE: Final = 0x08

ARI_CAPABILITIES: Final = Register("ARI Capability", 0x04, 2, "7.8.8.2")
ARI_CONTROL: Final = Register("ARI Control", 0x06, 2, "7.8.8.3", rw=0x0073, restored=_CAPABILITIES)
ARI: Final = (ARI_CAPABILITIES, ARI_CONTROL)
ARI_SIZE: Final = 0x08

LTR_SNOOP: Final = Register("Max Snoop Latency", 0x04, 2, "7.8.2.2", rw=0x1FFF, restored=_CAPABILITIES)
LTR_NO_SNOOP: Final = Register("Max No-Snoop Latency", 0x06, 2, "7.8.2.3", rw=0x1FFF, restored=_CAPABILITIES)
LTR: Final = (LTR_SNOOP, LTR_NO_SNOOP)
LTR_SIZE: Final = 0x08

# A function has one to six of these, as the first one says.
RESIZABLE_BAR_CONTROL: Final = tuple(
    Register(f"Resizable BAR Control {n}", 0x08 + 8 * n, 4, "7.8.6.3", rw=0x0000_3F00, restored=_SIZES)
    for n in range(6)
)

SRIOV_CAPABILITIES: Final = Register("SR-IOV Capabilities", 0x04, 4, "9.3.3.2")
# The number of VFs is fixed while they are enabled, so it is restored before the control register enables them.
SRIOV_CONTROL: Final = Register("SR-IOV Control", 0x08, 2, "9.3.3.3", rw=0x0019, restored=_ENABLES)
SRIOV_STATUS: Final = Register("SR-IOV Status", 0x0A, 2, "9.3.3.4")
INITIAL_VFS: Final = Register("InitialVFs", 0x0C, 2, "9.3.3.5")
TOTAL_VFS: Final = Register("TotalVFs", 0x0E, 2, "9.3.3.6")
NUM_VFS: Final = Register("NumVFs", 0x10, 2, "9.3.3.7", rw=_WORD, restored=_CAPABILITIES)
VF_DEPENDENCY: Final = Register("Function Dependency Link", 0x12, 1, "9.3.3.8")
FIRST_VF_OFFSET: Final = Register("First VF Offset", 0x14, 2, "9.3.3.9")
VF_STRIDE: Final = Register("VF Stride", 0x16, 2, "9.3.3.10")
VF_DEVICE_ID: Final = Register("VF Device ID", 0x1A, 2, "9.3.3.11")
SUPPORTED_PAGE_SIZES: Final = Register("Supported Page Sizes", 0x1C, 4, "9.3.3.12")
SYSTEM_PAGE_SIZE: Final = Register("System Page Size", 0x20, 4, "9.3.3.13", rw=_DWORD, restored=_CAPABILITIES)
SRIOV: Final = (
    SRIOV_CAPABILITIES, SRIOV_CONTROL, SRIOV_STATUS, INITIAL_VFS, TOTAL_VFS, NUM_VFS, VF_DEPENDENCY, FIRST_VF_OFFSET,
    VF_STRIDE, VF_DEVICE_ID, SUPPORTED_PAGE_SIZES, SYSTEM_PAGE_SIZE,
)  # fmt: skip
SRIOV_SIZE: Final = 0x40
