"""The keys of everybody on the bus: made, completed, shown; and the server's table of who may do what."""

from ._command import app

__all__ = ["app"]
