"""Durations that the specification or the kernel gives, in seconds, each with its source. No other module spells one."""

from __future__ import annotations

from typing import Final

# --- Resets (PCIe Base r6.2 §6.6, §7.5.1.3.13; Linux drivers/pci/pci.c) ---
SECONDARY_BUS_RESET_HOLD: Final = 0.002  # §7.5.1.3.13: Trst at least 1 ms; Linux holds 2 ms
RESET_TO_FIRST_CONFIG: Final = 0.1  # §6.6.1: 100 ms before the first request after a conventional reset
PCI_RESET_TO_FIRST_CONFIG: Final = 1.0  # PCI 3.0 §4.3.2: 2^25 clocks at 33 MHz behind a conventional bridge
FLR_COMPLETION: Final = 0.1  # §6.6.2: a function completes its FLR within 100 ms
PM_D3HOT_TO_D0: Final = 0.01  # PCI PM r1.2 §5.4: 10 ms

# --- Links (§6.7.3.3, §6.6.1) ---
LINK_ACTIVE_MAX: Final = 1.0  # Linux pcie_wait_for_link: link active within 1000 ms
LINK_INACTIVE_MAX: Final = 1.0  # Linux dpc_reset_link: link inactive within 1000 ms after containment
LINK_SETTLE: Final = 0.02  # Linux pciehp_check_link_status: 20 ms before the first look
LINK_TO_FIRST_CONFIG: Final = 0.1  # §6.6.1: 100 ms after the link is active

# --- Readiness ---
VENDOR_ID_MAX: Final = 1.0  # §6.6.1: 1 s until a request is answered (bring-up of a slot)
READY_MAX: Final = 60.0  # Linux PCIE_RESET_READY_POLL_MS; here a default, renewed by progress, not a verdict
READY_POLL_FIRST: Final = 0.001  # Linux pci_dev_wait: 1, 2, 4 ... ms
READY_POLL_MAX: Final = 0.25  # our own ceiling for the doubling poll

# --- Containment (§6.2.11) ---
RP_BUSY_MAX: Final = 1.0  # Linux dpc_wait_rp_inactive: HZ
RP_BUSY_POLL: Final = 0.01
CONTAINMENT_GRACE: Final = 1.0  # ours: for a recovery to take over, before a lease of lower rank releases containment

# --- Slots (§6.7.3; Linux drivers/pci/hotplug/pciehp_*.c) ---
COMMAND_COMPLETED_MAX: Final = 1.0  # §6.7.3.2: a hot-plug command completes within 1 s
BUTTON_GRACE: Final = 5.0  # §6.7.1.5: 5 s in which a second press cancels
POWER_OFF_SETTLE: Final = 1.0  # §6.7.1.8: at least 1 s after power off
REMOVAL_GRACE: Final = 0.1  # ours: time for AER or DPC to speak before a link change is believed (DESIGN 5, hotplug)
RECONCILE_INTERVAL: Final = 30.0  # ours: every service reads its registers again (DESIGN 3)

# --- Leases (DESIGN 4, "Silence") ---
LEASE_ALLOWED: Final = 5.0  # silence after which a holder counts as dead
LEASE_ALLOWED_REPLICATED: Final = 15.0  # on a replicated bus: a change of leader takes 4.5 to 7.5 s (nats.md, 2)
LEASE_ATTEMPT: Final = 1.0  # one attempt to renew; no lease may be shorter
LEASE_BEATS_PER_ALLOWED: Final = 3  # a living holder beats at a third of it
