"""Error reporting of root ports: finds, decodes, counts and publishes errors, and asks the coordinator to recover.

It never resets anything, never calls a driver, and clears no uncorrectable status of any function: that is done by the
recovery that it asked for, inside its lease. What it clears (correctable status, and the root port's own latch) it has
published first, and uncorrectable latches only once the recovery has been accepted.
"""
