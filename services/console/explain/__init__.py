"""Which known failure a kernel log tells of, where it was fixed, and what to do."""

from ._command import explain

__all__ = ["explain"]
