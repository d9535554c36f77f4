"""Every register that Holdfast knows, one row each, and the names of its bits. The only place that spells either.

Offsets in a capability's table are relative to the capability; those in HEADER, TYPE0 and TYPE1 to the function.
Section numbers are those of PCI Express Base r6.2 unless another document is named. Bit names follow Linux'
`include/uapi/linux/pci_regs.h`.
"""

# A hundred names that a reader finds by their register: a second list of them here could only differ.
from ._bits import *  # noqa: F403
from ._table import *  # noqa: F403
