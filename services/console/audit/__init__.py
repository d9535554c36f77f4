"""Masks, disabled links and silenced errors that no lease explains: live, of a dump, of a sysfs tree."""

from ._command import audit

__all__ = ["audit"]
