"""Slots, and the registry of the devices in them: the pciehp of this system.

It never decides on an event, only on registers; it writes no register but under a slot operation, whose lease any
recovery may take from it at once; and nobody asks it anything during a recovery (P5). Others meet it on the bus alone.
"""

__all__: list[str] = []
