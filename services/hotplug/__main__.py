"""`python -m services.hotplug`: the slots of the hosts."""

from __future__ import annotations

from shared.runtime import run

from ._host import SERVICE, host

if __name__ == "__main__":
    run(SERVICE, host, owned=True)
