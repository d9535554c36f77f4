"""Directs every recovery and reset from mask to unmask, and finishes what a dead holder left.

One actor per lease port takes requests in order; what it runs under a lease is a `Work`: a recovery (also the one that
lifts a quarantine), a user's reset, or a hold. Decisions stand apart and are pure: `_recovery` (which step follows),
`_plan` (how to reset), `_votes` (what the drivers' answers come to), `_queue` (join, escalate or wait), `_storms` (when
trying again is over).

What this never does: ask hotplug anything (P5), write a register without a lease, or resume a driver on a device that
has not been verified.
"""
