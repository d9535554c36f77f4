"""The dead-man's switch of `hold`: kills a command's process group unless it is fed. Run as a process of its own.

`python -m services.console._guard GROUP SILENCE_S`, with a pipe as stdin: any byte feeds it, `q` ends it. When the
pipe closes (the `hold` was killed) or stays silent (it is frozen, or its bus is), the group is killed before its lease
can end (P7). It imports nothing of Holdfast, so that it runs within milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from typing import Final

FEED: Final = b"."
QUIT: Final = b"q"
KILLED: Final = 3  # exit code: the group was killed
_STDIN: Final = 0
_CHUNK: Final = 64


def guard(group: int, silence_s: float) -> int:
    """Return when told to quit; kill `group` on silence or at the end of the pipe. Return the exit code."""
    while select.select([_STDIN], [], [], silence_s)[0]:
        fed = os.read(_STDIN, _CHUNK)
        if QUIT in fed:
            return 0
        if not fed:
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return KILLED


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), float(sys.argv[2])))
