"""The failures that a kernel log can show, and what is known of each: a table, in the order in which they are told.

Numbers are those of prior-art/linux-kernel.md, section 5; what has none is still open (section 6), or is no fault of
the kernel. Of the 38 scenarios, those are missing that leave no trace in a log: locks, lost waits, uses after free.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from . import _evidence as shown
from ._evidence import Find


class Kind(StrEnum):
    """What sort of failure it is."""

    SCENARIO = "scenario"  # one of the 38
    OPEN = "open"  # known, and not solved in any kernel
    HARDWARE = "hardware"  # no fault of the kernel


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """One known failure. `fixed`: the release that solved it, None where none has; `commit`: how it did."""

    kind: Kind
    title: str
    wrong: str
    advice: str
    holdfast: str
    find: Find
    scenario: int | None = None
    fixed: str | None = None
    commit: str | None = None
    checked: bool = True  # False: the release is known from memory, not from the tree


SIGNATURES: Final = (
    Signature(
        kind=Kind.SCENARIO,
        scenario=38,
        title="Recovery takes longer than the 4 s that hotplug waits for DPC",
        wrong="hotplug waits 4 s for DPC, whatever is still at work; then it removes the device under its recovery",
        advice="No release has it: the 4 s are the same in every kernel so far (a patch to 7 s was posted in July 2025). "
        "Ask the device's vendor for a driver or firmware whose error_detected is faster; until then, do not count on "
        "recovery by DPC for this device",
        holdfast="keeps the lease as long as the recovery makes progress: there is no fixed time that a driver could miss",
        find=shown.waited_too_short,
    ),
    Signature(
        kind=Kind.SCENARIO,
        scenario=3,
        title="DPC flips in-band presence, and only the link change is ignored",
        wrong="containment changed presence together with the link; the link change was ignored, and the presence change "
        "removed a device that had just been recovered",
        fixed="6.16",
        advice="Go to 6.16 or newer, or have the fix backported. Until then a device behind this slot returns under "
        "another name after each containment",
        holdfast="masks both before it releases the port, and judges at close by link and identity: the device is kept",
        find=shown.presence_with_link,
    ),
    Signature(
        kind=Kind.SCENARIO,
        scenario=2,
        title="A belated presence change after DPC",
        wrong="the presence change was handled after the link change had been consumed and ignored, so it counted as a "
        "removal",
        fixed="6.16",
        commit="bbf10cd68683",
        advice="Go to 6.16 or newer, or have the fix backported",
        holdfast="drains what has latched until the last look, and compares the slot with its registry after every "
        "close: an event that comes late finds the same device",
        find=shown.presence_later,
    ),
    Signature(
        kind=Kind.SCENARIO,
        scenario=18,
        title="Surprise Down treated as a fatal error",
        wrong="the port reported the loss of its link as a fatal error, and DPC tried to recover what was no longer there",
        fixed="6.9",
        commit="2ae8fbbe1cd4",
        advice="Go to 6.9 or newer. If nobody pulled the card, look at card, cable and power: the link itself was lost, "
        "and nothing in such a log tells a pulled card from a dead one",
        holdfast="reads presence and link first: a device that is gone is removed without a recovery; the error bit "
        "alone decides nothing",
        find=shown.surprise_down_contained,
    ),
    Signature(
        kind=Kind.SCENARIO,
        scenario=5,
        title="A reset from above makes nested slots remove their devices",
        wrong="a port further up was contained and released; each hotplug port below saw its link flap and removed its "
        "device while the recovery was restoring it",
        fixed="5.16",
        checked=False,
        advice="Go to 5.16 or newer. What follows (drivers without a device, a second containment) is a consequence",
        holdfast="counts every slot below the port as masked by the one lease, restores top-down, and judges each slot "
        "at close",
        find=shown.nested_slots,
    ),
    Signature(
        kind=Kind.SCENARIO,
        scenario=4,
        title="Hotplug removes what DPC is recovering",
        wrong="hotplug took the link down that containment caused for a removal, and did not wait for the recovery",
        fixed="5.14",
        commit="a97396c6eb13",
        advice="Go to 5.14 or newer (to 6.16 for presence changes, too)",
        holdfast="asks the fabric whether anybody recovers the port, in the same step that would admit the removal",
        find=shown.did_not_wait,
    ),
    Signature(
        kind=Kind.SCENARIO,
        scenario=1,
        title="A reset on request makes hotplug remove the device",
        wrong="a function was reset on purpose, its slot's interrupts were masked but shared a vector with others, and "
        "hotplug harvested the link down",
        fixed="6.16",
        commit="2af781a9edc4",
        advice="6.13 to 6.15 have this regression: go to 6.16 or newer",
        holdfast="masks under a lease, and an interrupt on a shared vector finds the lease before it finds the latch",
        find=shown.removed_by_a_reset,
    ),
    Signature(
        kind=Kind.SCENARIO,
        scenario=10,
        title="Power-fault loop",
        wrong="the power fault asserts again as soon as it is cleared, and the interrupt handler spins",
        fixed="5.17",
        commit="CVE-2021-47617",
        advice="Go to 5.17 or newer; and look at the slot's power: the fault itself is real",
        holdfast="latches the fault until the next power-on, and powers a slot off whose fault comes back",
        find=shown.power_fault_loop,
    ),
    Signature(
        kind=Kind.SCENARIO,
        scenario=36,
        title="Unstable link at insertion",
        wrong="presence and link bounce while a card is pushed in; each bounce was taken for a removal and an insertion",
        fixed="4.19",
        commit="6c35a1ac3da6",
        advice="Go to 4.19 or newer; if this is one, reseat the card and look at its contacts",
        holdfast="waits a short grace, and drops what latched until the card has answered once",
        find=shown.unstable_at_insertion,
    ),
    Signature(
        kind=Kind.SCENARIO,
        scenario=37,
        title="Stuck at 2.5 GT/s",
        wrong="the cure for links that do not train leaves the low target speed behind when it fails",
        fixed="6.17",
        advice="Go to 6.17 or newer; until then, write the target speed of the port back (setpci) and retrain",
        holdfast="compares speed and width with what they were, retrains once, and reports a degraded link as one",
        find=shown.stuck_at_the_lowest_speed,
    ),
    Signature(
        kind=Kind.SCENARIO,
        scenario=6,
        title="Removal and reset wait for each other",
        wrong="hotplug holds its lock and wants the device's; a reset (VFIO, AER) holds the device's and wants hotplug's. "
        "(Scenario 14, two switches unplugged at once, and surprise removal under VFIO, still open, look the same.)",
        fixed="6.4",
        checked=False,
        commit="f5eff5591b8f",
        advice="Go to 6.4 or newer; if it is, take the stacks of the blocked tasks (SysRq w) to tell which it is. Only a "
        "reboot frees the slot",
        holdfast="has no lock that both want: recovery awaits no answer from hotplug",
        find=shown.hotplug_hangs,
    ),
    Signature(
        kind=Kind.OPEN,
        title="A port fails again and again, and nothing ends it",
        wrong="each recovery, whether it worked or not, is followed by the next failure. None of the 38 scenarios; of "
        "what is still open, 'then the error repeats' comes nearest",
        advice="No release has a storm breaker. Take the port out of service (unbind its driver, or set Link Disable) "
        "and look at the link: slower speed, other card, other slot",
        holdfast="tries three times under one lease, 1 and 2 s apart, and then quarantines the port until it is "
        "released; the same after 5 recoveries within 60 s",
        find=shown.reset_loop,
    ),
    Signature(
        kind=Kind.OPEN,
        title="One driver without callback fails the recovery of all",
        wrong="a function whose driver has no error callbacks, or that has no driver, votes the recovery of the whole "
        "subtree down",
        advice="No release changes that. Bind a driver with error callbacks, or unplug the function before it matters",
        holdfast="lets such a function vote for nothing: a bound driver is rebound after the reset, its siblings are kept",
        find=shown.driver_without_callback,
    ),
    Signature(
        kind=Kind.OPEN,
        title="A lost link under a driver without error callbacks",
        wrong="AER reported the loss of the link as a fatal error, and asked a driver that cannot answer. None of the 38 "
        "scenarios: 18 (6.9) is about DPC on hotplug ports, and neither is named here",
        advice="Whether the link came back is not in such a log: look at `lspci -vv` of the port. If it is up, remove "
        "and rescan the device; if not, look at power, slot and riser",
        holdfast="resets the port under a lease; if the link returns, the device is rebound to its driver, else it is "
        "`failed`, and says so",
        find=shown.fell_off_without_callbacks,
    ),
    Signature(
        kind=Kind.SCENARIO,
        scenario=28,
        title="Two hotplug commands too close to each other",
        wrong="the port services and hotplug both write Slot Control at start or resume, and a command times out. "
        "(Ports that never complete commands time out as well, on any kernel.)",
        fixed="6.15",
        advice="Go to 6.15 or newer; if it is, look for the port's erratum on Command Completed",
        holdfast="has one writer of Slot Control, and one command at a time",
        find=shown.command_timeout,
    ),
    Signature(
        kind=Kind.HARDWARE,
        title="The link had errors before it was lost",
        wrong="the port had to send again or saw bad packets: signs of a link that is electrically weak",
        advice="Reseat card, riser and cable; try a lower speed; watch the correctable counters "
        "(aer_dev_correctable) after that",
        holdfast="counts correctable errors per device and kind, without a limit, so that such a link is seen before it "
        "falls",
        find=shown.errors_before_the_loss,
    ),
)
