"""Virtual functions (§9): made from their physical function's specification, and there only while it enables them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Final

import msgspec

from shared.pcie import ConfigSpace
from shared.pcie import registers as r

from ._config_space import power_on
from ._function import SimulatedFunction
from ._specs import FunctionSpec, LinkSpec

_ENABLING: Final = int(r.SriovControl.VF_ENABLE)


def virtual_specs(physical: FunctionSpec) -> tuple[FunctionSpec, ...]:
    """Return what the physical function's virtual functions are. Vendor and device say nothing (§9.3.4.1.1)."""
    sriov = physical.sriov
    if sriov is None:
        return ()
    return tuple(
        msgspec.structs.replace(
            physical,
            address=address,
            vendor=r.NO_VENDOR,
            device=r.NO_VENDOR,
            aer=False,  # ours: it logs in Device Status alone
            flr=True,  # §9.3.5.3: required
            af_flr=False,
            pm_reset=False,
            msi_x=0,  # ours
            bars=(),  # §9.3.4.1.11: their memory is described in the physical function
            serial=None,
            sriov=None,
            driver=sriov.driver,
            stale=(),
        )
        for address in sriov.addresses(physical.address)
    )


def build_virtual(physical: SimulatedFunction, link: LinkSpec) -> list[SimulatedFunction]:
    """Return the virtual functions of a function that has just been built."""
    found = []
    for number, spec in enumerate(virtual_specs(physical.spec)):
        space, caps = power_on(spec, link)
        _restrict(space, caps.express)
        function = SimulatedFunction(spec, space, caps, physical.parent)
        function.physical = physical
        function.virtual_number = number
        found.append(function)
    return found


def _restrict(space: ConfigSpace, express: int) -> None:
    """Take away what a virtual function leaves to its physical one: memory enable, error reporting, its link."""
    space.place(replace(r.COMMAND, rw=int(r.Command.BUS_MASTER)))  # §9.3.4.1.3
    space.place(replace(r.DEVICE_CONTROL, rw=0), 0, express)  # §9.3.5.4
    space.place(replace(r.DEVICE_CONTROL_2, rw=0), 0, express)  # §9.3.5.7
    space.place(replace(r.LINK_CONTROL, rw=0), 0, express)  # §9.3.5.7


def chain_ari(card: Iterable[SimulatedFunction]) -> None:
    """Let every ARI function of a device name the next one (§7.8.8.2); virtual functions are not in the chain."""
    chain = [function for function in card if function.caps.ari and function.physical is None]
    chain.sort(key=lambda function: function.requester_id)
    for function, following in pairwise(chain):
        at = function.caps.ari + r.ARI_CAPABILITIES.offset
        number = following.requester_id & 0xFF
        function.space.set(at, r.ARI_CAPABILITIES.width, number << r.ARI_NEXT_FUNCTION_SHIFT)


def is_enabled(physical: SimulatedFunction) -> bool:
    """Tell whether VF Enable is set."""
    return physical.sriov is not None and bool(physical.sriov.get(r.SRIOV_CONTROL) & _ENABLING)
