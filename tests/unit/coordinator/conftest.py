"""The coordinator's tests run in the runtime's virtual time."""

from tests.unit.runtime.conftest import in_virtual_time

__all__ = ["in_virtual_time"]
