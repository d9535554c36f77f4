"""`python -m services.console` is `holdfast`."""

from __future__ import annotations

from ._app import app
from ._run import guarded


def main() -> None:
    """Run the command line."""
    guarded(app)


if __name__ == "__main__":
    main()
