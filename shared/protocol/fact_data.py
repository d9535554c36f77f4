"""What each kind of fact carries in `Fact.data`, for whoever reads the audit log.

Readers may rely on what is required here, and must pass over what they do not know: a later service may say more. A
fact too large to be stored carries `left_out_bytes` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ._fact_data import Data
from ._fact_data_errors import (
    ContainmentEnteredData,
    ContainmentIgnoredData,
    ContainmentReleasedData,
    ErrorData,
    ErrorIgnoredData,
)
from ._fact_data_hotplug import (
    DeviceAddedData,
    DeviceChannelData,
    DeviceJudgedData,
    DeviceReboundData,
    LinkDownData,
    LinkUpData,
    SlotButtonData,
    SlotDeferredData,
    SlotIgnoredData,
    SlotLatchData,
    SlotNotReadyData,
    SlotPowerFaultData,
    SlotReconciledData,
    SlotStateData,
)
from ._fact_data_leases import (
    LeaseAbsorbedData,
    LeaseAdoptedData,
    LeaseClosedData,
    LeaseExecutedData,
    LeaseFirmwareAnsweredData,
    LeaseMaskedData,
    LeaseOpenedData,
    LeaseRefusedData,
    LeaseUnmaskedData,
    QuarantineEnteredData,
    QuarantineLiftedData,
    Written,
)
from ._fact_data_recoveries import (
    RecoveryBrokenData,
    RecoveryClosedData,
    RecoveryErrorsData,
    RecoveryEscalatedData,
    RecoveryJoinedData,
    RecoveryProgressData,
    RecoveryStartedData,
    RecoveryStepData,
    RecoveryVoteData,
    RecoveryWaitingData,
)
from .facts import What

DATA: Final[Mapping[What, type[Data]]] = {
    What.LINK_DOWN: LinkDownData,
    What.LINK_UP: LinkUpData,
    What.SLOT_STATE: SlotStateData,
    What.SLOT_DEFERRED: SlotDeferredData,
    What.SLOT_IGNORED: SlotIgnoredData,
    What.SLOT_BUTTON: SlotButtonData,
    What.SLOT_POWER_FAULT: SlotPowerFaultData,
    What.SLOT_LATCH: SlotLatchData,
    What.SLOT_NOT_READY: SlotNotReadyData,
    What.SLOT_RECONCILED: SlotReconciledData,
    What.DEVICE_ADDED: DeviceAddedData,
    What.DEVICE_REMOVED: DeviceJudgedData,
    What.DEVICE_KEPT: DeviceJudgedData,
    What.DEVICE_REBOUND: DeviceReboundData,
    What.DEVICE_CHANNEL: DeviceChannelData,
    What.ERROR_CORRECTABLE: ErrorData,
    What.ERROR_NONFATAL: ErrorData,
    What.ERROR_FATAL: ErrorData,
    What.ERROR_IGNORED: ErrorIgnoredData,
    What.CONTAINMENT_ENTERED: ContainmentEnteredData,
    What.CONTAINMENT_IGNORED: ContainmentIgnoredData,
    What.CONTAINMENT_RELEASED: ContainmentReleasedData,
    What.LEASE_OPENED: LeaseOpenedData,
    What.LEASE_MASKED: LeaseMaskedData,
    What.LEASE_EXECUTED: LeaseExecutedData,
    What.LEASE_REFUSED: LeaseRefusedData,
    What.LEASE_ABSORBED: LeaseAbsorbedData,
    What.LEASE_ADOPTED: LeaseAdoptedData,
    What.LEASE_UNMASKED: LeaseUnmaskedData,
    What.LEASE_CLOSED: LeaseClosedData,
    What.LEASE_ACKNOWLEDGED: Written,
    What.LEASE_FIRMWARE_ANSWERED: LeaseFirmwareAnsweredData,
    What.QUARANTINE_ENTERED: QuarantineEnteredData,
    What.QUARANTINE_LIFTED: QuarantineLiftedData,
    What.RECOVERY_STARTED: RecoveryStartedData,
    What.RECOVERY_JOINED: RecoveryJoinedData,
    What.RECOVERY_WAITING: RecoveryWaitingData,
    What.RECOVERY_ESCALATED: RecoveryEscalatedData,
    What.RECOVERY_STEP: RecoveryStepData,
    What.RECOVERY_VOTE: RecoveryVoteData,
    What.RECOVERY_PROGRESS: RecoveryProgressData,
    What.RECOVERY_ERRORS: RecoveryErrorsData,
    What.RECOVERY_BROKEN: RecoveryBrokenData,
    What.RECOVERY_CLOSED: RecoveryClosedData,
}
