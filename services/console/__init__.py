"""The `holdfast` command: for operators and scripts. A client of the bus like any other; it owns nothing.

It never touches a register and never writes a record: it asks those who do, and says what they answered.
"""
