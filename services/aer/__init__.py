"""Error reporting of root ports and event collectors: finds, decodes, counts and publishes errors, asks for recoveries.

It never resets anything and never calls a driver. Uncorrectable status is cleared by the recovery that it asked for,
inside its lease; but for stale status, which no message is about that is latched. What aer clears itself (that,
correctable status, and the latch of the root port) it has published first, and uncorrectable latches only once the
recovery has been accepted.
"""
