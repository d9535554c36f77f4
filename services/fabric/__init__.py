"""The fabric: access to one host's config space, and the authority on its leases (DESIGN 3, 4).

One serial process next to the hardware, with a synced disk. It admits leases, mints their tokens, executes fenced
register transactions, raises interrupts on the bus, and closes leases. It never decides about a device, never waits
for anything but a hotplug command in flight, and never needs the bus to keep a promise.

Reading order: `_admission` (who waits for whom), `_leases` (the commands, with `_opening` and `_closing`), `_rules`
(P1), `_execute`, `_quarantine`, `_firmware` (firmware first), `_book` (what is remembered), `_ledger` (how it is kept),
`_actor` (persists, performs, answers).
"""
