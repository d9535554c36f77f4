"""The `holdfast` command: for operators and scripts. A client of the bus like any other; it owns nothing.

It never touches a register and never writes a record: it asks those who do, and says what they answered. `_app` has
every command; what needs more than a module or two has a room of its own: `kernel_log`, which `explain` and `replay`
read; `scenario`, `audit` and `keys`.
"""
