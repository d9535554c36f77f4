"""How a service ends: the codes that its supervisor sees, and the one exception that carries one.

From 64 on they are those of sysexits.h, by which a supervisor or an operator can look them up. The fabric adds 65 and
75 for its ledger.
"""

from __future__ import annotations

import os
from typing import Final

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2  # settings, a topology or the command line are wrong
EXIT_BUS_UNREACHABLE: Final = 8  # the connection was closed for good
EXIT_PORT: Final = os.EX_OSERR  # 71: the address for health and metrics cannot be had
EXIT_UNWRITABLE: Final = os.EX_IOERR  # 74: a directory or a volume cannot be written
EXIT_UNTRUSTED: Final = os.EX_PROTOCOL  # 76: a certificate expired or is not trusted, or the bus offers no TLS
EXIT_CREDENTIAL: Final = os.EX_NOPERM  # 77: a credential is missing, unreadable, malformed or refused


class Fatal(Exception):  # noqa: N818 - named for what it does
    """The process cannot go on, and starting the runner again would not help. Logged; exits with `code`."""

    def __init__(self, message: str, code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.code = code
