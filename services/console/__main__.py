"""`python -m services.console` is `holdfast`."""

from __future__ import annotations

import sys

_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def main() -> None:
    """Run the command line. It is imported here, which takes a while: Ctrl-C may come meanwhile."""
    try:
        from ._app import app  # noqa: PLC0415
        from ._run import guarded  # noqa: PLC0415
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    guarded(app)


if __name__ == "__main__":
    main()
