"""Containment: finds ports that have contained an error, says why, and has them released and recovered.

It writes nothing, ever: the trigger is cleared by the recovery that it asks for, inside the recovery's lease, and
whether the device behind it still exists is found out there, too.

On a firmware-first host it does not read a port either, until the firmware has handed it over (EDR).
"""
